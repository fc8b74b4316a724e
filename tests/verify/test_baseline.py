"""A check held against an earlier one: what counts as worse, and what is no baseline."""

import json
from copy import deepcopy

import pytest
from junitparser import JUnitXml

from tests.support.faults import FAULTS
from tests.support.gguf_editing import load
from yarnconv.console.messages import SCHEMA_VERSION
from yarnconv.errors import BadInput
from yarnconv.verify.baseline import KL_FLOOR, RELATIVE_FLOOR, compare_with_baseline, read_baseline


@pytest.fixture(scope="module")
def measured(artefacts, checkpoints, tmp_path_factory):
    """The document of a right artefact's check."""
    from typer.testing import CliRunner

    from yarnconv.cli import app

    path = tmp_path_factory.mktemp("baseline") / "report.json"
    command = ["check", artefacts("llama", "q8_0", "--factor", "4"), "--reference", checkpoints("llama")]
    result = CliRunner().invoke(app, [str(word) for word in (*command, "--output-json", path)])
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text())


@pytest.fixture
def held(measured, tmp_path):
    """Hold an edited document against the measured one: (where, figure) of what got worse, and the rest."""

    def hold(document, margin=1.5, earlier=None):
        path = tmp_path / "earlier.json"
        path.write_text(json.dumps(earlier or measured))
        found = compare_with_baseline(document, read_baseline(path, SCHEMA_VERSION), margin)
        return [(one.where, one.figure) for one in found.regressions], found

    return hold


def test_the_same_figures_are_not_worse(held, measured):
    assert held(measured, margin=1.0)[0] == []


@pytest.mark.parametrize("part", ["structure", "as is"])
@pytest.mark.parametrize(("figure", "floor"), [("relative_max", RELATIVE_FLOOR), ("kl_max", KL_FLOOR)])
def test_a_window_may_be_worse_by_margin_and_floor_and_no_more(part, figure, floor, held, measured):
    document = deepcopy(measured)
    window = (document if part == "structure" else document["as_is"])["windows"][0]
    before = window[figure]
    window[figure] = 2.0 * before + 0.99 * floor
    assert held(document, margin=2.0)[0] == []
    window[figure] = 2.0 * before + 1.01 * floor
    worse, found = held(document, margin=2.0)
    where = f"{part}: {window['name']}, {window['phase']} {window['first']}..{window['last']}"
    assert worse == [(where, figure)]
    assert found.regressions[0].baseline == before
    assert found.regressions[0].found == window[figure]


def test_one_position_may_choose_another_token_and_two_may_not(held, measured):
    document = deepcopy(measured)
    window = document["windows"][0]
    count = window["last"] - window["first"] + 1
    assert window["top1_agreement"] == 1.0
    window["top1_agreement"] = 1.0 - 1.0 / count
    assert held(document)[0] == []
    window["top1_agreement"] = 1.0 - 2.0 / count
    assert [figure for _, figure in held(document)[0]] == ["1 - top1_agreement"]


def test_weights_by_type(held, measured):
    document = deepcopy(measured)
    document["weights"]["types"]["F32"]["relative_max"] = 2e-7
    document["weights"]["types"]["Q8_0"]["relative_max"] *= 1.49
    assert held(document)[0] == [("weights: F32", "relative_max")]


CHANGED = {
    "F32, Q4_K": "weights of type Q8_0 before, Q4_K now",
    "F32": "weights of type Q8_0 before, none now",
    "F32, Q4_K, Q8_0": "weights of type none before, Q4_K now",
}


@pytest.mark.parametrize("types", CHANGED)
@pytest.mark.parametrize("as_is", [True, False])
def test_another_type_is_worse_whether_it_was_run_as_it_is_or_not(types, as_is, held, measured):
    earlier = deepcopy(measured)
    if not as_is:  # as where memory does not hold its reference
        earlier["as_is"]["windows"] = []
    document = deepcopy(earlier)
    found = document["weights"]["types"]
    document["weights"]["types"] = {name: found.get(name, found["Q8_0"]) for name in types.split(", ")}
    worse, comparison = held(document, earlier=earlier)
    assert worse == [(CHANGED[types], "types that differ")]
    (regression,) = comparison.regressions
    assert regression.found > regression.allowed == regression.baseline
    assert comparison.unmatched == ()


