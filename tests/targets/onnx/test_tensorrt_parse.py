"""The concat form is TensorRT's too: TensorRT-RTX parses it and builds engines of it, which takes no GPU.

Only a GPU runs an engine. What it would compute is what ONNX Runtime computes with the very same file.
"""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.models import make_checkpoint
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.target import MODEL_FILE, OnnxOptions, emit, prepare

trt = pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
LOGGER = trt.Logger(trt.Logger.INTERNAL_ERROR)  # what it says is in the parser's errors too
# New tokens and past ones: least, usual, most. A decode profile of exactly one new token fails or is planned
# badly once the past is long; one of up to two is not.
PROFILES = {"prefill": ((1, 64, 512), (0, 0, 0)), "decode": ((1, 1, 2), (1, 200, 1000))}
FORMS = pytest.mark.parametrize("dtype", ["fp16", "bf16"])
METHODS = pytest.mark.parametrize("method", ["yarn", "dynamic-yarn"])


@pytest.fixture
def convert(yarnconv, checkpoints, tmp_path):
    def run(*options, kv="concat"):
        out = tmp_path / "onnx"
        code, _, stderr = yarnconv(
            "onnx", checkpoints("llama"), "--factor", "4", "--kv", kv, *options, "-o", out
        )
        assert code == 0, stderr
        return out / MODEL_FILE

    return run


class Parsed:
    """A strongly typed network and whatever keeps it alive."""

    def __init__(self, path):
        self.builder = trt.Builder(LOGGER)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, LOGGER)
        self.parser.parse_from_file(str(path))  # the weights lie beside it
        errors = [self.parser.get_error(index) for index in range(self.parser.num_errors)]
        self.errors = [(error.node_name(), error.node_operator(), error.desc()) for error in errors]

    @property
    def inputs(self):
        return [self.network.get_input(index) for index in range(self.network.num_inputs)]

    @property
    def layers(self):
        return [self.network.get_layer(index) for index in range(self.network.num_layers)]

    def build(self):
        """The engine's bytes, for a GPU that need not be here."""
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        for name, (new, past) in PROFILES.items():
            profile = self.builder.create_optimization_profile()
            for tensor in self.inputs:
                shapes = [_shape(tensor, *lengths) for lengths in zip(new, past, strict=True)]
                profile.set_shape(tensor.name, *shapes)
            assert config.add_optimization_profile(profile) >= 0, name
        return self.builder.build_serialized_network(self.network, config)


def _shape(tensor, new, past):
    if tensor.name.startswith("past_key_values"):
        return (1, tensor.shape[1], past, tensor.shape[3])
    if tensor.name == "attention_mask":
        return (1, past + new)
    return (1, new) if tensor.name in ("input_ids", "position_ids") else ()


def constant_behind(parsed, tensor):
    """The constant from which a tensor's rows are gathered."""
    makers = {layer.get_output(0).name: layer for layer in parsed.layers}
    layer = makers[tensor.name]
    while layer.type != trt.LayerType.CONSTANT:
        layer = makers[layer.get_input(0).name]
    layer.__class__ = trt.IConstantLayer
    return np.array(layer.weights).reshape(layer.shape)


@FORMS
@METHODS
def test_an_engine_is_built_of_it(dtype, method, convert):
    parsed = Parsed(convert("--dtype", dtype, "--method", method))
    assert parsed.errors == []
    assert parsed.build()


@FORMS
@METHODS
def test_the_rotary_layers_read_the_files_own_tables(dtype, method, convert):
    """Float32 in every dtype, so that TensorRT rotates by what ONNX Runtime rotates by."""
    path = convert("--dtype", dtype, "--method", method)
    stored = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if "_cache" in t.name
    }
    parsed = Parsed(path)
    rotary = [layer for layer in parsed.layers if layer.type == trt.LayerType.ROTARY_EMBEDDING]
    assert len(rotary) == 3  # queries and keys of three layers, each together
    for layer in rotary:
        for index, name in ((1, "cos_cache"), (2, "sin_cache")):
            np.testing.assert_array_equal(constant_behind(parsed, layer.get_input(index)), stored[name])


def test_the_declared_context_is_baked_in_where_it_has_a_value(convert):
    """TensorRT takes an input's default for a constant: the engine always uses the whole factor. Without the
    default it is an input of the engine's, and the engine is dynamic."""
    path = convert("--dtype", "fp16", "--method", "dynamic-yarn")
    assert "rope_context" not in [tensor.name for tensor in Parsed(path).inputs]
    model = onnx.load(path, load_external_data=False)
    (default,) = (t for t in model.graph.initializer if t.name == "rope_context")
    model.graph.initializer.remove(default)
    onnx.save(model, path)
    parsed = Parsed(path)
    assert parsed.errors == []
    assert "rope_context" in [tensor.name for tensor in parsed.inputs]
    assert parsed.build()


@pytest.mark.parametrize("dtype", ["fp32", "int4"])
def test_float32_arithmetic_is_built_with_decomposed_attention(dtype, convert):
    """There is no fused kernel for it. The network has to say that attention may be decomposed: in the file,
    ONNX Runtime would reject the attribute."""
    parsed = Parsed(convert("--dtype", dtype))
    assert parsed.errors == []
    for layer in parsed.layers:
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    assert parsed.build()


@pytest.mark.parametrize("dtype", ["int4", "fp8"])
def test_outputs_of_zeros_have_scales_that_it_takes(dtype, tmp_path):
    """Such as the rows that pad a vocabulary: of 8 bits every scale has to be positive."""
    from safetensors.numpy import load_file, save_file

    model = make_checkpoint(tmp_path / "model", "llama")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][-5:] = 0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    options = OnnxOptions(dtype=dtype, compute="fp16", kv="concat")
    with open_checkpoint(model) as checkpoint:
        plan = plan_conversion(checkpoint, RopeRequest(factor=4.0))
        emit(plan, prepare(plan, options), tmp_path / "onnx", options, lambda nbytes: None)
    parsed = Parsed(tmp_path / "onnx" / MODEL_FILE)
    assert parsed.errors == []
    assert parsed.build()


@METHODS
def test_the_in_place_form_is_refused_and_the_node_named(method, convert):
    """Its buffers keep the size they are built with, ours has what the client chose: hence `--kv concat`."""
    ((node, operator, why),) = Parsed(convert("--dtype", "fp16", "--method", method, kv="in-place")).errors
    assert (node, operator) == ("node_present.0.key", "TensorScatter")
    assert "static sequence length" in why
