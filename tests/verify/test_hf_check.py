"""`yarnconv check` of an extended checkpoint: right ones hold, and each way of being wrong is found."""

import json
import shutil

import numpy as np
import pytest

from tests.support.models import edit_config, make_checkpoint
from tests.support.selection import product

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
METHODS = {
    "none": ("--method", "none"),
    "linear": ("--method", "linear", "--factor", "4"),
    "ntk": ("--method", "ntk", "--factor", "4"),
    "dynamic-ntk": ("--method", "dynamic-ntk", "--factor", "4"),
    "ntk-by-parts": ("--method", "ntk-by-parts", "--factor", "4"),
    "yarn": ("--factor", "4"),
    "yarn, everything": (
        *("--factor", "4", "--beta-fast", "16", "--beta-slow", "2"),
        *("--attention-factor", "1.5", "--no-truncate"),
    ),
}
ALL_HOLD = {"structure": "holds", "weights": "holds", "metadata": "holds"}


def edit_rope(directory, *, remove=(), spellings=("rope_scaling", "rope_parameters"), **values):
    """Edit what config.json says of its RoPE, in both spellings unless told otherwise."""
    config = json.loads((directory / "config.json").read_text())
    for spelling in spellings:
        for key in remove:
            config[spelling].pop(key, None)
        config[spelling] |= values
    (directory / "config.json").write_text(json.dumps(config))


def alter_weight(directory, seed=0):
    """One value of one tensor, in a file that is no longer the checkpoint's."""
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    place = len(content) - 4 * np.random.default_rng(seed).integers(1, 1000)
    content[place] ^= 0x01
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(("family", "method"), list(product(FAMILIES, METHODS, meet=[])))
def test_right_ones_hold(check, extend, checkpoints, family, method):
    out = extend(checkpoints(family), *METHODS[method])
    code, report, stderr = check(out, checkpoints(family), *METHODS[method])
    assert code == 0, (stderr, report and report["reasons"])
    assert report["verdicts"] == ALL_HOLD
    # both sides are transformers: 0 where types are static, and 4.3e-6 of a dynamic type's base (measured)
    assert max(window["relative_max"] for window in report["windows"]) < 2e-5
    assert report["runtime"]["name"] == "transformers"


def test_the_record_fills_in_options(check, extend, checkpoints):
    out = extend(checkpoints("llama"), "--method", "ntk-by-parts", "--factor", "4")
    code, report, _ = check(out, checkpoints("llama"))
    assert (code, report["expected_from"]) == (0, "provenance")
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 1
    (out / "yarnconv.json").write_text("{")
    assert check(out, checkpoints("llama"))[0] == 2
    (out / "yarnconv.json").unlink()
    code, report, _ = check(out, checkpoints("llama"))
    assert (code, report["expected_from"]) == (1, "checkpoint")


# what is wrong, the edit, the verdicts that fail
PLAN_FAULTS = {
    "temperature dropped": (lambda d: edit_rope(d, attention_factor=1.0), {"structure", "metadata"}),
    "temperature twice": (lambda d: edit_rope(d, attention_factor=1.2965), {"structure", "metadata"}),
    "other betas": (lambda d: edit_rope(d, beta_fast=16.0, beta_slow=2.0), {"structure", "metadata"}),
    "not truncated": (lambda d: edit_rope(d, truncate=False), {"structure", "metadata"}),
    "another factor": (lambda d: edit_rope(d, factor=3.9), {"structure", "metadata"}),
    "another original context": (
        lambda d: edit_rope(d, original_max_position_embeddings=1024),
        {"structure", "metadata"},
    ),
    "another original context, the same logits": (
        lambda d: edit_rope(d, original_max_position_embeddings=255),
        {"metadata"},
    ),
    "original context left out": (
        lambda d: edit_rope(d, remove=["original_max_position_embeddings"]),
        {"structure", "metadata"},
    ),
    "linear": (
        lambda d: edit_config(
            d,
            rope_scaling={"type": "linear", "factor": 4.0},
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        ),
        {"structure", "metadata"},
    ),
    "plain": (
        lambda d: edit_config(
            d,
            rope_scaling=None,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        {"structure", "metadata"},
    ),
    "theta": (
        lambda d: (edit_config(d, rope_theta=10100.0), edit_rope(d, rope_theta=10100.0)),
        {"structure", "metadata"},
    ),
    "the old spelling alone wrong": (
        lambda d: edit_rope(d, spellings=["rope_scaling"], factor=3.9),
        {"structure", "metadata"},  # transformers 5 prefers it
    ),
    "the old spelling alone missing": (lambda d: edit_config(d, rope_scaling=None), {"metadata"}),
    "the new spelling alone wrong": (
        lambda d: edit_rope(d, spellings=["rope_parameters"], factor=3.9),
        {"metadata"},
    ),
    "context": (lambda d: edit_config(d, max_position_embeddings=256), {"metadata"}),
    "norm": (lambda d: edit_config(d, rms_norm_eps=1e-2), {"structure", "metadata"}),
    "fewer layers": (lambda d: edit_config(d, num_hidden_layers=2), {"metadata"}),
    "an adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), {"metadata"}),
}


@pytest.mark.parametrize("fault", PLAN_FAULTS)
def test_another_plan_is_found(check, extend, checkpoints, fault):
    edit, verdicts = PLAN_FAULTS[fault]
    out = extend(checkpoints("llama"), "--factor", "4")
    edit(out)
    code, report, stderr = check(out, checkpoints("llama"), "--factor", "4")
    assert code == 1, stderr
    assert {name for name, verdict in report["verdicts"].items() if verdict == "fails"} == verdicts


def test_tokenizer_that_cuts_off(check, extend, checkpoints):
    out = extend(checkpoints("llama"), "--factor", "4")
    path = out / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 256}))
    code, report, _ = check(out, checkpoints("llama"), "--factor", "4")
    assert code == 1
    assert "model_max_length is 256, expected 1024" in report["reasons"]["metadata"]
    path.write_text('{"model_max_length": 1%s}' % ("0" * 400))
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 1


