"""Every family x method x type in the real llama.cpp against transformers, beyond the original context.

f32: the file as it is. bf16 and q8_0: the reference carries the same rounded weights; llama.cpp also
rounds its activations to multiply with them, so the file as it is stands within that noise only, and a
float32 copy of it (its own metadata, its own weights) shows whether it means the right thing.
"""

import json

import gguf
import numpy as np
import pytest
import torch

from tests.support.llama_runtime import dequantised_copy
from tests.support.models import (
    ORIGINAL_CONTEXT,
    edit_config,
    make_checkpoint,
    reference_logits,
    relative_error,
    sample_tokens,
)
from yarnconv.worker import RuntimeRefused

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}


def ntk_theta(head_dim):
    return 10000.0 * 4.0 ** (head_dim / (head_dim - 2))


# method -> (options, the same in transformers' words given the head size)
METHODS = {
    "none": ([], lambda d: {"rope_type": "default"}),
    "linear": (
        ["--method", "linear", "--factor", "4"],
        lambda d: {"rope_type": "linear", "factor": 4.0},
    ),
    "ntk": (
        ["--method", "ntk", "--factor", "4"],
        lambda d: {"rope_type": "default", "rope_theta": ntk_theta(d)},
    ),
    "ntk-by-parts": (
        ["--method", "ntk-by-parts", "--target-context", "1024"],
        lambda d: {**YARN, "attention_factor": 1.0},
    ),
    "yarn": (["--factor", "4"], lambda d: YARN),
    "yarn-attention-factor": (
        ["--factor", "4", "--attention-factor", "1.3"],
        lambda d: {**YARN, "attention_factor": 1.3},
    ),
}
# Sharp tiny models at positions 256..699, measured over every case here: right 1.0e-6 .. 1.8e-5, without
# the temperature 0.33 .. 0.47 (test_wrong_temperature_is_far_away holds that distance).
F32_TOLERANCE = 1e-4
# As it is, with llama.cpp's own arithmetic on 16- and 8-bit weights: measured 4.7e-3 .. 1.04e-2 and
# 1.7e-2 .. 3.6e-2 over families and methods.
AS_IS_TOLERANCE = {"bf16": 2e-2, "q8_0": 7e-2}
LENGTH = 700
BEYOND = slice(ORIGINAL_CONTEXT, None)


def head_dim_of(family):
    return 32 if family == "mistral" else 64


def tokens():
    return sample_tokens(512, LENGTH)


def rounded_weights(directory, outtype):
    """The checkpoint's matrices as the type stores them, by the gguf package's own arithmetic."""
    from safetensors.numpy import load_file

    kind = gguf.GGMLQuantizationType[outtype.upper()]
    return {
        name: gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).astype(np.float32)
        for name, values in load_file(directory / "model.safetensors").items()
        if values.ndim == 2
    }


def cases():
    """All in f32; in the other types every family by its own method, and every method."""
    for number, family in enumerate(FAMILIES):
        for step, method in enumerate(METHODS):
            for outtype in ("f32", "bf16", "q8_0"):
                default = outtype == "f32" or step % len(FAMILIES) == number
                marks = () if default else pytest.mark.slow
                yield pytest.param(family, method, outtype, marks=marks)


@pytest.mark.parametrize(("family", "method", "outtype"), list(cases()))
def test_parity(family, method, outtype, checkpoints, llama_cpp, yarnconv, tmp_path):
    directory = checkpoints(family)
    options, spelled = METHODS[method]
    path = tmp_path / "model.gguf"
    code, _, stderr = yarnconv("gguf", directory, *options, "--outtype", outtype, "-o", path)
    assert code == 0, stderr
    weights = None if outtype == "f32" else rounded_weights(directory, outtype)
    wanted = reference_logits(
        directory, tokens(), spelled(head_dim_of(family)), weights=weights, select=BEYOND
    )
    as_is = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    if outtype == "f32":
        assert relative_error(as_is, wanted) <= F32_TOLERANCE
        return
    assert relative_error(as_is, wanted) <= AS_IS_TOLERANCE[outtype]
    copy = dequantised_copy(path, tmp_path / "copy.gguf")
    found = llama_cpp.run(copy, tokens(), first=ORIGINAL_CONTEXT)
    assert relative_error(found, wanted) <= F32_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_temperature_is_far_away(family, checkpoints, llama_cpp, yarnconv, tmp_path):
    """What the tolerance is good for: NTK-by-parts instead of YaRN, three orders above it."""
    path = tmp_path / "model.gguf"
    yarnconv("gguf", checkpoints(family), "--method", "ntk-by-parts", "--factor", "4", "-o", path)
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(checkpoints(family), tokens(), YARN, select=BEYOND)
    assert relative_error(found, wanted) > 1000 * F32_TOLERANCE


