"""`yarnconv check` as a command: verdicts, exit codes, what it prints and writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest

from tests.conftest import FIXTURES
from tests.support.faults import FAULTS
from tests.support.gguf_editing import load
from tests.support.models import edit_config, make_checkpoint
from tests.support.processes import start
from tests.support.quantise import quantise
from yarnconv.targets.gguf.file_format import TensorType

SCHEMA = {
    *("schema_version", "parity", "verdicts", "reference", "artifact", "expected_from", "runtime"),
    *("layers", "windows", "as_is", "diagnosis"),
}
WINDOW = {
    *("name", "phase", "bucket", "first", "last", "relative", "max_abs", "mean_abs", "kl_max", "kl_mean"),
    *("top1_agreement", "first_bad_position", "tolerance"),
}


def test_report(check, artefacts, checkpoints, tmp_path):
    out = tmp_path / "report.json"
    path = artefacts("llama", "q8_0", "--factor", "4")
    code, report, _ = check(path, checkpoints("llama"), "--factor", "4", "--output-json", out)
    assert code == 0
    assert json.loads(out.read_text()) == report
    assert report.keys() >= SCHEMA
    assert report["parity"] is True
    assert report["verdicts"] == {"structure": "holds", "weights": "holds", "metadata": "holds"}
    assert report["expected_from"] == "options"
    assert report["expected"]["target_context"] == 1024
    assert report["layers"] == 2
    assert report["runtime"]["name"] == "llama.cpp"
    assert all(window.keys() >= WINDOW for window in report["windows"])
    # inside, at L-1, L and L+1 in both phases, and at the last position of the target context
    reached = {(w["phase"], p) for w in report["windows"] for p in range(w["first"], w["last"] + 1)}
    assert reached >= {(phase, p) for phase in ("prefill", "decode") for p in (255, 256)}
    assert reached >= {("prefill", 257), ("decode", 257), ("prefill", 0), ("decode", 1023)}
    # as it is, q8_0 is off by what its types lose, and that is no verdict
    assert 1e-3 < max(w["relative"] for w in report["as_is"]["windows"]) < 0.1


def test_table(artefacts, checkpoints, yarnconv, tmp_path):
    edit, _ = FAULTS["temperature dropped"]
    file = load(artefacts("llama", "f32", "--factor", "4"))
    edit(file)
    path = file.write(tmp_path / "faulty.gguf")
    code, stdout, _ = yarnconv("check", path, "--reference", checkpoints("llama"))
    assert code == 1
    assert "parity does not hold" in stdout
    assert "attn_factor" in stdout
    assert "what the artefact says it was made with" in " ".join(stdout.split())


def test_provenance_only_fills_in(check, artefacts, checkpoints, tmp_path):
    """Faulty keys under a provenance that was edited to match: the options given decide."""
    path = artefacts("llama", "f32", "--factor", "4", "--method", "ntk-by-parts")
    code, report, _ = check(path, checkpoints("llama"))
    assert (code, report["expected_from"]) == (0, "provenance")
    code, report, _ = check(path, checkpoints("llama"), "--factor", "4")
    assert (code, report["expected_from"]) == (1, "options")
    assert report["verdicts"]["structure"] == "fails"
    file = load(path)
    file.drop("yarnconv.")
    bare = file.write(tmp_path / "bare.gguf")
    code, report, _ = check(bare, checkpoints("llama"))
    assert (code, report["expected_from"]) == (1, "checkpoint")  # which says plain RoPE
    code, report, _ = check(bare, checkpoints("llama"), "--factor", "4", "--method", "ntk-by-parts")
    assert (code, report["expected_from"]) == (0, "options")


@pytest.mark.parametrize(
    "record",
    [
        "{",
        '{"rope_options": 3}',
        '{"rope_options": {"factor": "4"}}',
        '{"rope_options": {"factor": true}}',
        '{"rope_options": {"method": "magic"}}',
        '{"rope_options": {"trust_remote_code": true}}',
    ],
)
def test_unreadable_provenance(record, check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.keys.string("yarnconv.plan", record)
    path = file.write(tmp_path / "edited.gguf")
    code, _, stderr = check(path, checkpoints("llama"))
    assert code == 2
    assert "rope_options" in stderr
    assert check(path, checkpoints("llama"), "--factor", "4")[0] == 0


def test_weights_left_out(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    FAULTS["one block altered"][0](file)
    path = file.write(tmp_path / "faulty.gguf")
    code, report, _ = check(path, checkpoints("llama"), "--weights", "none")
    assert code == 0
    assert report["verdicts"]["weights"] == "not_judged"
    assert check(path, checkpoints("llama"), "--weights", "all")[0] == 1


def test_sampling_sees_every_tensor_and_all_sees_every_row(
    monkeypatch, check, artefacts, checkpoints, tmp_path
):
    from yarnconv.verify import weights

    monkeypatch.setattr(weights, "SAMPLED_VALUES", 2048)  # 8 rows of these
    path = artefacts("llama", "q8_0", "--factor", "4")
    assert check(path, checkpoints("llama"))[1]["weights"]["types"]["Q8_0"]["values"] < 60_000
    file = load(path)
    FAULTS["two tensors swapped"][0](file)
    assert check(file.write(tmp_path / "swapped.gguf"), checkpoints("llama"))[0] == 1
    file = load(path)
    FAULTS["one block altered"][0](file)
    altered = file.write(tmp_path / "altered.gguf")
    assert check(altered, checkpoints("llama"))[0] == 0  # one block in 1152, outside the sample
    assert check(altered, checkpoints("llama"), "--weights", "all")[0] == 1


def test_all_layers(check, artefacts, checkpoints):
    path = artefacts("llama", "q4_k_m", "--factor", "4")
    code, report, _ = check(path, checkpoints("llama"), "--layers", "all")
    assert (code, report["layers"], report["all_layers"]) == (0, 3, 3)
    assert check(path, checkpoints("llama"), "--layers", "1")[1]["layers"] == 1
    assert check(path, checkpoints("llama"), "--layers", "4")[0] == 2
    assert check(path, checkpoints("llama"), "--layers", "none")[0] == 2


def test_text_and_tokens(check, artefacts, checkpoints, tmp_path):
    path, directory = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    text, tokens = tmp_path / "text.txt", tmp_path / "tokens.json"
    text.write_text("the needle in the haystack, 12 times: naïve")
    tokens.write_text("[3, 14, 15, 92, 65, 35]")
    assert check(path, directory, "--text", text)[0] == 0
    assert check(path, directory, "--tokens", tokens)[0] == 0
    different = {json.dumps(check(path, directory, *o)[1]["windows"]) for o in ([], ["--seed", "1"])}
    assert len(different) == 2
    assert check(path, directory, "--text", text, "--tokens", tokens)[0] == 2
    tokens.write_text("512")
    code, _, stderr = check(path, directory, "--tokens", tokens)
    assert code == 2
    assert "512 is not below the vocabulary's 512" in stderr
    tokens.write_text("pickle")
    assert check(path, directory, "--tokens", tokens)[0] == 2
    text.write_text("")
    assert check(path, directory, "--text", text)[0] == 2


def test_a_crash_is_not_a_verdict(check, artefacts, checkpoints, tmp_path):
    """A scaling type that llama.cpp asserts on kills its process."""
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.keys.string("llama.rope.scaling.type", "su")
    code, report, stderr = check(file.write(tmp_path / "crash.gguf"), checkpoints("llama"))
    assert code == 70
    assert report is None
    assert "SIGABRT" in stderr
    assert "GGML_ASSERT" in stderr
    assert "crash.gguf (a float32 copy" in stderr
    assert "Traceback" not in stderr


def test_refused_by_the_runtime(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.drop("llama.attention.layer_norm_rms_epsilon")
    code, report, _ = check(file.write(tmp_path / "refused.gguf"), checkpoints("llama"))
    assert code == 1
    assert report["verdicts"]["structure"] == "fails"
    assert "layer_norm_rms_epsilon" in report["reasons"]["structure"]
    assert report["windows"] == []


def test_a_missing_tensor(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    del file.tensors["blk.1.ffn_up.weight"]
    code, report, _ = check(file.write(tmp_path / "missing.gguf"), checkpoints("llama"))
    assert code == 1
    assert report["verdicts"] == {"structure": "not_judged", "weights": "fails", "metadata": "holds"}


def test_a_surplus_tensor(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("qwen3", "f32", "--factor", "4"))
    name = "blk.0.attn_q.bias"
    file.rows[name] = file.rows["blk.0.attn_norm.weight"]
    file.tensors[name] = file.tensors["blk.0.attn_norm.weight"]
    code, report, _ = check(file.write(tmp_path / "surplus.gguf"), checkpoints("qwen3"))
    assert code == 1
    assert report["verdicts"]["weights"] == "fails"


def test_a_type_of_which_nothing_is_known(check, artefacts, checkpoints, tmp_path):
    path = quantise(artefacts("llama", "f32", "--factor", "4"), tmp_path / "tq2.gguf", "tq2_0")
    code, report, _ = check(path, checkpoints("llama"), "--factor", "4")
    assert code == 5
    assert report["parity"] is None
    assert report["verdicts"] == {"structure": "holds", "weights": "not_judged", "metadata": "holds"}
    assert "TQ2_0" in report["reasons"]["weights"]


def _noise(share):
    return lambda values, generator: values * (1 + share * generator.standard_normal(values.shape))


OTHER_WEIGHTS = {
    ("q8_0", "1 % noise"): _noise(0.01),
    ("q8_0", "1.5 % larger"): lambda values, generator: values * 1.015,
    ("q4_k_m", "5 % noise"): _noise(0.05),
    ("q4_k_m", "5 % larger"): lambda values, generator: values * 1.05,
    ("q6_k", "3 % noise"): _noise(0.03),
    ("iq4_nl", "30 % noise"): _noise(0.30),
}


@pytest.mark.parametrize(("outtype", "change"), OTHER_WEIGHTS)
def test_a_fine_tune_is_not_its_base_model(outtype, change, check, yarnconv, tmp_path):
    """Every matrix a little different, norms and all else alike; quantised, it must not pass as the base."""
    from safetensors.numpy import load_file, save_file

    base = make_checkpoint(tmp_path / "base", "llama", intermediate_size=512)
    tuned = make_checkpoint(tmp_path / "tuned", "llama", intermediate_size=512)
    generator = np.random.default_rng(5)
    tensors = load_file(tuned / "model.safetensors")
    for name, values in tensors.items():
        if values.ndim == 2:
            tensors[name] = OTHER_WEIGHTS[outtype, change](values, generator).astype(np.float32)
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    for directory, wanted in ((base, 0), (tuned, 1)):
        path = tmp_path / "model.gguf"
        assert yarnconv("gguf", directory, "--factor", "4", "-o", path)[0] == 0
        quantised = quantise(path, tmp_path / "quantised.gguf", outtype)
        code, report, _ = check(quantised, base, "--factor", "4")
        assert code == wanted, report["reasons"]
        assert report["verdicts"]["structure"] == "holds"


def test_a_tied_head_that_was_written_all_the_same(check, yarnconv, tmp_path):
    """Some converters write the embedding twice; llama.cpp then computes with the second one."""
    directory = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=True)
    path = tmp_path / "model.gguf"
    assert yarnconv("gguf", directory, "--factor", "4", "--outtype", "q8_0", "-o", path)[0] == 0
    file = load(path)
    file.tensors["output.weight"] = file.tensors["token_embd.weight"]
    file.rows["output.weight"] = file.rows["token_embd.weight"].copy()
    twice = file.write(tmp_path / "twice.gguf")
    code, report, _ = check(twice, directory, "--factor", "4")
    assert code == 0, report["reasons"]
    file.rows["output.weight"] = np.roll(file.rows["output.weight"], 1, axis=0)
    assert check(file.write(twice), directory, "--factor", "4")[0] == 1
    import dataclasses

    short = dataclasses.replace(file.tensors["output.weight"], shape=(10, 256), nbytes=10 * 272)
    file.tensors["output.weight"], file.rows["output.weight"] = short, file.rows["output.weight"][:10]
    code, report, _ = check(file.write(twice), directory, "--factor", "4")
    assert (code, report["verdicts"]["structure"]) == (1, "not_judged")


def test_what_cannot_be_read_does_not_hide_what_fails(check, artefacts, checkpoints, tmp_path):
    """A surplus tensor of integers: no float32 copy, but metadata and weights have their say."""
    import dataclasses

    file = load(artefacts("llama", "f32", "--factor", "4"))
    FAULTS["plain"][0](file)
    norm = file.tensors["blk.0.attn_norm.weight"]
    integers = dataclasses.replace(norm, tensor_type=TensorType.I8, nbytes=256)
    file.tensors["blk.0.extra"], file.rows["blk.0.extra"] = integers, np.zeros((1, 256), np.uint8)
    code, report, _ = check(file.write(tmp_path / "integers.gguf"), checkpoints("llama"), "--factor", "4")
    assert code == 1
    assert report["verdicts"] == {"structure": "not_judged", "weights": "fails", "metadata": "fails"}
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.tensors["rope_freqs.weight"] = dataclasses.replace(integers, shape=(32,), nbytes=32)
    file.rows["rope_freqs.weight"] = np.zeros((1, 32), np.uint8)
    code, report, _ = check(file.write(tmp_path / "freqs.gguf"), checkpoints("llama"), "--factor", "4")
    assert (code, report["verdicts"]["metadata"]) == (5, "not_judged")


@pytest.mark.parametrize(
    "extra",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "flash_attention_2"},
        {"return_dict": False},
        {"id2label": 5},
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"layer_types": ["bogus"] * 3},
        {"fusion_config": {"a": 1}},
        {"transformers_weights": "evil.bin"},
        {"self": 1, "cls": 2},
    ],
    ids=str,
)
def test_a_config_does_not_steer_transformers(extra, check, artefacts, checkpoints, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(checkpoints("llama"), directory)
    edit_config(directory, **extra)
    code, _, stderr = check(artefacts("llama", "f32", "--factor", "4"), directory, "--factor", "4")
    assert code == 0, stderr


def test_windows_that_cannot_tell_are_not_judged(check, artefacts, checkpoints, tmp_path):
    """One token over and over: attention to equal values is the same whatever the rotation."""
    path, tokens = artefacts("llama", "f32", "--factor", "4"), tmp_path / "tokens.txt"
    tokens.write_text("7")
    code, report, _ = check(path, checkpoints("llama"), "--factor", "4", "--tokens", tokens)
    assert code == 5
    assert report["verdicts"]["structure"] == "not_judged"
    assert "no rotation shows" in report["reasons"]["structure"]


def test_positions_at_which_float32_cannot_tell(check, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "llama", sharpness=2.0)
    path = tmp_path / "far.gguf"
    assert yarnconv("gguf", directory, "--factor", "8192", "-o", path)[0] == 0
    code, report, _ = check(path, directory)
    assert code == 5
    assert "rounded angles alone" in report["reasons"]["structure"]


def test_a_vocabulary_that_does_not_load(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.drop("tokenizer.")
    path, text = file.write(tmp_path / "mute.gguf"), tmp_path / "text.txt"
    text.write_text("text")
    code, report, _ = check(path, checkpoints("llama"), "--factor", "4", "--text", text)
    assert (code, report["verdicts"]["structure"]) == (1, "fails")


def test_the_report_does_not_destroy_what_was_judged(check, artefacts, checkpoints, tmp_path):
    path, directory = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    before = path.read_bytes()
    for place in (path, directory / "config.json", directory / "new.json", tmp_path, tmp_path / "no" / "x"):
        assert check(path, directory, "--output-json", place)[0] == 2, place
    assert path.read_bytes() == before


def test_not_a_plan_that_a_gguf_holds(check, artefacts, checkpoints):
    path = artefacts("llama", "f32", "--factor", "4")
    code, _, stderr = check(path, checkpoints("llama"), "--factor", "4", "--method", "dynamic-yarn")
    assert code == 3
    assert "one set of frequencies" in stderr


def test_a_plan_that_the_architecture_cannot_say_fails(check, artefacts, checkpoints):
    """As llama.cpp's converter has it: betas in the config, none in what the runtime reads."""
    path = artefacts("qwen3", "f32", "--factor", "4")
    code, report, _ = check(
        path, checkpoints("qwen3"), "--factor", "4", "--beta-fast", "16", "--beta-slow", "2"
    )
    assert code == 1
    assert report["verdicts"] == {"structure": "fails", "weights": "holds", "metadata": "fails"}


