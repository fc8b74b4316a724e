"""What a check writes for CI: JUnit XML, a page, a step summary. Read by what reads them."""

import os
import re
import stat
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from markdown_it import MarkdownIt
from PIL import Image

from tests.support.browser import browse, needs_browser, photograph
from tests.support.markdown import assert_tidy
from tests.support.reports import HOSTILE, checked, spoilt
from yarnconv.console.figures import Curve
from yarnconv.console.html_report import html_report
from yarnconv.console.junit import junit_xml
from yarnconv.console.rope_drawing import HEIGHT, MOST_PAIRS, WIDTH, rope_drawing
from yarnconv.console.step_summary import MOST_BYTES, TOO_LONG, append_step_summary, step_summary
from yarnconv.errors import BadInput
from yarnconv.verify.baseline import Comparison, Regression
from yarnconv.verify.report import Diagnosis
from yarnconv.verify.verdict import Verdict


@pytest.fixture(scope="module")
def holding(artefacts, checkpoints):
    return checked(artefacts("llama", "q8_0", "--factor", "4"), checkpoints("llama"))


@pytest.fixture(scope="module")
def failing(artefacts, checkpoints):
    return checked(artefacts("llama", "q8_0", "--factor", "4"), checkpoints("llama"), factor=2.0)


WORSE = Comparison(
    path="old.json",
    margin=2.0,
    regressions=(
        Regression(where="as is: inside", figure="kl_max", baseline=1e-3, found=0.5, allowed=2e-3),
        Regression(where="structure", figure="windows", baseline=9.0, found=None, allowed=9.0),
    ),
    unmatched=("weights: not measured in the baseline",),
)


def cases(result):
    """(suite, its cases by group), as a parser that CI systems share reads them."""
    (suite,) = JUnitXml.fromstring(junit_xml(result))
    groups = {}
    for case in suite:
        groups.setdefault(case.classname.removeprefix("yarnconv."), []).append(case)
    kinds = (Failure, Error, Skipped)
    counted = [sum(isinstance(r, kind) for case in suite for r in case.result) for kind in kinds]
    said = [suite.tests, suite.failures, suite.errors, suite.skipped]
    assert said == [sum(map(len, groups.values())), *counted]
    return suite, groups


def test_junit_has_a_case_for_each_verdict_window_and_fact(holding):
    suite, groups = cases(holding)
    assert suite.failures == suite.skipped == suite.errors == 0
    assert [case.name for case in groups["verdict"]] == ["structure", "weights", "metadata"]
    assert len(groups["window"]) == len(holding.report.windows) > 5
    assert [case.name for case in groups["metadata"]] == [key.key for key in holding.report.keys]
    properties = {each.name: each.value for each in suite.properties()}
    assert properties["seed"] == "0"
    assert "transformers" in properties["compared with"]
    said = ElementTree.fromstring(junit_xml(holding)).findtext("testsuite/system-out")
    assert said.count("relative error up to") == len(holding.report.as_is.windows) > 0
    assert "again: yarnconv check a.gguf --reference b" in said


def test_junit_says_what_failed_and_why(failing):
    diagnosis = Diagnosis(label="factor", explanation="It is x4.", distances={"factor": 1e-6, "plain": 0.5})
    result = replace(failing, report=replace(failing.report, diagnosis=diagnosis))
    _, groups = cases(result)
    structure, weights, _ = groups["verdict"]
    assert structure.result[0].message == failing.report.structure.reason
    assert "It is x4." in structure.result[0].text
    assert "0.5  plain" in structure.result[0].text
    assert weights.result == []
    outside = [window for window in failing.report.windows if not window.holds]
    failed = [case.result[0].message for case in groups["window"] if case.result]
    assert len(failed) == len(outside) > 0
    assert f"outside from position {outside[0].first_bad_position}" in failed[0]
    wrong = {key.key: key for key in failing.report.keys if not key.agrees and key.decisive}
    found = {case.name: case.result[0].message for case in groups["metadata"] if case.result}
    assert found["llama.rope.scaling.factor"] == "4, expected 2"
    assert found.keys() == wrong.keys()


def test_junit_skips_what_says_nothing(holding):
    report = holding.report
    blind = [replace(window, blind="nothing shows") for window in report.windows]
    other = [replace(key, agrees=False, decisive=False) for key in report.keys]
    suite, groups = cases(replace(holding, report=replace(report, windows=blind, keys=other)))
    assert suite.failures == suite.errors == 0
    assert {case.result[0].message for case in groups["window"]} == {"nothing shows"}
    assert all("does not compute with it" in case.result[0].message for case in groups["metadata"])