def test_weights_that_only_one_of_the_two_compared(held, measured):
    none = deepcopy(measured)
    none["weights"]["types"] = {}
    worse, found = held(none)
    assert worse == [("weights of type F32, Q8_0 before, none now", "types that differ")]
    assert found.regressions[0].found is None
    worse, found = held(measured, earlier=none)
    assert (worse, found.unmatched) == ([], ("weights: not measured in the baseline",))


def test_what_is_not_measured_any_more_is_worse(held, measured):
    document = deepcopy(measured)
    document["as_is"]["windows"] = []
    worse, found = held(document)
    assert worse == [("as is", "windows")]
    assert found.regressions[0].found is None
    assert held(measured, earlier=document)[1].unmatched == ("as is: not measured in the baseline",)


OTHERS = {
    "runtime": lambda d: d["runtime"].update(name="ONNX Runtime"),
    "expected.factor": lambda d: d["expected"].update(factor=8.0),
    "expected.attention_factor": lambda d: d["expected"].update(attention_factor=1.0),
    "expected.beta_fast": lambda d: d["expected"].pop("beta_fast"),
    "expected.more": lambda d: d["expected"].update(more=1),
    "seed": lambda d: d.update(seed=1),
    "layers": lambda d: d.update(layers=3),
    "sample.tokens": lambda d: d["sample"].update(tokens="--text, SHA-256 0"),
    "sample.weights": lambda d: d["sample"].update(weights="all"),
    "sample.reference": lambda d: d["sample"].update(reference="bfloat16 on cuda"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_baseline_of_something_else_says_what_differs(name, held, measured):
    earlier = deepcopy(measured)
    OTHERS[name](earlier)
    with pytest.raises(BadInput, match="measured something else") as refused:
        held(measured, earlier=earlier)
    assert name in refused.value.what


def test_what_differs_in_the_options_shows_before_the_work(measured, yarnconv, artefacts, tmp_path):
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(measured))
    command = ("check", artefacts("llama", "q8_0", "--factor", "4"), "--reference", tmp_path / "none")
    for options in (("--seed", "1"), ("--weights", "none")):
        code, _, stderr = yarnconv(*command, "--baseline", path, *options)
        assert code == 2
        assert "measured something else" in stderr


def test_a_baseline_that_does_not_fit_loses_no_finished_report(
    measured, yarnconv, artefacts, checkpoints, tmp_path
):
    """What only a run shows, such as how many layers were judged: everything is told, and then it fails."""
    earlier = deepcopy(measured)
    earlier["layers"] = 3
    path, places = tmp_path / "earlier.json", [tmp_path / f"new.{kind}" for kind in ("json", "xml", "html")]
    path.write_text(json.dumps(earlier))
    given = ("--reference", checkpoints("llama"), "--baseline", path)
    forms = [
        word for pair in zip(("--output-json", "--junit", "--html"), places, strict=True) for word in pair
    ]
    command = ("check", artefacts("llama", "q8_0", "--factor", "4"), *given)
    code, stdout, stderr = yarnconv(*command, *forms)
    assert (code, "parity holds" in stdout) == (2, True)
    assert "layers is 3, here 2" in stderr
    report = json.loads(places[0].read_text())
    assert (report["parity"], len(report["windows"])) == (True, len(measured["windows"]))
    assert report["baseline"].keys() == {"path", "misfit"}
    assert "layers is 3, here 2" in report["baseline"]["misfit"]
    suite = JUnitXml.fromfile(str(places[1]))
    assert (suite.failures, suite.errors) == (0, 1)
    assert "Parity holds, and the baseline does not fit" in places[2].read_text()
    code, stdout, _ = yarnconv(*command, "--json")
    assert (code, json.loads(stdout)) == (2, report)


def test_other_versions_and_the_last_digit_of_a_logarithm_do_not_matter(held, measured):
    earlier = deepcopy(measured)
    earlier["runtime"]["version"] = "another"
    earlier["expected"]["warnings"] = []
    earlier["expected"]["attention_factor"] *= 1.0 + 2e-16
    assert held(measured, earlier=earlier)[0] == []


def test_other_windows_are_no_baseline(held, measured):
    earlier = deepcopy(measured)
    earlier["windows"][0]["first"] += 1
    with pytest.raises(BadInput, match="other windows"):
        held(measured, earlier=earlier)


SPOILT = {
    "no JSON": lambda d: "{",
    "a list": lambda d: "[]",
    "a plan": lambda d: json.dumps({"schema_version": 1, "method": "yarn"}),
    "another schema": lambda d: json.dumps({**d, "schema_version": 2}),
    "no schema": lambda d: json.dumps({k: v for k, v in d.items() if k != "schema_version"}),
    "an older report": lambda d: json.dumps({k: v for k, v in d.items() if k != "sample"}),
    "windows that are none": lambda d: json.dumps({**d, "windows": [3]}),
    "a window without figures": lambda d: json.dumps({**d, "windows": [{"name": "inside"}]}),
    "a figure that is a word": lambda d: json.dumps(d).replace('"kl_max": ', '"kl_max": "x", "no": '),
    "a figure that is none": lambda d: json.dumps(d).replace('"kl_max": ', '"kl_max": NaN, "no": '),
    "a figure below 0": lambda d: json.dumps(d).replace('"kl_max": ', '"kl_max": -1, "no": '),
    "a seed that is true": lambda d: json.dumps({**d, "seed": True}),
    "nothing that was run": lambda d: json.dumps({**d, "windows": [], "as_is": {"windows": []}}),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_report_is_refused_before_the_work(name, measured, yarnconv, artefacts, tmp_path):
    """Before: the reference is not even looked for."""
    path = tmp_path / "earlier.json"
    path.write_text(SPOILT[name](measured))
    artefact = artefacts("llama", "q8_0", "--factor", "4")
    code, _, stderr = yarnconv("check", artefact, "--reference", tmp_path / "none", "--baseline", path)
    assert code == 2
    assert "earlier.json" in stderr
    assert "Hub" not in stderr


def test_worse_weights_fail_a_check_whose_parity_holds(
    measured, check, yarnconv, artefacts, checkpoints, tmp_path
):
    """Through the command line: the same plan at four bits in place of eight."""
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(measured))
    right = artefacts("llama", "q8_0", "--factor", "4")
    code, report, _ = check(right, checkpoints("llama"), "--baseline", path)
    assert code == 0
    assert report["baseline"] == {"path": str(path), "margin": 1.5, "regressions": [], "unmatched": []}
    coarse = artefacts("llama", "q4_0", "--factor", "4")
    code, report, _ = check(coarse, checkpoints("llama"), "--baseline", path)
    assert code == 1
    assert report["parity"] is True
    types = "weights of type Q8_0 before, Q4_0, Q6_K now"  # Q6_K: its output head
    assert {one["where"].split(":")[0] for one in report["baseline"]["regressions"]} == {types, "as is"}
    code, stdout, _ = yarnconv("check", coarse, "--reference", checkpoints("llama"), "--baseline", path)
    assert code == 1
    assert "parity holds" in stdout
    assert "worse than the baseline" in stdout
    assert "relative_max" in stdout
    assert max(map(len, stdout.splitlines())) <= 80
    _, report, _ = check(coarse, checkpoints("llama"), "--baseline", path, "--margin", "1000")
    # of 1000 times no disagreement at all there still is none, and no margin covers another type
    figures = {one["figure"] for one in report["baseline"]["regressions"]}
    assert figures == {"1 - top1_agreement", "types that differ"}


def test_a_fault_fails_with_a_baseline_as_without(measured, check, artefacts, checkpoints, tmp_path):
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(measured))
    file = load(artefacts("llama", "q8_0", "--factor", "4"))
    FAULTS["temperature dropped"][0](file)
    code, report, _ = check(file.write(tmp_path / "a.gguf"), checkpoints("llama"), "--baseline", path)
    assert code == 1
    assert report["parity"] is False
    assert any(one["where"].startswith("structure") for one in report["baseline"]["regressions"])


@pytest.mark.parametrize("margin", ["1", "nan", "-1", "1e9", "inf"])
def test_a_margin_that_is_none(margin, measured, check, artefacts, checkpoints, tmp_path):
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(measured))
    artefact = artefacts("llama", "q8_0", "--factor", "4")
    assert check(artefact, checkpoints("llama"), "--baseline", path, "--margin", margin)[0] == 2


def test_a_margin_without_a_baseline(check, artefacts, checkpoints):
    code, _, stderr = check(
        artefacts("llama", "q8_0", "--factor", "4"), checkpoints("llama"), "--margin", "2"
    )
    assert code == 2
    assert "Give --baseline" in stderr