def test_a_weight_that_differs(check, extend, checkpoints):
    out = extend(checkpoints("llama"), "--factor", "4")
    alter_weight(out)
    code, report, _ = check(out, checkpoints("llama"), "--factor", "4")
    assert code == 1
    assert report["verdicts"]["weights"] == "fails"
    assert check(out, checkpoints("llama"), "--factor", "4", "--weights", "none")[0] == 0


def test_the_same_bytes_in_another_file(check, extend, checkpoints):
    out = extend(checkpoints("llama"), "--factor", "4")
    path = out / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    for coverage in ("sampled", "all"):
        assert check(out, checkpoints("llama"), "--factor", "4", "--weights", coverage)[0] == 0


def test_other_types_and_other_tensors(check, extend, checkpoints, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    out = extend(checkpoints("llama"), "--factor", "4")
    path = out / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(rounded, path)
    code, report, _ = check(out, checkpoints("llama"), "--factor", "4")
    assert code == 1
    assert "BF16" in report["reasons"]["weights"]
    save_file({**tensors, "model.extra.weight": torch.ones(4)}, path)
    assert "model.extra.weight" in check(out, checkpoints("llama"), "--factor", "4")[1]["reasons"]["weights"]
    first = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, path)
    code, report, _ = check(out, checkpoints("llama"), "--factor", "4")
    assert code == 1
    assert report["verdicts"] == {"structure": "not_judged", "weights": "fails", "metadata": "holds"}


def test_weights_that_transformers_prefers(check, extend, tmp_path):
    """It opens model.safetensors where there is one, whatever the index says."""
    source = make_checkpoint(tmp_path / "source", "llama", shard="1MB")
    out = extend(source, "--factor", "4")
    assert check(out, source, "--factor", "4")[0] == 0
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    shutil.copy(other / "model.safetensors", out)
    code, report, _ = check(out, source, "--factor", "4")
    assert code == 1
    assert "model.safetensors beside" in report["reasons"]["metadata"]


def test_llama3_and_longrope(check, extend, checkpoints, tmp_path):
    scalings = {
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "longrope": {
            "factor": 8.0,
            "short_factor": [1.0 + 0.01 * i for i in range(32)],
            "long_factor": [1.0 + 0.5 * i for i in range(32)],
        },
    }
    for kind, scaling in scalings.items():
        source = shutil.copytree(checkpoints("llama"), tmp_path / kind)
        rope = {"rope_type": kind, "original_max_position_embeddings": 256, **scaling}
        edit_config(source, remove=["rope_parameters"], rope_scaling=rope, max_position_embeddings=2048)
        out = extend(source, name=f"{kind}-extended")
        code, report, _ = check(out, source)
        assert (code, report["verdicts"]) == (0, ALL_HOLD)
        edit_rope(out, factor=4.0, **({"long_factor": [2.0] * 32} if kind == "longrope" else {}))
        code, report, _ = check(out, source)
        assert code == 1
        assert report["verdicts"]["structure"] == report["verdicts"]["metadata"] == "fails"


def test_hostile_configs(check, extend, checkpoints):
    """Nothing but numbers that were checked reaches transformers, and no code."""
    hostile = (
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"num_labels": 10**12},
        {"attn_implementation": "someone/kernels", "_attn_implementation": "someone/kernels"},
    )
    out = extend(checkpoints("llama"), "--factor", "4")
    (out / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    for values in hostile:
        edit_config(out, **values)
        assert check(out, checkpoints("llama"), "--factor", "4")[0] == 0
    assert not (out / "ran").exists()
    edit_config(out, quantization_config={"quant_method": "gptq"})
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 2


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": 3},
        {"rope_scaling": {"type": "magic", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": "four"}},
        {"rope_parameters": [1]},
        {"hidden_size": 10**12},
        {"num_hidden_layers": "three"},
        {"model_type": 7},
        {"model_type": "unheard-of"},
    ],
)
def test_configs_that_cannot_be_read(check, extend, checkpoints, values):
    out = extend(checkpoints("llama"), "--factor", "4")
    edit_config(out, **values)
    code, _, stderr = check(out, checkpoints("llama"), "--factor", "4")
    assert code == (3 if values == {"model_type": "unheard-of"} else 2)
    assert "config.json" in stderr
    assert "Traceback" not in stderr


def test_options_of_other_runtimes(check, extend, checkpoints):
    out = extend(checkpoints("llama"), "--factor", "4")
    for options in (("--max-context", "512"), ("--provider", "cuda")):
        code, _, stderr = check(out, checkpoints("llama"), "--factor", "4", *options)
        assert code == 2
        assert options[0] in stderr


def test_another_models_checkpoint(check, extend, checkpoints):
    out = extend(checkpoints("llama"), "--factor", "4")
    code, report, _ = check(out, checkpoints("qwen3"), "--factor", "4")
    assert code == 1
    assert report["verdicts"]["weights"] == "fails"


def test_text_and_all_layers(check, extend, checkpoints, tmp_path):
    out = extend(checkpoints("qwen2"), "--factor", "4")
    text = tmp_path / "text.txt"
    text.write_text("Some words, and then some more. " * 20)
    options = ("--factor", "4", "--text", text, "--layers", "all")
    code, report, stderr = check(out, checkpoints("qwen2"), *options)
    assert code == 0, stderr
    assert report["layers"] == 3
