"""The command inspect beside what it reads: pictures, exit codes, and what is no artefact."""

import json
from pathlib import Path

import pytest

from tests.support.broken import FACTOR, GGUF_EDITS, edited_gguf
from yarnconv.targets.inspection.findings import CODES

README = Path(__file__).parents[2] / "README.md"


def test_every_code_stands_in_the_readme():
    from yarnconv.verify.hypotheses import REMEDIES

    text = README.read_text()
    assert [code for code in CODES | REMEDIES if f"`{code}`" not in text] == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_a_picture(suffix, artefacts, checkpoints, yarnconv, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"rope{suffix}"
    arguments = (artefacts("llama", "f32", *FACTOR), "--reference", checkpoints("llama"), "--plot", path)
    assert yarnconv("inspect", *arguments)[0] == 0
    beginning = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}[suffix]
    assert path.read_bytes().lower().startswith(beginning.lower())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_only_a_picture_that_was_drawn_here_is_replaced(suffix, artefacts, yarnconv, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"mine{suffix}"
    command = ("inspect", artefacts("llama", "f32", *FACTOR), "--plot", path)
    others = {
        ".png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR, another's",
        ".svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><title>mine</title></svg>',
        ".html": b'<!doctype html><html><head><meta name="generator" content="another"></head></html>',
    }
    for data in (*others.values(), b"yarnconv inspect", b"{}"):
        path.write_bytes(data)
        code, stdout, stderr = yarnconv(*command)
        assert (code, stdout, path.read_bytes()) == (2, "", data)
        assert "is no picture that yarnconv drew" in " ".join(stderr.split())
    path.write_bytes(b"")
    assert yarnconv(*command)[0] == 0
    drawn = path.read_bytes()
    assert yarnconv(*command)[0] == 0
    assert path.read_bytes() == drawn
    path.unlink()
    path.mkdir()
    code, _, stderr = yarnconv(*command)
    assert (code, "is no regular file" in stderr) == (2, True)


def test_a_picture_of_what_has_no_name(artefacts, yarnconv, tmp_path):
    """Numbers can be drawn all the same; where there are none, nothing is written."""
    from tests.support.gguf_editing import load

    pytest.importorskip("matplotlib")
    file = load(artefacts("llama", "f32", *FACTOR, "--no-truncate"))
    file.drop("yarnconv.")
    divisors = file.rows["rope_freqs.weight"].view("<f4")
    divisors[0, 5] *= 1.5
    path = tmp_path / "rope.png"
    assert yarnconv("inspect", file.write(tmp_path / "unnamed.gguf"), "--plot", path)[0] == 0
    assert path.exists()
    path.unlink()
    divisors[0, 5] = 0.0
    code, _, stderr = yarnconv("inspect", file.write(tmp_path / "none.gguf"), "--plot", path)
    assert (code, path.exists(), "nothing to draw" in stderr) == (2, False, True)


@pytest.mark.parametrize(
    ("name", "said"), [("rope.gif", "no kind of picture"), ("none/rope.png", "no such directory")]
)
def test_a_place_for_no_picture(name, said, artefacts, yarnconv, tmp_path):
    code, stdout, stderr = yarnconv("inspect", artefacts("llama", "f32"), "--plot", tmp_path / name)
    assert (code, stdout, said in stderr) == (2, "", True)


def test_from_which_severity_on_it_fails(artefacts, yarnconv, tmp_path):
    """note < warning < error; an error is what fails unless something else is asked for."""
    right = artefacts("llama", "q8_0", *FACTOR)
    edits = {"warning": "keys that are never read", "error": "betas in keys that are never read"}
    paths = {"note": right}  # of the shift of its cache
    for severity, kind in edits.items():
        paths[severity] = edited_gguf(right, GGUF_EDITS[kind].edit, tmp_path / f"{severity}.gguf")
    for worst, failing in (("note", set()), ("warning", {"warning"}), ("error", {"error", "warning"})):
        for fail_on in ("error", "warning", "never"):
            code = yarnconv("inspect", paths[worst], "--fail-on", fail_on)[0]
            assert code == (1 if fail_on in failing else 0), (worst, fail_on)
    assert yarnconv("inspect", paths["error"])[0] == 1
    assert yarnconv("inspect", paths["error"], "--fail-on", "strange")[0] == 2


def test_a_reference_that_is_a_config_alone(artefacts, checkpoints, yarnconv):
    config = checkpoints("llama") / "config.json"
    code, stdout, _ = yarnconv("inspect", artefacts("llama", "f32", *FACTOR), "--reference", config, "--json")
    assert (code, json.loads(stdout)["claims"][-1]["source"]) == (0, "the reference (as recorded)")
    assert yarnconv("inspect", artefacts("llama", "f32"), "--reference", config.parent / "none.json")[0] == 2


def test_names_from_strangers_obey_nobody(artefacts, yarnconv, tmp_path):
    """A key that would clear the screen is shown as what it is."""
    from tests.support.gguf_editing import load

    file = load(artefacts("llama", "f32", *FACTOR))
    file.keys.float32("llama.rope.\x1b[2J", 1.0)
    path = file.write(tmp_path / "strange.gguf")
    code, stdout, _ = yarnconv("inspect", path)
    assert (code, "\x1b" in stdout, "\\x1b[2J" in stdout) == (0, False, True)


def test_what_an_artefact_records_does_not_overrule_its_reference(
    artefacts, checkpoints, inspect, yarnconv, tmp_path
):
    """It fills in options where the checkpoint is plain, and is called what it is; a scaling of the
    checkpoint's own is held against."""
    out = tmp_path / "extended"
    assert yarnconv("hf", checkpoints("llama"), *FACTOR, "-o", out)[0] == 0
    path = artefacts("llama", "f32", "--factor", "2")
    code, document, severe = inspect(path, "--reference", out)
    assert (code, severe[0]) == (1, "wrong-factor")
    code, document, _ = inspect(path, "--reference", checkpoints("llama"))
    assert (code, document["claims"][-1]["source"]) == (0, "the reference (as recorded)")


def test_a_reference_that_is_an_artefact(artefacts, yarnconv):
    path = artefacts("llama", "f32", *FACTOR)
    code, _, stderr = yarnconv("inspect", path, "--reference", path)
    assert (code, "neither a checkpoint nor a config.json" in stderr) == (2, True)
