"""Engine directories as `generate.py` and the runner meet them: real engines, built without a GPU."""

import json
import shutil
from pathlib import Path

import onnx

from yarnconv.targets.templates import copy_runner

# New tokens and past ones: least, usual, most. A decode profile of exactly one new token fails or is planned
# badly once the past is long; one of up to two is not.
PROFILES = {"prefill": ((1, 64, 128), (0, 0, 512)), "decode": ((1, 1, 2), (1, 200, 512))}


def _shape(tensor, new, past):
    if tensor.name.startswith("past_key_values"):
        return (1, tensor.shape[1], past, tensor.shape[3])
    if tensor.name == "attention_mask":
        return (1, past + new)
    return (1, new) if tensor.name in ("input_ids", "position_ids") else tuple(tensor.shape)


def declare_context(model, *, scalar=True):
    """Make rope_context an input that has to be given: a default is a constant to TensorRT."""
    for tensor in [t for t in model.graph.initializer if t.name == "rope_context"]:
        model.graph.initializer.remove(tensor)
    if scalar:
        return
    (declared,) = (i for i in model.graph.input if i.name == "rope_context")
    declared.type.tensor_type.shape.dim.add().dim_value = 1
    (node,) = (n for n in model.graph.node if "rope_context" in n.input)
    node.op_type = "Identity"
    del node.input[1:]


def build(path, profiles=None, capability="8.9"):
    """The engine's bytes."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its short float32 would hide what is compared
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True  # there is no kernel for it
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    for name, (new, past) in (profiles or PROFILES).items():
        profile = builder.create_optimization_profile()
        for tensor in (network.get_input(index) for index in range(network.num_inputs)):
            profile.set_shape(tensor.name, *(_shape(tensor, *ends) for ends in zip(new, past, strict=True)))
        assert config.add_optimization_profile(profile) >= 0, name
    return bytes(memoryview(builder.build_serialized_network(network, config)))


def sidecar(model, engine, profiles=None, *, capability="8.9"):
    """What yarnconv.json says of an engine of this graph."""
    from tensorrt_rtx import __version__ as version

    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    cache = inputs["past_key_values.0.key"]
    (logits,) = (o.type.tensor_type for o in model.graph.output if o.name == "logits")
    plan = json.loads({p.key: p.value for p in model.metadata_props}["yarnconv.plan"])
    cache_type = {1: "fp32", 10: "fp16", 16: "bf16"}[cache.elem_type]  # by ONNX's numbers
    shape = inputs["rope_context"].shape.dim if "rope_context" in inputs else []
    return {
        "schema_version": 1,
        "yarnconv_version": plan["yarnconv_version"],
        "runtime": {"name": "tensorrt-rtx", "version": version},
        "engine": {"file": "model.engine", "bytes": len(engine), "digest": "none"},
        "graph": {
            "file": "model.onnx",
            "dtype": cache_type,
            "cache_type": cache_type,
            "last_token_only": not logits.shape.dim[1].dim_param.startswith("sequence"),
            "max_context": plan["graph"]["max_context"],
            "bucket_contexts": plan["graph"]["bucket_contexts"],
            "rope_context_shape": [d.dim_value for d in shape],
            "vocab_size": logits.shape.dim[2].dim_value,
            "layers": sum(name.endswith(".key") for name in inputs),
            "key_value_heads": cache.shape.dim[1].dim_value,
            "head_dim": cache.shape.dim[3].dim_value,
        },
        "profiles": [
            {"name": name, "batch": [1, 1, 1], "new_tokens": list(new), "past_tokens": list(past)}
            for name, (new, past) in (profiles or PROFILES).items()
        ],
        "compute_capabilities": [capability],
        "eos_token_ids": [258],
        "plan": plan,
        "build": {"optimization_level": 3},
        "tables": [],
    }


def engine_directory(source: Path, out: Path, *, profiles=None, capability="8.9", scalar=True):
    """A directory that `yarnconv onnx --kv concat` wrote, with an engine of its graph in it."""
    shutil.copytree(source, out)
    for name in ("genai_config.json", "README.md"):
        (out / name).unlink()
    model = onnx.load(out / "model.onnx", load_external_data=False)
    if any(i.name == "rope_context" for i in model.graph.input):
        declare_context(model, scalar=scalar)
    onnx.save(model, out / "model.onnx")
    engine = build(out / "model.onnx", profiles, capability)
    (out / "model.engine").write_bytes(engine)
    (out / "yarnconv.json").write_text(json.dumps(sidecar(model, engine, profiles, capability=capability)))
    copy_runner("tensorrt", out)
    return out