def test_a_split_model(check, checkpoints, yarnconv, tmp_path):
    options = ("--factor", "4", "--split-max-size", "1M", "-o", tmp_path / "model.gguf")
    assert yarnconv("gguf", checkpoints("llama"), *options)[0] == 0
    parts = sorted(tmp_path.iterdir())
    assert check(parts[0], checkpoints("llama"))[0] == 0
    code, _, stderr = check(parts[1], checkpoints("llama"))
    assert code == 2
    assert "Give the first part" in stderr
    parts[1].unlink()
    assert check(parts[0], checkpoints("llama"))[0] == 2


def test_another_models_reference(check, artefacts, checkpoints):
    path = artefacts("qwen2", "f32", "--factor", "4")
    code, _, stderr = check(path, checkpoints("qwen3"))
    assert code == 2
    assert "architecture qwen2" in stderr


def test_missing_extras(artefacts, checkpoints):
    """Exit 4 with the install line, before anything is fetched."""
    script = (
        "import sys; sys.modules['llama_cpp'] = None; sys.argv = ['yarnconv', *sys.argv[1:]];"
        "from yarnconv.cli import main; main()"
    )
    path = artefacts("llama", "f32", "--factor", "4")
    command = [sys.executable, "-c", script, "check", str(path), "--reference", str(checkpoints("llama"))]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 4
    assert 'pip install "yarnconv[check,llama]"' in found.stderr
    assert found.stdout == ""


