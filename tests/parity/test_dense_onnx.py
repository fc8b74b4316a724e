"""Dense families in the real ONNX Runtime against transformers: that what makes one special is seen where it
is left out, longrope, other types, linked weights and the dialect for CUDA. What mixtures are asked as well
stands in `test_family_onnx.py`.
"""

import json
import shutil

import numpy as np
import pytest

from tests.parity.onnx_requests import DENSE, FLOAT32_TOLERANCE, LENGTH, PLAIN, YARN, tokens
from tests.parity.test_onnx_runtime import stored_weights
from tests.support.models import (
    ORIGINAL_CONTEXT,
    edit_config,
    make_checkpoint,
    reference_logits,
    relative_error,
)
from tests.support.onnx_runtime import OnnxModel

# Measured over every case here: dequantised int4 as float32; float16 at most 1.9e-2 (Gemma 3); without
# growth, softcap or window 1e-2 and more.
TOLERANCE = {"int4": FLOAT32_TOLERANCE, "fp16": 4e-2}
WRONG = 1e-2


def yarn_of(name, factor=4.0):
    """Ministral 3 brings its own pair of mscales, and its growth wants to know the original context."""
    if name != "ministral3":
        return PLAIN if factor == 1.0 else {**YARN, "factor": factor}
    own = {"original_max_position_embeddings": ORIGINAL_CONTEXT, "mscale": 1.0, "mscale_all_dim": 1.0}
    return {**PLAIN, **own} if factor == 1.0 else {**YARN, **own, "factor": factor}


# what makes a model special -> how its config says that it has none of it
SPECIAL = {
    "growth of queries": ("ministral3", None),
    "softcap of scores": ("gemma2", {"attn_logit_softcapping": None}),
    "softcap of logits": ("gemma2", {"final_logit_softcapping": None}),
    "narrow windows": ("mistral, window", {"sliding_window": None}),
    "windows of some layers": ("olmo3", {"sliding_window": 4096}),
    "scale of scores": ("granite", {"attention_multiplier": 0.125}),
    "residual multiplier": ("granite", {"residual_multiplier": 1.0}),
    "layers without RoPE": ("smollm3", {"no_rope_layers": [1] * 5}),
}


@pytest.mark.parametrize("special", SPECIAL)
def test_leaving_out_what_is_special_is_far_away(special, model_of, convert, tmp_path):
    name, without = SPECIAL[special]
    directory = model_of(name)
    found = OnnxModel(convert(directory, "--factor", "4")).run(tokens(LENGTH), capacity=1024)
    other = shutil.copytree(directory, tmp_path / "other")
    rope = yarn_of(name)
    if without is None:
        rope = {**rope, "llama_4_scaling_beta": 0.0}
    else:
        edit_config(other, **without)
    assert relative_error(found, reference_logits(other, tokens(LENGTH), rope)) > WRONG


SETS = {
    "short_factor": [1.0 + 0.01 * pair for pair in range(32)],
    "long_factor": [1.0 + 0.2 * pair for pair in range(32)],
}


@pytest.fixture(scope="module")
def longrope(tmp_path_factory):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **SETS}
    rope["original_max_position_embeddings"] = ORIGINAL_CONTEXT
    return make_checkpoint(
        tmp_path_factory.mktemp("longrope") / "model",
        "phi3",
        max_position_embeddings=1000,
        rope_parameters=rope,
    )


def one_set(which):
    """Longrope that has but one set: transformers chooses among both by what it is given at once."""
    chosen = {"short_factor": SETS[which], "long_factor": SETS[which]}
    return {"rope_type": "longrope", **chosen, "original_max_position_embeddings": ORIGINAL_CONTEXT}


@pytest.mark.parametrize("kv", ["in-place", "concat"])
def test_longrope_follows_the_declared_context(kv, longrope, convert):
    """The short set up to the original context, the long one beyond, whose rows end with the config's."""
    out = convert(longrope, "--kv", kv)
    model = OnnxModel(out)
    for context, which in ((256, "short_factor"), (257, "long_factor"), (1000, "long_factor")):
        declared = {"rope_context": np.array(context)} if kv == "concat" else {}
        length = min(context, LENGTH)
        wanted = reference_logits(longrope, tokens(length), one_set(which))
        found = model.run(tokens(length), capacity=context, **declared)
        assert relative_error(found, wanted) <= FLOAT32_TOLERANCE
        other = next(name for name in SETS if name != which)
        assert relative_error(found, reference_logits(longrope, tokens(length), one_set(other))) > WRONG
    declared = {"rope_context": np.array(1000)} if kv == "concat" else {}
    for last, is_row in ((999, True), (1000, False)):
        logits = model.run(tokens(2), np.array([0, last]), capacity=1000, **declared)
        assert np.isfinite(logits[1]).all() == is_row
    stated = json.loads((out / "genai_config.json").read_text())
    assert (stated["model"]["context_length"], stated["search"]["max_length"]) == (1000, 256)


def test_longrope_is_transformers_own_choice(longrope, convert):
    """Of a request that is prefilled at once transformers chooses as the graph does."""
    model = OnnxModel(convert(longrope))
    for length in (200, LENGTH):
        wanted = reference_logits(longrope, tokens(length))
        assert relative_error(model.run(tokens(length), capacity=length), wanted) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize(
    "options", [(), ("--max-context", "200"), ("--kv", "concat")], ids=lambda options: " ".join(options)
)
def test_longrope_is_checked_and_inspected(options, longrope, convert, check, inspect):
    out = convert(longrope, *options)
    code, report, stderr = check(out, longrope)
    assert code == 0, (stderr, report and report["reasons"])
    assert set(report["verdicts"].values()) == {"holds"}
    if "--max-context" not in options:  # which leaves the first of both sets
        code, _, severe = inspect(out)
        assert (code, severe) == (0, [])


