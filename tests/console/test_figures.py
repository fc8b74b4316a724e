"""Pictures of a RoPE: what is drawn, in what, and that strangers' names change none of it."""

import io
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.support.browser import browse, needs_browser, photograph
from yarnconv.checkpoint.checkpoint import read_config
from yarnconv.console.figures import Curve, plan_curve, rope_figure, write_figure
from yarnconv.console.regime_bars import RegimeBars
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.tables import regimes
from yarnconv.rope_plan import plan_rope


@pytest.fixture
def planned(checkpoints):
    def plan(name="artefact", **options):
        return plan_curve(plan_rope(read_config(checkpoints("llama")), RopeRequest(**options))[0], name)

    return plan


def titles(figure):
    return [panel.get_title(loc="left").split(" (")[0] for panel in figure.axes]


def panel(figure, title):
    return figure.axes[titles(figure).index(title)]


def words(panel):
    return " ".join(text.get_text() for text in panel.texts)


def test_four_panels_of_two_curves_and_three_of_one(planned):
    one = planned(factor=4.0)
    assert titles(rope_figure([one], 256)) == ["Frequencies", "Regimes", "Temperature"]
    assert titles(rope_figure([one, one], 256))[3] == "Error of the rotation"


def test_what_is_drawn_is_what_was_planned(planned):
    found, reference = planned(factor=2.0), planned("reference", factor=4.0)
    figure = rope_figure([found, reference], 256)
    lines = {line.get_label(): line for line in panel(figure, "Frequencies").lines}
    np.testing.assert_array_equal(lines["artefact"].get_ydata(), found.inv_freq)
    np.testing.assert_array_equal(lines["reference"].get_ydata(), reference.inv_freq)
    np.testing.assert_array_equal(lines["plain RoPE"].get_ydata(), reference.plain_inv_freq)
    bars = [bar.get_width() for bar in panel(figure, "Temperature").patches]
    assert bars == [found.attention_factor, reference.attention_factor]
    apart = abs(found.inv_freq - reference.inv_freq)
    angles = panel(figure, "Error of the rotation")
    (worst,) = [line for line in angles.lines if str(line.get_label()).startswith("worst pair")]
    np.testing.assert_allclose(worst.get_ydata()[-1], 1024 * apart.max(), rtol=1e-12)
    assert f"({apart.argmax()})" in worst.get_label()


@pytest.mark.parametrize("method", ["none", "linear", "ntk", "ntk-by-parts", "yarn", "dynamic-yarn"])
def test_the_regimes_are_the_plans(method, checkpoints, planned):
    options = {"method": method} if method == "none" else {"method": method, "factor": 4.0}
    plan, *_ = plan_rope(read_config(checkpoints("llama")), RopeRequest(**options))
    assert plan_curve(plan, "x").regimes == regimes(plan.main)
    rope_figure([plan_curve(plan, "x")], plan.original_context)


def test_the_same_frequencies_and_another_number_of_pairs_are_said(planned):
    one = planned(factor=4.0)
    assert "the same" in words(panel(rope_figure([one, one], 256), "Error of the rotation"))
    short = Curve(
        name="short",
        inv_freq=one.inv_freq[:-1],
        plain_inv_freq=one.plain_inv_freq[:-1],
        attention_factor=1.0,
        context=9,
    )
    pairs = len(one.inv_freq)
    said = words(panel(rope_figure([short, one], 256), "Error of the rotation"))
    assert f"{pairs - 1} pairs against {pairs}" in said


def test_every_form_is_that_form(planned, tmp_path):
    figure = rope_figure([planned(factor=2.0), planned(factor=4.0)], 256)
    for suffix in (".png", ".svg", ".html"):
        write_figure(figure, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1725, 1170)
        assert len(set(picture.convert("RGB").resize((200, 200)).get_flattened_data())) > 100
    assert "<svg" in (tmp_path / "a.svg").read_text()
    page = (tmp_path / "a.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 1
    assert "://" not in re.sub(r"base64,[^\"]*", "", page)
    assert len(list(tmp_path.iterdir())) == 3


@needs_browser
def test_a_browser_shows_the_picture_of_a_page(planned, tmp_path):
    page = tmp_path / "a.html"
    write_figure(rope_figure([planned(factor=4.0)], 256), page)
    _, console, addresses = browse(page, tmp_path)
    assert console == addresses == []
    seen = Image.open(photograph(page, tmp_path, tmp_path / "seen.png")).convert("RGB")
    colours = {colour for _, colour in seen.getcolors(2**24)}
    assert {(0xD9, 0xEF, 0xE3), (0xC2, 0x41, 0x0C)} <= colours  # a shade and the curve


@pytest.mark.parametrize("form", ["svg", "png"])
def test_drawn_twice_it_is_the_same_file_whatever_the_users_style(form, planned, tmp_path):
    figure = [rope_figure([planned(factor=4.0)], 256)]
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.hashsalt": "mine", "font.size": 20.0}):
        figure.append(rope_figure([planned(factor=4.0)], 256))
        write_figure(figure[1], tmp_path / f"1.{form}")
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    write_figure(figure[0], tmp_path / f"0.{form}")
    assert (tmp_path / f"0.{form}").read_bytes() == (tmp_path / f"1.{form}").read_bytes()


def test_a_strangers_name_is_drawn_as_text(planned, tmp_path):
    """No mathematics, no missing glyph (a warning is an error here), no escape, and no end of it."""
    for name in (r"$\frac{", "日本 \U0001f98a", "a\x1b[31m\n\u202eb", "x" * 5000, "", "-->"):
        curve = planned(name, factor=4.0)
        write_figure(rope_figure([curve, curve], 256), tmp_path / "a.svg")
    labels = [text.get_text() for text in panel(rope_figure([curve], 256), "Temperature").get_yticklabels()]
    assert labels == ["-->"]


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.png.exe"])
def test_another_suffix_is_refused(name, planned, tmp_path):
    with pytest.raises(BadInput, match="no kind of picture"):
        write_figure(rope_figure([planned(factor=4.0)], 256), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named():
    script = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
from yarnconv.console.figures import rope_figure
from yarnconv.errors import MissingComponent
try:
    rope_figure([], 256)
except MissingComponent as error:
    print(error)
assert "matplotlib" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "yarnconv[plot]" in found.stdout


def shown(curves, **options):
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(RegimeBars(curves))
    return console.file.getvalue().splitlines()


def test_bars_read_without_colour(planned):
    found, reference = planned(factor=4.0), planned("reference", factor=8.0)
    cells = {"extrapolated": "█", "blended": "▒", "interpolated": "░"}
    first, second, marks, legend = shown([found, reference])
    assert first.split() == ["artefact", "".join(cells[regime] for regime in found.regimes)]
    assert second.split()[0] == "reference"
    differing = "".join(
        "^" if a != b else " " for a, b in zip(found.inv_freq, reference.inv_freq, strict=True)
    )
    assert marks == f"differs    {differing.rstrip()}"
    assert "kept" in legend
    assert len(shown([found, found])) == 3


def test_bars_fit_80_columns_whatever_there_is_to_show():
    pairs = 1000
    divided = np.linspace(1.0, 4.0, pairs)
    wide = Curve(
        name="\x1b[31m" + "wide " * 40,
        inv_freq=1.0 / divided,
        plain_inv_freq=np.ones(pairs),
        attention_factor=1.0,
        context=9,
    )
    lines = shown([wide, wide])
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert "(a cell: 18 pairs)" in lines[-1]
