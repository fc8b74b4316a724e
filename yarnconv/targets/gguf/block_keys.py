"""Keys that say how a block is built, beside its dimensions and RoPE, where an architecture reads any."""

from collections.abc import Iterator
from dataclasses import dataclass

from yarnconv.model.description import (
    AttentionDescription,
    ExpertsDescription,
    LatentAttention,
    ModelDescription,
)
from yarnconv.targets.gguf.experts import GATING, leading_dense
from yarnconv.targets.gguf.file_format import Metadata, same
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.refusals import slides
from yarnconv.targets.gguf.runtime import RuntimeArchitecture, RuntimeExperts, RuntimeWindows

Value = int | float | bool | list[bool]
QUERY_RANK = "attention.q_lora_rank"
_LONGEST_LIST = 16 + 8 * 512  # bytes: a list's head, and 64 bits for each of llama.cpp's LLAMA_MAX_LAYERS


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKey:
    """A key without its prefix, and the model's value. default: what llama.cpp takes where it is left out;
    None where it must be there, or is better so. implied: that of one which is better there.
    """

    name: str
    value: Value
    default: Value | None = None
    implied: Value | None = None

    @property
    def is_default(self) -> bool:
        """Whether the key may be left out."""
        return self.default is not None and same(self.value, self.default)


def _windows(model: ModelDescription, windows: RuntimeWindows, sliding: list[bool]) -> list[BlockKey]:
    if not any(sliding):
        return [BlockKey(name="attention.sliding_window", value=0, default=0)]
    (window,) = {layer.attention.window for layer in model.layers if layer.attention.window is not None}
    pattern = windows.default_pattern(len(sliding))
    return [
        BlockKey(name="attention.sliding_window", value=window),
        BlockKey(name="attention.sliding_window_pattern", value=sliding, default=pattern),
    ]


def _mixture_keys(mlp: ExpertsDescription, runtime: RuntimeExperts) -> Iterator[BlockKey]:
    """Of a mixture."""
    routing = mlp.routing
    yield BlockKey(name="expert_count", value=mlp.experts)
    yield BlockKey(name="expert_used_count", value=routing.chosen)
    if routing.is_limited:
        yield BlockKey(name="expert_group_count", value=routing.groups)
        yield BlockKey(name="expert_group_used_count", value=routing.chosen_groups)
    else:
        yield BlockKey(name="expert_group_count", value=1, default=1)  # as none
    if runtime.own_size:
        yield BlockKey(name="expert_feed_forward_length", value=mlp.intermediate_size)
    if runtime.shared == "counted":
        shared = 0 if mlp.shared is None else mlp.shared.intermediate_size // mlp.intermediate_size
        yield BlockKey(name="expert_shared_count", value=shared)
    if runtime.shared == "gated" and mlp.shared is not None:
        yield BlockKey(name="expert_shared_feed_forward_length", value=mlp.shared.intermediate_size)
    if runtime.scaled:
        yield BlockKey(name="expert_weights_scale", value=routing.scale, implied=1.0)
    if runtime.normalised is None:
        yield BlockKey(name="expert_weights_norm", value=routing.normalised, implied=False)
    if runtime.scores is None:
        usual = GATING[runtime.usual_scores]
        yield BlockKey(name="expert_gating_func", value=GATING[routing.scores], implied=usual)


def _experts(model: ModelDescription, runtime: RuntimeArchitecture) -> list[BlockKey]:
    mixture = model.mixture
    if mixture is None or runtime.experts is None:
        return []
    found = list(_mixture_keys(mixture, runtime.experts))
    if runtime.experts.leading_dense:
        found.append(BlockKey(name="leading_dense_block_count", value=leading_dense(model), implied=0))
    return found


def _latent(attention: AttentionDescription, latent: LatentAttention, *, knows: bool) -> Iterator[BlockKey]:
    """q_lora_rank of 0: queries are made directly. knows: whether the architecture makes them so anyway."""
    rank = latent.query_rank or 0
    yield BlockKey(name=QUERY_RANK, value=rank, implied=0 if knows else None)
    values = {
        "kv_lora_rank": latent.rank,
        "key_length_mla": attention.projected_head_dim,
        "value_length_mla": latent.value_dim,
    }
    for key, value in values.items():
        yield BlockKey(name=f"attention.{key}", value=value)


def block_keys(model: ModelDescription, runtime: RuntimeArchitecture) -> list[BlockKey]:
    """All that the architecture reads."""
    layer, count = model.layers[0], len(model.layers)
    attention, sliding = layer.attention, [slides(one.attention) for one in model.layers]
    windows = runtime.windows_at(count)
    found = [] if windows is None else _windows(model, windows, sliding)
    if runtime.rope_pattern:
        rotates = [one.attention.rotates for one in model.layers]
        found.append(
            BlockKey(name="attention.rope_pattern", value=rotates, default=runtime.rotating(sliding))
        )
    if runtime.multipliers:
        scale = runtime.attention_scale(model, count)
        found += [
            BlockKey(name="attention.scale", value=attention.scale, default=scale),
            BlockKey(name="embedding_scale", value=model.embedding_multiplier, default=1.0),
            BlockKey(name="residual_scale", value=layer.residual_multiplier, default=1.0),
            # by which logits are divided
            BlockKey(name="logit_scale", value=1.0 / model.logit_multiplier),
        ]
    if attention.softcap is not None:
        found.append(BlockKey(name="attn_logit_softcapping", value=attention.softcap))
    if runtime.logit_softcap is not None:
        default = 0.0 if runtime.logit_softcap == "by key" else None
        cap = model.logit_softcap or 0.0
        found.append(BlockKey(name="final_logit_softcapping", value=cap, default=default))
    if runtime.query_growth or runtime.latent:
        beta = 0.0 if attention.query_growth is None else attention.query_growth.beta
        found.append(BlockKey(name="attention.temperature_scale", value=beta, default=0.0))
    found += _experts(model, runtime)
    if attention.latent is not None:
        found += _latent(attention, attention.latent, knows=runtime.is_lite(count, model.vocab_size))
    return found


def write_block_keys(metadata: Metadata, model: ModelDescription, runtime: RuntimeArchitecture) -> None:
    """Set those that may not be left out."""
    for key in block_keys(model, runtime):
        name = f"{runtime.name}.{key.name}"
        if key.is_default:
            continue
        if isinstance(key.value, list):
            metadata.booleans(name, key.value)
        elif isinstance(key.value, bool):
            metadata.boolean(name, key.value)
        elif isinstance(key.value, int):
            metadata.uint32(name, key.value)
        else:
            metadata.float32(name, key.value)


def read_block_key(artefact: GgufFile, key: BlockKey) -> Value | None:
    """What llama.cpp takes from a file; None where it holds nothing of the key's type."""
    name = f"{artefact.architecture}.{key.name}"
    if name not in artefact.packed:
        return key.implied if key.default is None else key.default
    if not isinstance(key.value, list):
        scalar: Value = artefact.scalar(name, type(key.value))
        return scalar
    if len(artefact.packed[name]) > _LONGEST_LIST:
        return None
    found = artefact.value(name)
    if isinstance(found, list):
        return [bool(one) for one in found[: len(key.value)]]
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        return None
    return RuntimeWindows(full_every=found, optional=True).default_pattern(len(key.value))