@pytest.mark.parametrize(
    ("name", "dtype", "kv"),
    [
        ("gemma2", "fp16", "in-place"),
        ("gemma3", "fp16", "concat"),
        ("ministral3", "fp16", "concat"),
        ("glm4", "fp16", "in-place"),
        ("phi3", "int4", "in-place"),
        ("olmo2", "int4", "concat"),
        ("gemma2", "int4", "concat"),
        *(pytest.param(name, "fp16", "in-place", marks=pytest.mark.slow) for name in DENSE),
        *(pytest.param(name, "int4", "in-place", marks=pytest.mark.slow) for name in DENSE),
    ],
)
def test_other_types(name, dtype, kv, model_of, convert):
    directory = model_of(name)
    out = convert(directory, "--factor", "4", "--dtype", dtype, "--kv", kv)
    weights = stored_weights(out, directory) if dtype == "int4" else None
    wanted = reference_logits(directory, tokens(LENGTH), yarn_of(name), weights=weights)
    assert relative_error(OnnxModel(out).run(tokens(LENGTH), capacity=1024), wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("name", ["phi3", "gemma3"])
def test_linked_weights(name, dtype, model_of, convert):
    """Fused matrices and norms that add one, from the checkpoint's own file."""
    directory = model_of(name)
    wanted = OnnxModel(convert(directory, "--factor", "4", "--dtype", dtype)).run(tokens(300), capacity=512)
    linked = convert(directory, "--factor", "4", "--dtype", dtype, "--link-weights")
    found = OnnxModel(linked).run(tokens(300), capacity=512)
    assert relative_error(found, wanted) <= (5e-3 if dtype == "fp16" else 1e-5)


@pytest.mark.parametrize("name", ["gemma2", "olmo3", "ministral3", "phi3", "smollm3"])
def test_group_query_attention(name, model_of, convert):
    """The dialect for CUDA on the CPU's kernel: its softcap comes in front of its mask."""
    directory = model_of(name)
    options = ("--factor", "4", "--dialect", "ort-cuda")
    found = OnnxModel(convert(directory, *options)).run(tokens(LENGTH), capacity=1024)
    wanted = reference_logits(directory, tokens(LENGTH), yarn_of(name))
    assert relative_error(found, wanted) <= FLOAT32_TOLERANCE


def test_one_more_than_a_weight_is_rounded_once(tmp_path, convert):
    """In float16 a norm's weight of 3e-4 is lost in 1 + weight if that is rounded to it: 1 + 2^-11 is 1."""
    import torch
    from safetensors.torch import load_file, save_file

    directory = make_checkpoint(tmp_path / "model", "gemma2")
    stored = load_file(directory / "model.safetensors")
    norms = {name: tensor for name, tensor in stored.items() if name.endswith("norm.weight")}
    for tensor in norms.values():
        tensor.fill_(3e-4)
    save_file({**stored, **norms}, directory / "model.safetensors", metadata={"format": "pt"})
    import onnx
    from onnx import numpy_helper

    model = onnx.load(convert(directory, "--dtype", "fp16") / "model.onnx")
    kept = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in norms}
    assert kept.keys() == norms.keys()
    for name, values in kept.items():
        assert values.dtype == np.float32
        assert torch.equal(torch.from_numpy(np.array(values)), norms[name])


def set_constant(directory, old, new):
    """Another number in the place of the graph's only small constant that is this one."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(directory / "model.onnx", load_external_data=False)
    small = [t for t in model.graph.initializer if not t.external_data]
    (found,) = (t for t in small if (numpy_helper.to_array(t) == old).all())
    values = np.full(tuple(found.dims), new, numpy_helper.to_array(found).dtype)
    found.CopyFrom(numpy_helper.from_array(values, found.name))
    onnx.save(model, directory / "model.onnx")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [(64, 65, "window of layer 0"), (2.0, 2.5, "softcap of layer 1")],
)
def test_another_window_or_softcap_is_caught(old, new, key, model_of, convert, check):
    """A window one slot too wide moves hardly a logit, and is read in the graph."""
    directory = model_of("gemma2")
    out = convert(directory, "--factor", "4", "--kv", "concat")
    code, report, _ = check(out, directory)
    assert code == 0, report["reasons"]
    set_constant(out, old, new)
    code, report, _ = check(out, directory)
    assert code == 1
    assert report["verdicts"]["metadata"] == "fails"
    facts = {fact["key"]: fact for fact in report["metadata"]}
    assert not facts[key]["agrees"]


@pytest.mark.parametrize("name", ["olmo3", "gemma3"])
def test_one_table_for_several_kinds_of_layers_is_not_extended(name, model_of, convert, yarnconv, tmp_path):
    """Of which OLMo 3, unscaled, has one and the same; only the layers that see everything are extended."""
    out = convert(model_of(name), "--method", "none")
    code, _, stderr = yarnconv("onnx", out, "--factor", "4", "-o", tmp_path / "extended")
    assert code == 3
    assert "layers" in stderr
    assert not (tmp_path / "extended").exists()


@pytest.mark.parametrize("name", ["smollm3", "gemma2", "phi3"])
def test_an_extended_model_is_the_converted_one(name, model_of, convert, yarnconv, tmp_path):
    """Layers without RoPE stay without."""
    directory = model_of(name)
    plain = convert(directory, "--method", "none")
    code, _, stderr = yarnconv("onnx", plain, "--factor", "4", "-o", tmp_path / "extended")
    assert code == 0, stderr
    found = OnnxModel(tmp_path / "extended").run(tokens(300), capacity=512)
    assert relative_error(found, reference_logits(directory, tokens(300), YARN)) <= FLOAT32_TOLERANCE