@pytest.mark.parametrize(("waived", "kind"), [(False, Error), (True, Skipped)])
def test_what_could_not_be_judged_is_an_error_unless_it_was_left_out(waived, kind, holding):
    """Or a check that ends with 5 would leave a file that is green."""
    unknown = Verdict(outcome="not_judged", reason="nothing is known of TQ2_0", waived=waived)
    result = replace(holding, report=replace(holding.report, weights=unknown))
    suite, groups = cases(result)
    (found,) = groups["verdict"][1].result
    assert (type(found), found.message) == (kind, "nothing is known of TQ2_0")
    assert (suite.failures, suite.errors, suite.skipped) == (0, not waived, waived)
    assert result.passes is (True if waived else None)


def test_every_report_says_what_got_worse(holding):
    result = replace(holding, comparison=WORSE)
    suite, groups = cases(result)
    assert [case.result[0].message for case in groups["baseline"]] == [
        "0.5, was 0.001, allowed 0.002",
        "not measured, was 9, allowed 9",
    ]
    page, summary = html_report(result).decode(), step_summary(result)
    for text in (page, summary):
        assert "Parity holds, and figures got worse" in text
        assert "not measured" in text
    assert "weights: not measured in the baseline" in page
    assert suite.failures == 2
    (case,) = cases(replace(holding, comparison=replace(WORSE, regressions=())))[1]["baseline"]
    assert case.result == []


def test_every_report_says_that_the_baseline_does_not_fit(holding):
    misfit = BadInput("measured something else: layers is 3, here 2", where="old.json")
    result = replace(holding, misfit=misfit)
    (case,) = cases(result)[1]["baseline"]
    assert (type(case.result[0]), case.result[0].message) == (Error, str(misfit))
    for text in (html_report(result).decode(), step_summary(result)):
        assert "Parity holds, and the baseline does not fit" in text
        assert "layers is 3" in text
    assert result.passes is None
    failed = replace(holding.report, weights=replace(holding.report.weights, outcome="fails"))
    assert replace(result, report=failed).passes is False


def test_strangers_words_stay_words(failing):
    result = spoilt(failing)
    suite, groups = cases(result)
    assert "<script>" in suite.name
    assert len(groups["metadata"]) == 1
    page = html_report(result).decode()
    assert "<script" not in page
    assert "\x1b" not in page + junit_xml(result).decode() + step_summary(result)
    assert "{{ 7 * 7 }}" in page
    assert "and 200 more" in page
    assert len(page) < 300_000


def test_a_summary_is_tidy_markdown_of_the_same_verdicts(holding, failing):
    for result in (holding, failing, replace(failing, comparison=WORSE), spoilt(failing)):
        text = step_summary(result)
        assert_tidy(text)
        html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)
        assert html.count("<h3>") == 1
        assert not re.search(r"<(script|a|img|code)\b", html)
        tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
        windows = next(table for table in tables if "<th>tolerance</th>" in table)
        assert windows.count("<tr>") == 1 + len(result.report.windows)
        outcomes = [verdict.outcome for verdict in result.verdicts.values()]
        assert [word in tables[0] for word in ("✅", "❌")] == ["holds" in outcomes, "fails" in outcomes]


def test_the_summary_is_appended_where_github_says(holding, monkeypatch, tmp_path, capsys):
    place = tmp_path / "summary.md"
    place.write_text("before\n")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    append_step_summary(holding)
    assert place.read_text() == "before\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    append_step_summary(holding)
    assert place.read_text() == "before\n" + step_summary(holding)
    assert capsys.readouterr().err == ""


def test_the_summary_never_makes_more_than_a_mebibyte(holding, monkeypatch, tmp_path):
    place = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    for room in (len(step_summary(holding).encode()) - 1, 700, len(TOO_LONG), 10, 0, -5):
        place.write_bytes(b"x" * (MOST_BYTES - room))
        append_step_summary(holding)
        size = place.stat().st_size
        assert size <= max(MOST_BYTES, MOST_BYTES - room)
        assert (size > MOST_BYTES - room) == (room > len(TOO_LONG.encode()))
        if room > len(TOO_LONG):
            assert place.read_text().endswith(TOO_LONG)


