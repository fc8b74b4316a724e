"""Every family x method in the real ONNX Runtime against transformers, inside and beyond the
original context.

float32 graphs against the checkpoint's own weights; int4 ones against a reference with the dequantised
weights, so that they are judged as sharply; float16 within what its arithmetic loses.
"""

import itertools
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.parity.onnx_requests import FORMS, decoding_error, tokens
from tests.parity.test_llama_cpp import FAMILIES, METHODS, YARN, head_dim_of
from tests.support.models import (
    ORIGINAL_CONTEXT,
    make_checkpoint,
    reference_logits,
    relative_error,
)
from tests.support.onnx_runtime import OnnxModel

# Measured over every case here: float32 and dequantised int4 at most 1.4e-5, without the temperature 0.3 and
# more; float16 at most 4e-3.
TOLERANCE = {"fp32": 1e-4, "int4": 1e-4, "fp16": 1.5e-2}
LENGTH = 700


def dequantised(codes, scales, axis):
    by_block = scales.ndim == 2
    return codes.astype(np.float32) * (np.repeat(scales, 32, axis=axis) if by_block else scales)


def read_tensors(directory):
    """By name, as the onnx package reads them; what stands side by side in one tensor apart."""
    model = onnx.load(directory / "model.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for joint in [name for name in stored if " + " in name]:
        names, values = joint.split(" + "), stored.pop(joint)
        # key and value are alike, the query's share is the rest
        width = values.shape[-1]
        small = (width - query_width(directory)) // 2
        parts = np.split(values, [width - 2 * small, width - small], axis=-1)
        stored |= dict(zip(names, parts, strict=True))
    return stored


def query_width(directory):
    config = json.loads((directory / "genai_config.json").read_text())["model"]["decoder"]
    return config["num_attention_heads"] * config["head_size"]


def stored_weights(directory, checkpoint):
    """The graph's matrices by the checkpoint's names, dequantised. A tied model's head is among them where
    the graph has one of its own."""
    from safetensors.numpy import load_file

    stored = read_tensors(directory)
    weights = load_file(checkpoint / "model.safetensors")
    for name in {*weights, "lm_head.weight"}:
        if name in stored and f"{name}.scales" in stored:
            weights[name] = dequantised(stored[name], stored[f"{name}.scales"], axis=0).T
        elif f"{name}.int4" in stored:
            packed = stored[f"{name}.int4"]
            codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(int) - 8
            weights[name] = dequantised(codes, stored[f"{name}.scales"], axis=1)
        elif name in stored and name not in weights:
            weights[name] = stored[name].T
    return weights


def product_cases():
    """Every family x method in float32 in place; of the other five forms one each in turn, the rest slow."""
    forms = [(dtype, kv) for dtype in ("fp32", "fp16", "int4") for kv in FORMS]
    for number, (family, method) in enumerate(itertools.product(FAMILIES, METHODS)):
        for form in forms:
            default = form in (forms[0], forms[1 + number % 5])
            yield pytest.param(family, method, *form, marks=() if default else pytest.mark.slow)


@pytest.mark.parametrize(("family", "method", "dtype", "kv"), list(product_cases()))
def test_parity(family, method, dtype, kv, checkpoints, convert):
    directory = checkpoints(family)
    options, spelled = METHODS[method]
    out = convert(directory, *options, "--dtype", dtype, "--kv", kv)
    weights = stored_weights(out, directory) if dtype == "int4" else None
    length = ORIGINAL_CONTEXT if method == "none" else LENGTH
    wanted = reference_logits(directory, tokens(length), spelled(head_dim_of(family)), weights=weights)
    found = OnnxModel(out).run(tokens(length), capacity=1024)
    assert relative_error(found, wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kv", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_decode_across_the_boundary_and_in_chunks(family, kv, checkpoints, convert):
    out = convert(checkpoints(family), "--factor", "4", "--kv", kv)
    wanted = reference_logits(checkpoints(family), tokens(LENGTH), YARN)
    steps = [100, 100, 53, *[1] * 6, 200, *[1] * 5]  # 253..258 one by one
    error = decoding_error(OnnxModel(out), steps, wanted[: sum(steps)], capacity=1024)
    assert error <= TOLERANCE["fp32"]


@pytest.mark.parametrize("kv", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_sequences_one_padded_on_the_left(family, kv, checkpoints, convert):
    out = convert(checkpoints(family), "--factor", "4", "--kv", kv)
    long, short = tokens(400), tokens(280, seed=5)
    padding = len(long) - len(short)
    batch = np.array([long, [0] * padding + short])
    mask = np.ones_like(batch)
    mask[1, :padding] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    model = OnnxModel(out)
    model.start(batch, 1024)
    found = model.feed(batch, positions, mask)
    new = np.array([[7], [8]])
    after = model.feed(new, np.array([[400], [280]]))
    for row, (sequence, begin) in enumerate(((long, 0), (short, padding))):
        wanted = reference_logits(checkpoints(family), [*sequence, int(new[row, 0])], YARN)
        assert relative_error(found[row, begin:], wanted[:-1]) <= TOLERANCE["fp32"]
        assert relative_error(after[row], wanted[-1:]) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("kv", FORMS)
def test_sparse_positions_and_those_beyond_the_table(kv, checkpoints, convert):
    """Causality follows the slots, rotation the positions; where there is no row there is no number."""
    import torch
    import transformers

    out = convert(checkpoints("llama"), "--factor", "4", "--kv", kv, "--max-context", "900")
    model = OnnxModel(out)
    positions = np.concatenate([np.arange(40), np.arange(880, 900)])
    found = model.run(tokens(60), positions, capacity=1024)
    config = transformers.AutoConfig.from_pretrained(checkpoints("llama"))
    config.rope_parameters = {"rope_theta": 10000.0, **YARN}
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoints("llama"), config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    mask = torch.triu(torch.full((60, 60), torch.finfo(torch.float32).min), 1)[None, None]
    with torch.no_grad():
        wanted = reference(
            torch.tensor([tokens(60)]), position_ids=torch.tensor(positions[None]), attention_mask=mask
        ).logits[0]
    assert relative_error(found, wanted.numpy()) <= TOLERANCE["fp32"]
    for beyond in (900, 10**6, -1):
        assert np.isnan(model.run(tokens(3), np.array([0, 1, beyond]), capacity=1024)[2]).all()
    assert np.isfinite(model.run(tokens(3), np.array([0, 1, 899]), capacity=1024)).all()


# what the client allocates -> the factor that serves it
BUCKETS = {200: 1.0, 256: 1.0, 257: 2.0, 512: 2.0, 513: 4.0, 1024: 4.0}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_dynamic_yarn_follows_the_buffer(family, checkpoints, convert):
    model = OnnxModel(convert(checkpoints(family), "--factor", "4", "--method", "dynamic-yarn"))
    # long, then short, then long again: nothing is remembered
    for capacity in (1024, 200, 513, 256, 512, 257):
        factor = BUCKETS[capacity]
        spelled = {"rope_type": "default"} if factor == 1 else {**YARN, "factor": factor}
        length = min(capacity, LENGTH) - 5
        wanted = reference_logits(checkpoints(family), tokens(length + 5), spelled)
        model.start(np.array([tokens(length)]), capacity)
        assert relative_error(model.feed(tokens(length), np.arange(length))[0], wanted[:length]) <= 1e-4
        for position in range(length, length + 5):
            found = model.feed([tokens(length + 5)[position]], [position])[0]
            assert relative_error(found, wanted[position : position + 1]) <= 1e-4


def test_short_requests_are_the_original_models(checkpoints, convert):
    """To 2e-6 of the un-extended reference, where static YaRN is 0.3 and more away."""
    directory = checkpoints("qwen3")
    wanted = reference_logits(directory, tokens(200), {"rope_type": "default"})
    dynamic = OnnxModel(convert(directory, "--factor", "4", "--method", "dynamic-yarn"))
    assert relative_error(dynamic.run(tokens(200), capacity=256), wanted) <= 2e-6
    static = OnnxModel(convert(directory, "--factor", "4"))
    assert relative_error(static.run(tokens(200), capacity=256), wanted) > 0.1


def test_dynamic_yarn_in_the_concat_form_follows_an_input(checkpoints, convert):
    directory = checkpoints("llama")
    out = convert(directory, "--factor", "4", "--method", "dynamic-yarn", "--kv", "concat")
    model = OnnxModel(out)
    assert "rope_context" in {i.name for i in model.session.get_overridable_initializers()}
    for context, factor in ((256, 1.0), (300, 2.0), (1024, 4.0), (None, 4.0)):
        spelled = {"rope_type": "default"} if factor == 1 else {**YARN, "factor": factor}
        wanted = reference_logits(directory, tokens(250), spelled)
        more = {} if context is None else {"rope_context": np.array(context)}
        assert relative_error(model.run(tokens(250), **more), wanted) <= TOLERANCE["fp32"]


def test_dynamic_ntk(checkpoints, convert):
    """Bucket b is transformers' dynamic form at length b x original."""
    directory = checkpoints("llama")
    model = OnnxModel(convert(directory, "--factor", "4", "--method", "dynamic-ntk"))
    for capacity, length in ((256, 1.0), (512, 2.0), (1024, 4.0)):
        theta = 10000.0 * (4.0 * length - 3.0) ** (64 / 62)
        wanted = reference_logits(directory, tokens(200), {"rope_type": "default", "rope_theta": theta})
        assert relative_error(model.run(tokens(200), capacity=capacity), wanted) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("case", ["betas", "untruncated", "both"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_llama_cpp_cannot_say_an_onnx_can(family, case, checkpoints, convert):
    from tests.parity.test_llama_cpp import BEYOND_THE_KEYS

    options, spelled = BEYOND_THE_KEYS[case]
    out = convert(checkpoints(family), "--factor", "4", *options)
    wanted = reference_logits(checkpoints(family), tokens(LENGTH), {**YARN, **spelled})
    assert relative_error(OnnxModel(out).run(tokens(LENGTH), capacity=1024), wanted) <= TOLERANCE["fp32"]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 128}),
    ],
    ids=str,
)
def test_structures_within_a_family(family, overrides, convert, tmp_path):
    """Windows too, which llama.cpp's architectures do not read."""
    directory = make_checkpoint(tmp_path / "model", family, **overrides)
    for kv in FORMS:
        found = OnnxModel(convert(directory, "--factor", "4", "--kv", kv)).run(tokens(LENGTH), capacity=1024)
        assert relative_error(found, reference_logits(directory, tokens(LENGTH), YARN)) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_group_query_attention(family, dtype, checkpoints, convert):
    """The dialect for CUDA, on the CPU's kernel: prefilled, then decoded across the boundary."""
    options = ("--factor", "4", "--method", "dynamic-yarn", "--dialect", "ort-cuda", "--dtype", dtype)
    out = convert(checkpoints(family), *options)
    weights = stored_weights(out, checkpoints(family)) if dtype == "int4" else None
    model = OnnxModel(out)
    for capacity, factor in ((1024, 4.0), (256, 1.0)):
        spelled = {"rope_type": "default"} if factor == 1 else {**YARN, "factor": factor}
        length = min(capacity, 400)
        wanted = reference_logits(checkpoints(family), tokens(length), spelled, weights=weights)
        steps = [step for step in (100, 100, 50, *[1] * 6, length - 256) if step]
        assert decoding_error(model, steps, wanted, capacity) <= TOLERANCE[dtype]


def test_group_query_attention_does_not_take_padding_for_text(checkpoints, convert):
    model = OnnxModel(convert(checkpoints("llama"), "--factor", "4", "--dialect", "ort-cuda"))
    batch, mask = np.array([tokens(20), tokens(20)]), np.ones((2, 20), np.int64)
    mask[1, :3] = 0
    model.start(batch, 64)
    found = model.feed(batch, np.maximum(mask.cumsum(axis=1) - 1, 0), mask)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_group_query_attention_with_a_window(convert, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "mistral", sliding_window=64)
    found = OnnxModel(convert(directory, "--factor", "4", "--dialect", "ort-cuda")).run(
        tokens(LENGTH), capacity=1024
    )
    assert relative_error(found, reference_logits(directory, tokens(LENGTH), YARN)) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", ["", "--no-int4-head", "--kv concat"])
def test_fp8(more, family, checkpoints, convert):
    """ONNX Runtime's own reading of the codes, against the dequantised weights."""
    out = convert(checkpoints(family), "--factor", "4", "--dtype", "fp8", *more.split())
    weights = stored_weights(out, checkpoints(family))
    wanted = reference_logits(checkpoints(family), tokens(LENGTH), YARN, weights=weights)
    found = OnnxModel(out).run(tokens(LENGTH), capacity=1024)
    assert relative_error(found, wanted) <= TOLERANCE["int4"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "more", ["", "--int4-embeddings", "--no-int4-head", "--int4-embeddings --no-int4-head"]
)
def test_int4_head_and_embeddings(more, tied, convert, tmp_path):
    """Where a tied head is no longer the embedding it has a matrix of its own."""
    directory = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=tied)
    out = convert(directory, "--factor", "4", "--dtype", "int4", *more.split())
    stored = {
        t.name: t.data_type for t in onnx.load(out / "model.onnx", load_external_data=False).graph.initializer
    }
    assert ("model.embed_tokens.weight.int4" in stored) == ("--int4-embeddings" in more)
    assert (stored.get("lm_head.weight") == onnx.TensorProto.INT4) == ("--no-int4-head" not in more)
    wanted = reference_logits(directory, tokens(LENGTH), YARN, weights=stored_weights(out, directory))
    found = OnnxModel(out).run(tokens(LENGTH), capacity=1024)
    assert relative_error(found, wanted) <= TOLERANCE["int4"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize(("own", "tied"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_linked_weights(own, tied, dtype, convert, tmp_path):
    """The checkpoint's own file in the model's directory, and the same logits as when it is converted."""
    import torch

    shape = {"dtype": getattr(torch, own), "shard": "1MB", "tie_word_embeddings": tied}
    directory = make_checkpoint(tmp_path / "model", "llama", **shape)
    for kv in FORMS:
        written = OnnxModel(convert(directory, "--factor", "4", "--dtype", dtype, "--kv", kv))
        wanted = written.run(tokens(300), capacity=512)
        out = convert(directory, "--factor", "4", "--dtype", dtype, "--kv", kv, "--link-weights")
        shards = sorted(path.name for path in out.glob("*.safetensors"))
        assert shards
        assert all((out / name).samefile(directory / name) for name in shards)
        found = OnnxModel(out).run(tokens(300), capacity=512)
        # MatMul adds up in another order where its right side is turned round
        assert relative_error(found, wanted) <= (5e-3 if dtype == "fp16" else 1e-5)


def test_last_token_only(checkpoints, convert):
    whole = OnnxModel(convert(checkpoints("llama"), "--factor", "4")).run(tokens(50), capacity=64)
    last = OnnxModel(convert(checkpoints("llama"), "--factor", "4", "--last-token-only"))
    np.testing.assert_array_equal(last.run(tokens(50), capacity=64), whole[-1:])


def test_tables_are_the_golden_ones_rounded_once(convert, tmp_path):
    """Yarn-Llama-2's tables, read back from the data file."""
    import json

    from tests.conftest import FIXTURES

    directory = make_checkpoint(
        tmp_path / "model", "llama", head_dim=128, max_position_embeddings=4096, num_hidden_layers=1
    )
    out = convert(directory, "--factor", "16")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(out / "model.onnx").graph.initializer}
    golden = json.loads((FIXTURES / "golden" / "rope_tables.json").read_text())["cases"][
        "yarn-llama-2-7b-64k"
    ]
    inv_freq = np.array(golden["inv_freq"], dtype=np.float64)
    positions = np.array([0, 1, 4095, 4096, 65535])
    angles = positions[:, None] * inv_freq
    factor = float(golden["attention_factor_on_cos_sin"])
    for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        assert stored[name].shape == (65537, 64)
        np.testing.assert_allclose(stored[name][positions], function(angles) * factor, rtol=0, atol=1e-6)
        assert np.isnan(stored[name][-1]).all()


def test_bf16_weights_are_the_checkpoints(convert, tmp_path):
    """No CPU kernels for it: its constants are read back, its graph is the one judged in float32."""
    import torch

    directory = make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16)
    out = convert(directory, "--factor", "4", "--dtype", "bf16")
    onnx.checker.check_model(out / "model.onnx")
    stored = {name: values.astype(np.float32) for name, values in read_tensors(out).items()}
    from safetensors.torch import load_file

    for name, values in load_file(directory / "model.safetensors").items():
        wanted = values.float().numpy()
        matrix = values.ndim == 2 and "embed" not in name
        np.testing.assert_array_equal(stored[name], wanted.T if matrix else wanted)
