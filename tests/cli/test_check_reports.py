"""Where `check` writes its reports, and what it refuses to write over."""

import json
import shlex

import pytest
from junitparser import JUnitXml

FORMS = ("--output-json", "--junit", "--html")


def test_all_forms_at_once_with_the_command_that_makes_them_again(check, artefacts, checkpoints, tmp_path):
    artefact, reference = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    places = [tmp_path / name for name in ("a.json", "a.xml", "a.html")]
    options = [word for pair in zip(FORMS, places, strict=True) for word in pair]
    rope = ("--factor", "4", "--no-truncate", "--method", "yarn", "--seed", "3")
    code, report, _ = check(artefact, reference, *rope, *options)
    assert code == 1  # the artefact truncates
    assert json.loads(places[0].read_text()) == report
    assert report["sample"] == {
        "tokens": "random",
        "weights": "sampled",
        "reference": "float32 on cpu",
    }
    assert JUnitXml.fromfile(str(places[1])).failures > 0
    page = places[2].read_text()
    words = shlex.split(page.partition("<pre>")[2].partition("</pre>")[0])
    assert words[:5] == ["yarnconv", "check", str(artefact), "--reference", str(reference)]
    assert words[5:] == ["--seed", "3", "--method", "yarn", "--factor", "4.0", "--no-truncate"]
    assert check(*map(str, (artefact, reference)), *words[5:])[1] == report
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("option", FORMS)
def test_no_report_destroys_what_was_judged(option, check, artefacts, checkpoints, tmp_path):
    path, directory = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    places = (path, tmp_path / "link", directory / "config.json", directory / "new", tmp_path)
    for place in (*places, tmp_path / "no" / "x"):
        code, _, stderr = check(path, directory, option, place)
        assert code == 2, place
        assert "Traceback" not in stderr
    assert path.read_bytes() == before


def test_a_file_that_is_no_report_is_not_replaced(check, checkpoints, yarnconv, tmp_path):
    """Such as another part of the artefact."""
    options = ("--factor", "4", "--split-max-size", "1M", "-o", tmp_path / "model.gguf")
    assert yarnconv("gguf", checkpoints("llama"), *options)[0] == 0
    first, second, *_ = sorted(tmp_path.iterdir())
    before = second.read_bytes()
    code, _, stderr = check(first, checkpoints("llama"), "--html", second)
    assert code == 2
    assert "is no report" in stderr
    assert second.read_bytes() == before


NO_REPORTS = {
    "genai_config.json": '{"model": {"context_length": 1024}}',
    "plan.json": '{"schema_version": 1, "method": "yarn"}',
    "verdicts.json": '{"verdicts": {"structure": "holds"}, "parity": true}',
    "deep.json": '{"a":' * 100_000,
    "half.json": '{"schema_version": 1, "parity": true, "verdicts": {',
    "network.xml": '<?xml version="1.0"?>\n<net name="Model0" version="11"/>',
    "others.xml": '<testsuites name="pytest tests"/>',
    "page.html": "<!doctype html><html><head><title>yarnconv check</title></head></html>",
    "notes.txt": "yarnconv check",
    "blank": "\n",
}


@pytest.mark.parametrize("option", FORMS)
def test_what_begins_like_a_report_and_is_none_is_not_replaced(option, check, onnx_artefacts, tmp_path):
    """A part of an artefact that is named by its file, before the reference is even looked for."""
    directory = onnx_artefacts("llama", "--factor", "4")
    for name, text in NO_REPORTS.items():
        place = tmp_path / name
        place.write_text(text)
        code, _, stderr = check(directory / "model.onnx", tmp_path / "none", option, place)
        assert (code, place.read_text()) == (2, text)
        assert f"{name}: the file exists and is no report that yarnconv wrote" in " ".join(stderr.split())
    assert len(list(tmp_path.iterdir())) == len(NO_REPORTS)


def test_an_older_report_of_any_form_and_an_empty_file_give_way(check, artefacts, checkpoints, tmp_path):
    path, directory = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    places = [tmp_path / name for name in ("a.json", "a.xml", "a.html")]
    options = [word for pair in zip(FORMS, places, strict=True) for word in pair]
    for place in places:
        place.touch()
    assert check(path, directory, "--factor", "2", *options)[0] == 1
    older = [place.read_bytes() for place in places]
    assert check(path, directory, *options)[0] == 0
    assert all(place.read_bytes() != before for place, before in zip(places, older, strict=True))
    assert "Parity holds" in places[2].read_text()


def test_of_a_dynamic_plan_each_window_has_its_factor(check, onnx_artefacts, checkpoints, tmp_path):
    page, suite = tmp_path / "a.html", tmp_path / "a.xml"
    artefact = onnx_artefacts("llama", "--method", "dynamic-yarn", "--factor", "4")
    code, report, _ = check(artefact, checkpoints("llama"), "--html", page, "--junit", suite)
    assert code == 0
    (cases,) = JUnitXml.fromfile(str(suite))
    names = [case.name for case in cases if case.classname == "yarnconv.window"]
    assert len(set(names)) == len(names) == len(report["windows"])
    assert {name.rpartition("factor ")[2] for name in names} == {"1", "2", "4"}
    text = page.read_text()
    assert ">buckets</dt><dd>1, 2, 4<" in text
    assert text.count(">factor</th>") == 2


def test_two_options_that_name_the_same_file(check, artefacts, checkpoints, tmp_path):
    path, directory = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    place = tmp_path / "report"
    (tmp_path / "there").mkdir()
    for first, second in (("--junit", "--html"), ("--output-json", "--junit")):
        other = tmp_path / "there" / ".." / "report"
        code, _, stderr = check(path, directory, first, place, second, other)
        assert code == 2
        assert f"{first}, {second}: both name the same file" in stderr
    tokens = tmp_path / "tokens"
    tokens.write_text("1 2 3")
    for read in ("--tokens", "--baseline"):
        code, _, stderr = check(path, directory, read, tokens, "--html", tokens)
        assert code == 2
        assert f"{read}, --html: both name the same file" in stderr
    assert tokens.read_text() == "1 2 3"
    assert not place.exists()


def test_a_step_summary_with_a_verdict_of_its_own(check, artefacts, checkpoints, monkeypatch, tmp_path):
    place = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    path = artefacts("llama", "f32", "--factor", "4")
    assert check(path, checkpoints("llama"))[0] == 0
    assert check(path, checkpoints("llama"), "--factor", "2")[0] == 1
    headings = [line for line in place.read_text().splitlines() if line.startswith("###")]
    assert headings == ["### ✅ Parity holds", "### ❌ Parity does not hold"]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    code, _, stderr = check(path, checkpoints("llama"))
    assert code == 0
    assert "no step summary" in stderr


def test_figures_of_other_tokens_are_told_apart(check, artefacts, checkpoints, tmp_path):
    path, directory = artefacts("llama", "f32", "--factor", "4"), checkpoints("llama")
    tokens, earlier = tmp_path / "tokens", tmp_path / "earlier.json"
    tokens.write_text("1 2 3 4")
    assert check(path, directory, "--tokens", tokens, "--output-json", earlier)[0] == 0
    assert check(path, directory, "--tokens", tokens, "--baseline", earlier)[0] == 0
    tokens.write_text("4 3 2 1")
    code, _, stderr = check(path, directory, "--tokens", tokens, "--baseline", earlier)
    assert code == 2
    assert "sample.tokens" in stderr
