"""The model's part of a GGUF's metadata, as llama.cpp's own converter writes it, and provenance."""

import json

from yarnconv import __version__
from yarnconv.checkpoint.hub import model_name
from yarnconv.model.config_values import MAXIMUM_DIMENSION
from yarnconv.plan import ConversionPlan
from yarnconv.targets.gguf.block_keys import write_block_keys
from yarnconv.targets.gguf.file_format import Metadata, TensorType
from yarnconv.targets.gguf.rope import RopeEncoding
from yarnconv.targets.gguf.rope_keys import rope_keys
from yarnconv.targets.gguf.runtime import RuntimeArchitecture
from yarnconv.targets.record import RECORD_KEY

QUANTIZATION_VERSION = 2
# llama.cpp's `llama_ftype`: what most of a file's weights are
FILE_TYPES = {
    TensorType.F32: 0,
    TensorType.F16: 1,
    TensorType.Q8_0: 7,
    TensorType.BF16: 32,
    TensorType.MXFP4: 38,
}


def write_general(
    metadata: Metadata,
    plan: ConversionPlan,
    runtime: RuntimeArchitecture,
    file_type: TensorType,
    parameters: int,
    expert_parameters: int,
) -> None:
    """What kind of file this is. parameters: of the whole model. expert_parameters: of all its experts'
    matrices: llama.cpp's converter names a mixture by how many there are and what one of them needs.
    """
    import gguf

    mixture = plan.description.mixture
    experts = 0 if mixture is None else mixture.experts
    one = expert_parameters // max(experts, 1)

    metadata.string("general.architecture", runtime.name)
    metadata.string("general.type", "model")
    metadata.string("general.name", model_name(plan.checkpoint.directory))
    label = gguf.size_label(parameters, parameters - expert_parameters, one, experts)
    metadata.string("general.size_label", label)
    metadata.uint32("general.file_type", FILE_TYPES[file_type])
    metadata.uint32("general.quantization_version", QUANTIZATION_VERSION)


def _feed_forward_length(plan: ConversionPlan) -> int:
    """Of the layers without experts; where there are none, what config.json says of them, as llama.cpp's
    converter has it, or the experts' own.
    """
    dense = plan.description.dense
    if dense is not None:
        return dense.intermediate_size
    said = plan.config.get(plan.family.structure.intermediate_size)
    mixture = plan.description.mixture
    assert mixture is not None
    return said if isinstance(said, int) and 0 < said < MAXIMUM_DIMENSION else mixture.intermediate_size


def write_model(
    metadata: Metadata, plan: ConversionPlan, runtime: RuntimeArchitecture, rope: RopeEncoding
) -> None:
    """Dimensions and RoPE, under the architecture's prefix."""
    model, facts = plan.description, plan.family.gguf
    name, layer = runtime.name, model.layers[0]
    metadata.uint32(f"{name}.block_count", len(model.layers))
    metadata.uint32(f"{name}.context_length", plan.rope.target_context)
    metadata.uint32(f"{name}.embedding_length", model.hidden_size)
    metadata.uint32(f"{name}.feed_forward_length", _feed_forward_length(plan))
    metadata.uint32(f"{name}.attention.head_count", layer.attention.heads)
    metadata.uint32(f"{name}.attention.head_count_kv", layer.attention.key_value_heads)
    rope.write(metadata, name, None if rope_keys(name).finetuned_is_switch else plan.rope.finetuned)
    metadata.float32(f"{name}.attention.layer_norm_rms_epsilon", model.norm_epsilon)
    if facts.head_length_keys or plan.config.get("head_dim") is not None:
        metadata.uint32(f"{name}.attention.key_length", layer.attention.head_dim)
        latent = layer.attention.latent
        value_length = layer.attention.head_dim if latent is None else latent.rank
        metadata.uint32(f"{name}.attention.value_length", value_length)
    if facts.vocab_size_key:
        metadata.uint32(f"{name}.vocab_size", model.vocab_size)
    if facts.rope_dimension_count_key or plan.rope.main.rotary_dim != layer.attention.turning_dim:
        metadata.uint32(f"{name}.rope.dimension_count", plan.rope.main.rotary_dim)
    write_block_keys(metadata, model, runtime)


def write_provenance(metadata: Metadata, plan: ConversionPlan) -> None:
    """What this tool did, for people and for pre-filling options; never evidence for the file."""
    metadata.string("yarnconv.version", __version__)
    metadata.string(RECORD_KEY, json.dumps(plan.provenance, separators=(",", ":")))