def test_nothing_is_left_behind(check, artefacts, checkpoints, monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert check(artefacts("llama", "f32", "--factor", "4"), checkpoints("llama"))[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_leaves_nothing_behind(number, artefacts, checkpoints, tmp_path):
    """Neither a copy on the disk nor a llama.cpp that goes on."""
    path = artefacts("llama", "f32", "--factor", "4")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = start("check", path, "--reference", checkpoints("llama"), env=environment)
    while not any(tmp_path.glob("yarnconv-check-*/copy.gguf")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before_writing(check, artefacts, checkpoints, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, stderr = check(artefacts("llama", "f32", "--factor", "4"), checkpoints("llama"))
    assert code == 2
    assert "TMPDIR" in stderr


def test_a_checkpoints_own_scaling(check, checkpoints, yarnconv, tmp_path):
    """The Yarn-Mistral profile and an own YaRN, with no option on either side."""
    directory = make_checkpoint(tmp_path / "model", "mistral", sliding_window=131072)
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192, "finetuned": True}
    edit_config(directory, remove=["rope_parameters"], rope_theta=1e4, rope_scaling=scaling)
    edit_config(directory, max_position_embeddings=32768)
    path = tmp_path / "model.gguf"
    assert yarnconv("gguf", directory, "-o", path)[0] == 0
    code, report, _ = check(path, directory)
    assert (code, report["expected_from"]) == (0, "provenance")
    assert report["expected"]["profile"] == "yarn-mistral"
    assert max(window["last"] for window in report["windows"]) == 131071
    code, report, _ = check(path, directory, "--no-profile")
    assert code == 1
    assert report["verdicts"]["structure"] == "fails"


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="would reach for the network")
def test_reference_is_neither_directory_nor_on_the_hub(check, artefacts):
    code, _, stderr = check(artefacts("llama", "f32", "--factor", "4"), "nobody/nothing")
    assert code == 2
    assert "Hub" in stderr


def test_fixture_checkpoint(yarnconv, tmp_path):
    path = tmp_path / "tiny.gguf"
    assert yarnconv("gguf", FIXTURES / "tiny-llama", "--factor", "16", "-o", path)[0] == 0
    assert yarnconv("check", path, "--reference", FIXTURES / "tiny-llama", "--factor", "16")[0] == 0


def test_float_copy_is_what_the_gguf_package_makes(artefacts, tmp_path):
    """Our copy against one made without our code, tensor by tensor."""
    from tests.support.llama_runtime import dequantised_copy
    from yarnconv.targets.gguf.float_copy import Kept, write_float_copy
    from yarnconv.targets.gguf.reader import open_gguf

    path = artefacts("llama", "q4_k_m", "--factor", "4")
    dequantised_copy(path, tmp_path / "theirs.gguf")
    kept = np.array([0, 3, 511])
    with open_gguf(path) as artefact:
        own = Kept(layers=2, vocabulary=kept)
        write_float_copy(artefact, tmp_path / "ours.gguf", own, lambda done: None)
    ours = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "ours.gguf").tensors}
    theirs = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    assert ours.keys() == {name for name in theirs if not name.startswith("blk.2.")}
    for name, values in ours.items():
        wanted = theirs[name]
        np.testing.assert_array_equal(
            values, wanted[kept] if name in ("token_embd.weight", "output.weight") else wanted
        )