BEYOND_THE_KEYS = {
    "betas": (["--beta-fast", "16", "--beta-slow", "2"], {"beta_fast": 16.0, "beta_slow": 2.0}),
    "untruncated": (["--no-truncate"], {"truncate": False}),
    "both": (
        ["--no-truncate", "--beta-fast", "20", "--attention-factor", "1.1"],
        {"truncate": False, "beta_fast": 20.0, "attention_factor": 1.1},
    ),
}


@pytest.mark.parametrize("case", BEYOND_THE_KEYS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rope_freqs_where_the_architecture_loads_it(family, case, checkpoints, llama_cpp, yarnconv, tmp_path):
    options, spelled = BEYOND_THE_KEYS[case]
    path = tmp_path / "model.gguf"
    code, stdout, stderr = yarnconv("gguf", checkpoints(family), "--factor", "4", *options, "-o", path)
    assert code == 0, stderr
    assert "rope_freqs" in stdout
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(checkpoints(family), tokens(), {**YARN, **spelled}, select=BEYOND)
    assert relative_error(found, wanted) <= F32_TOLERANCE


@pytest.mark.parametrize("case", BEYOND_THE_KEYS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_refused_where_it_does_not(family, case, checkpoints, yarnconv, tmp_path):
    options, _ = BEYOND_THE_KEYS[case]
    path = tmp_path / "model.gguf"
    code, stdout, stderr = yarnconv("gguf", checkpoints(family), "--factor", "4", *options, "-o", path)
    assert code == 3
    assert f"{family} architecture always uses beta_fast 32" in stderr
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_betas_that_another_original_context_gives(family, checkpoints, llama_cpp, yarnconv, tmp_path):
    """64/2 at 256 rounds to the same range as 32/1 at 128; the file says so in its keys."""
    path = tmp_path / "model.gguf"
    betas = ("--beta-fast", "64", "--beta-slow", "2")
    code, stdout, _ = yarnconv("gguf", checkpoints(family), "--factor", "4", *betas, "-o", path)
    assert code == 0
    assert "original_context_length is written as" in stdout
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(
        checkpoints(family), tokens(), {**YARN, "beta_fast": 64.0, "beta_slow": 2.0}, select=BEYOND
    )
    assert relative_error(found, wanted) <= F32_TOLERANCE


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 10000.0,
}


def test_llama3_own_scaling(llama_cpp, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=1024)
    edit_config(directory, rope_parameters=LLAMA3)
    path = tmp_path / "model.gguf"
    code, stdout, stderr = yarnconv("gguf", directory, "-o", path)
    assert code == 0, stderr
    assert "Not fine-tuned" not in stdout
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(directory, tokens(), LLAMA3, select=BEYOND)
    assert relative_error(found, wanted) <= F32_TOLERANCE


def test_yarn_mistral_profile(llama_cpp, yarnconv, tmp_path):
    """The authors' betas and temperature, which the stock class would leave out."""
    directory = make_checkpoint(tmp_path / "model", "mistral", sliding_window=131072)
    edit_config(
        directory,
        remove=["rope_parameters"],
        rope_theta=10000.0,
        max_position_embeddings=32768,
        rope_scaling={
            "type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 8192,
            "finetuned": True,
        },
    )
    path = tmp_path / "model.gguf"
    code, _, stderr = yarnconv("gguf", directory, "-o", path)
    assert code == 0, stderr
    wanted = reference_logits(
        directory,
        tokens(),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 8192,
            "beta_fast": 128.0,
            "beta_slow": 2.0,
            "attention_factor": 0.07 * np.log(16.0) + 1.0,
        },
    )
    assert relative_error(llama_cpp.run(path, tokens()), wanted) <= F32_TOLERANCE


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"head_dim": 32}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 128}),
    ],
    ids=str,
)
def test_structures_within_a_family(family, overrides, llama_cpp, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", family, shard="1MB", **overrides)
    assert (directory / "model.safetensors.index.json").exists()
    path = tmp_path / "model.gguf"
    code, _, stderr = yarnconv("gguf", directory, "--factor", "4", "-o", path)
    assert code == 0, stderr
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(directory, tokens(), YARN, select=BEYOND)
    assert relative_error(found, wanted) <= F32_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_auto_keeps_the_checkpoints_dtype(dtype, llama_cpp, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "llama", dtype=dtype)
    path = tmp_path / "model.gguf"
    assert yarnconv("gguf", directory, "--factor", "4", "-o", path)[0] == 0
    types = {t.tensor_type.name for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1}
    assert types == {{torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]}
    copy = dequantised_copy(path, tmp_path / "copy.gguf")
    found = llama_cpp.run(copy, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(directory, tokens(), YARN, select=BEYOND)
    assert relative_error(found, wanted) <= F32_TOLERANCE


def test_a_split_model_loads(checkpoints, llama_cpp, yarnconv, tmp_path):
    path = tmp_path / "model.gguf"
    options = ("--factor", "4", "--split-max-size", "1M")
    assert yarnconv("gguf", checkpoints("llama"), *options, "-o", path)[0] == 0
    parts = sorted(p.name for p in tmp_path.iterdir())
    assert len(parts) > 2
    assert parts[0] == f"model-00001-of-{len(parts):05d}.gguf"
    found = llama_cpp.run(tmp_path / parts[0], tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(checkpoints("llama"), tokens(), YARN, select=BEYOND)
    assert relative_error(found, wanted) <= F32_TOLERANCE


def test_a_model_that_independent_jobs_wrote_loads(checkpoints, llama_cpp, yarnconv, tmp_path):
    """Once all of its parts are there, and no sooner."""
    options = ("--factor", "4", "--split-max-size", "1M", "-o", tmp_path / "model.gguf")
    listed = yarnconv("gguf", checkpoints("llama"), *options, "--split-jobs", "list", "--json")[1]
    parts = [part["only_split"] for part in json.loads(listed)["parts"]]
    assert len(parts) > 2
    first = tmp_path / f"model-00001-of-{len(parts):05d}.gguf"
    for part in (parts[1], parts[0], *parts[3:]):
        assert yarnconv("gguf", checkpoints("llama"), *options, "--only-split", part)[0] == 0
    with pytest.raises(RuntimeRefused):
        llama_cpp.run(first, tokens(), first=ORIGINAL_CONTEXT)
    assert yarnconv("gguf", checkpoints("llama"), *options, "--only-split", parts[2])[0] == 0
    found = llama_cpp.run(first, tokens(), first=ORIGINAL_CONTEXT)
    wanted = reference_logits(checkpoints("llama"), tokens(), YARN, select=BEYOND)
    assert relative_error(found, wanted) <= F32_TOLERANCE


def test_a_tied_config_with_a_head_of_its_own(llama_cpp, yarnconv, tmp_path):
    """transformers believes the tensors, not tie_word_embeddings; a mere copy of the embedding is dropped."""
    own = make_checkpoint(tmp_path / "own", "llama")
    edit_config(own, tie_word_embeddings=True)
    path = tmp_path / "own.gguf"
    assert yarnconv("gguf", own, "-o", path)[0] == 0
    assert "output.weight" in {t.name for t in gguf.GGUFReader(path).tensors}
    edit_config(own, tie_word_embeddings=False)
    wanted = reference_logits(own, tokens(), select=BEYOND)
    assert relative_error(llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT), wanted) <= F32_TOLERANCE
    from safetensors.numpy import load_file, save_file

    tensors = load_file(own / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, own / "model.safetensors")
    edit_config(own, tie_word_embeddings=True)
    assert yarnconv("gguf", own, "-o", path)[0] == 0
    assert "output.weight" not in {t.name for t in gguf.GGUFReader(path).tensors}