@pytest.mark.parametrize("kind", ["directory", "missing", "fifo", "read-only"])
def test_a_summary_that_cannot_be_written_is_a_warning(kind, holding, monkeypatch, tmp_path, capsys):
    place = tmp_path / "place"
    if kind == "directory":
        place.mkdir()
    elif kind == "missing":
        place = place / "no" / "summary.md"
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.write_text("")
        place.chmod(stat.S_IRUSR)
        if os.access(place, os.W_OK):
            pytest.skip("this user may write to everything")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    append_step_summary(holding)
    assert "no step summary was written" in capsys.readouterr().err


def test_a_page_says_what_the_report_does(failing):
    page = html_report(failing).decode()
    text = re.sub(r"<[^>]+>", " ", page)
    assert "Parity does not hold" in text
    assert failing.report.structure.reason in text
    assert "yarnconv check a.gguf --reference b" in text
    assert "llama.rope.scaling.factor" in text
    assert page.count('<rect class="') == len(failing.report.expected.main_group.buckets[-1].inv_freq)
    rows = re.findall(r'class="bar (\w+)"><i style="width:([\d.]+)%"></i><b style="left:([\d.]+)%"', page)
    assert len(rows) == len(failing.report.windows)
    for (outcome, width, limit), window in zip(rows, failing.report.windows, strict=True):
        assert (outcome == "fails") == (float(width) > float(limit)) == (not window.holds)


def test_a_page_of_logits_that_are_no_numbers(failing):
    worst = [
        replace(window, relative_max=sys.float_info.max, kl_max=sys.float_info.max)
        for window in failing.report.windows
    ]
    page = html_report(replace(failing, report=replace(failing.report, windows=worst))).decode()
    assert page.count("no number") >= len(worst)
    assert "e+308" not in page
    empty = replace(failing.report, windows=[], tensors=[], as_is=replace(failing.report.as_is, windows=[]))
    assert "It was not run" in html_report(replace(failing, report=empty)).decode()


def test_the_picture_of_every_kind_of_plan():
    """As wide and as high as its frame, whatever the method and however many pairs there are."""
    plain = 1e4 ** -np.linspace(0.0, 1.0, 2000)
    kinds = [plain, plain / 16.0, plain * 2.0, plain / np.geomspace(1.0, 65536.0, 2000), plain[:1]]
    for inv_freq in kinds:
        own = plain[: len(inv_freq)]
        curve = Curve(name="", inv_freq=inv_freq, plain_inv_freq=own, attention_factor=1.0, context=9)
        drawing = rope_drawing(curve, 256)
        bars = drawing["shares"]["bars"]
        assert len(bars) == min(len(inv_freq), MOST_PAIRS)
        assert all(0.0 <= bar["y"] < HEIGHT and 0.0 <= bar["x"] < WIDTH for bar in bars)
        assert bars[-1]["title"].startswith(f"pair {len(inv_freq) - 1}:")
        points = [tuple(map(float, point.split(","))) for point in drawing["frequencies"]["scaled"].split()]
        assert all(0.0 <= x <= WIDTH and 0.0 <= y <= HEIGHT for x, y in points)
        assert 1 <= len(drawing["shares"]["ticks"]) <= 6


@needs_browser
def test_the_browser_is_heard(tmp_path):
    """A page that does complain and does fetch: what the next test would see."""
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('heard')</script><img src='http://127.0.0.1:9/a.png'>")
    _, console, addresses = browse(page, tmp_path)
    assert any("heard" in line for line in console)
    assert addresses == ["http://127.0.0.1:9/a.png"]


@needs_browser
def test_a_browser_opens_the_page_without_a_complaint_or_a_request(failing, tmp_path):
    page = tmp_path / "report.html"
    page.write_bytes(html_report(replace(spoilt(failing), comparison=WORSE)))
    document, console, addresses = browse(page, tmp_path)
    assert console == []
    assert addresses == []
    assert "<script" not in document
    assert "<title>Parity does not hold: &lt;script&gt;" in document
    assert document.count("<section") == document.count("</section>") == 8


@needs_browser
def test_the_page_is_light_or_dark_as_the_reader_wants(holding, tmp_path):
    page = tmp_path / "report.html"
    page.write_bytes(html_report(holding))
    light = photograph(page, tmp_path, tmp_path / "light.png")
    dark = photograph(page, tmp_path, tmp_path / "dark.png", "--blink-settings=preferredColorScheme=0")
    corner = [Image.open(picture).convert("L").getpixel((5, 5)) for picture in (light, dark)]
    assert corner[0] > 230
    assert corner[1] < 40


def test_the_hostile_text_is_hostile():
    assert {"<", ">", '"', "'", "&", "\x1b", "\x00", "\ud800", "|", "`", "\n"} <= set(HOSTILE)
