"""`yarnconv check --reference-config`: an artefact judged without the checkpoint it was made from."""

import html
import json
import shutil

import pytest

from tests.support.faults import FAULTS
from tests.support.gguf_editing import load
from tests.support.models import edit_config, make_checkpoint
from tests.support.onnx_faults import Editor, temperature_dropped

YARN = ("--factor", "4")
SO_FAR = (
    "parity holds as far as it can be seen without the checkpoint: that the weights are the model's, and the "
    "rows of q and k in their order, was not judged"
)
WITHOUT_WEIGHTS = {"structure": "holds", "weights": "not_judged", "metadata": "holds"}


@pytest.fixture
def check_config(yarnconv):
    """Run `yarnconv check --reference-config`: (exit code, report, stderr)."""

    def run(path, config, *options):
        code, stdout, stderr = yarnconv("check", path, "--reference-config", config, "--json", *options)
        return code, json.loads(stdout) if stdout else None, stderr

    return run


@pytest.fixture
def config(checkpoints, tmp_path):
    """family -> its config.json, in a directory where there is nothing else."""

    def get(family):
        directory = tmp_path / f"config-{family}"
        directory.mkdir(exist_ok=True)
        return shutil.copy(checkpoints(family) / "config.json", directory)

    return get


@pytest.mark.parametrize(
    ("family", "outtype"), [("llama", "q4_k_m"), pytest.param("qwen2", "f32", marks=pytest.mark.slow)]
)
def test_a_gguf(family, outtype, check_config, config, artefacts, tmp_path):
    path = artefacts(family, outtype, *YARN)
    code, report, stderr = check_config(path, config(family), *YARN)
    assert code == 0, stderr
    assert report["verdicts"] == WITHOUT_WEIGHTS
    assert report["parity"] is True
    assert report["reasons"]["weights"] == "no checkpoint was given to compare with"
    assert report["reference"] == str(config(family))
    assert report["as_is"]["windows"] == []
    assert "all logits finite; not compared, no checkpoint was given" in report["as_is"]["note"]
    file = load(path)
    FAULTS["temperature dropped"][0](file)
    code, report, _ = check_config(file.write(tmp_path / "faulty.gguf"), config(family), *YARN)
    assert code == 1
    assert report["verdicts"] == {"structure": "fails", "weights": "not_judged", "metadata": "fails"}
    assert report["diagnosis"]["label"] == "temperature-missing"


@pytest.mark.parametrize("fault", ["two tensors swapped", "q/k permutation"])
def test_what_only_weights_can_show_is_not_judged_and_said_so(
    fault, check_config, yarnconv, config, artefacts, tmp_path
):
    file = load(artefacts("llama", "f32", *YARN))
    FAULTS[fault][0](file)
    path, page = file.write(tmp_path / "faulty.gguf"), tmp_path / "page.html"
    code, report, _ = check_config(path, config("llama"), *YARN, "--html", page)
    assert (code, report["parity"], report["remark"]) == (0, True, SO_FAR)
    text = page.read_text()
    assert "<h1>Parity holds as far as it can be seen</h1>" in text
    assert html.escape(SO_FAR, quote=False).replace("'", "&#39;") in text
    _, stdout, _ = yarnconv("check", path, "--reference-config", config("llama"), *YARN)
    assert " ".join(stdout.split()).endswith(SO_FAR)
    assert "as asked" not in stdout + text


def test_what_fails_without_a_checkpoint_does_not_hold_so_far(check_config, config, artefacts):
    code, report, _ = check_config(artefacts("llama", "f32", *YARN), config("llama"), "--factor", "2")
    assert (code, report["parity"]) == (1, False)
    assert "holds" not in report["remark"]
    assert "was not judged" in report["remark"]


def test_with_the_checkpoint_nothing_is_left_open(check, artefacts, checkpoints):
    path = artefacts("llama", "f32", *YARN)
    assert check(path, checkpoints("llama"))[1]["remark"] is None
    assert check(path, checkpoints("llama"), "--weights", "none")[1]["remark"] is None


def test_a_missing_tensor_is_missing_still(check_config, config, artefacts, tmp_path):
    file = load(artefacts("llama", "f32", *YARN))
    del file.tensors["blk.1.ffn_up.weight"]
    code, report, _ = check_config(file.write(tmp_path / "missing.gguf"), config("llama"), *YARN)
    assert (code, report["parity"]) == (5, None)
    assert "blk.1.ffn_up.weight is missing" in report["reasons"]["structure"]


@pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.slow), "int4"])
def test_an_onnx_model(dtype, check_config, config, onnx_artefacts, tmp_path):
    path = onnx_artefacts("llama", *YARN, "--dtype", dtype)
    code, report, stderr = check_config(path, config("llama"), *YARN)
    assert code == 0, stderr
    assert (report["verdicts"], report["remark"]) == (WITHOUT_WEIGHTS, SO_FAR)
    editor = Editor(path, tmp_path / "faulty")
    temperature_dropped(editor)
    code, report, _ = check_config(editor.save(), config("llama"), *YARN)
    assert (code, report["diagnosis"]["label"]) == (1, "temperature-missing")


def test_an_extended_checkpoint(check_config, config, checkpoints, yarnconv, tmp_path):
    out = tmp_path / "extended"
    assert yarnconv("hf", checkpoints("llama"), *YARN, "-o", out)[0] == 0
    code, report, stderr = check_config(out, config("llama"), *YARN)
    assert code == 0, stderr
    assert (report["verdicts"], report["remark"]) == (WITHOUT_WEIGHTS, SO_FAR)
    code, report, _ = check_config(out, config("llama"), "--factor", "8")
    assert (code, report["verdicts"]["structure"]) == (1, "fails")


def test_a_tied_head_that_was_written_all_the_same(check_config, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=True)
    path = tmp_path / "model.gguf"
    assert yarnconv("gguf", directory, *YARN, "-o", path)[0] == 0
    file = load(path)
    file.tensors["output.weight"] = file.tensors["token_embd.weight"]
    file.rows["output.weight"] = file.rows["token_embd.weight"].copy()
    twice = file.write(tmp_path / "twice.gguf")
    assert check_config(twice, directory / "config.json", *YARN)[0] == 0


def test_an_engine_that_borrows_its_weights(engines, config, check_config):
    directory, _ = engines("llama", *YARN)
    code, report, stderr = check_config(directory, config("llama"), *YARN)
    assert (code, report) == (2, None)
    assert "borrows its weights from the checkpoint (model.safetensors)" in stderr
    assert "Give the checkpoint with --reference." in " ".join(stderr.split())


def test_exactly_one_reference(artefacts, checkpoints, config, yarnconv):
    path = artefacts("llama", "f32", *YARN)
    code, _, stderr = yarnconv("check", path, *YARN)
    assert code == 2
    assert "neither is given" in stderr
    both = ("--reference", checkpoints("llama"), "--reference-config", config("llama"))
    code, _, stderr = yarnconv("check", path, *YARN, *both)
    assert code == 2
    assert "both are given" in stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--weights", "all"), "--weights all"),
        (("--revision", "main"), "--revision"),
    ],
)
def test_options_without_meaning_are_refused(options, said, check_config, config, artefacts):
    code, _, stderr = check_config(artefacts("llama", "f32", *YARN), config("llama"), *options)
    assert code == 2
    assert said in stderr


def test_configs_that_cannot_be_read(check_config, config, artefacts, checkpoints, tmp_path):
    path = artefacts("llama", "f32", *YARN)
    bad = tmp_path / "config.json"
    for content in ("{", "[]", '{"model_type": "unheard-of"}', '{"model_type": "llama", "hidden_size": 1e9}'):
        bad.write_text(content)
        code, _, stderr = check_config(path, bad, *YARN)
        # a family without a data file is no broken config
        assert code == (3 if "unheard-of" in content else 2)
        assert "Traceback" not in stderr
    assert check_config(path, tmp_path / "missing.json", *YARN)[0] == 2
    assert check_config(path, checkpoints("llama"), *YARN)[0] == 2  # a directory
    edit_config(bad.parent, **json.loads((checkpoints("llama") / "config.json").read_text()))
    code, _, stderr = check_config(path, bad, *YARN, "--output-json", bad)
    assert code == 2
    assert "is no report that yarnconv wrote" in stderr
    assert json.loads(bad.read_text())["model_type"] == "llama"


def test_another_models_config(check_config, config, artefacts):
    code, _, stderr = check_config(artefacts("llama", "f32", *YARN), config("qwen3"), *YARN)
    assert code == 2
    assert "qwen3" in stderr
