"""Pictures of what a RoPE does: frequencies, regimes, temperature, and how far two are apart."""

import base64
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from yarnconv.artifact import staged
from yarnconv.console.marks import FIGURE, is_figure
from yarnconv.console.messages import printable
from yarnconv.errors import BadInput
from yarnconv.rope.tables import Float64Array, Regime, plain_inv_freq
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.templates import render
from yarnconv.verify.components import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".html")
SHOWN_AS_SAME = 1e-3  # a frequency read from an artefact is as exact as its type; no eye sees less than this
LONGEST_NAME = 40
POSITIONS = 200  # drawn along the logarithmic axis
FLOAT32_ROUNDING = 2.0**-24

# Told apart by people who see no red or no green, and in grey by the order of their lightness.
_INKS = ("#c2410c", "#1d4ed8", "#0f766e", "#7e22ce", "#a16207", "#475569")
_SHADES: dict[Regime, str] = {"extrapolated": "#d9efe3", "blended": "#fdf0c8", "interpolated": "#fadcd5"}
_DONE: dict[Regime, str] = {"extrapolated": "kept", "blended": "blended", "interpolated": "divided"}
_TEXT, _QUIET, _GRID = "#1e293b", "#64748b", "#e2e8f0"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": "#cbd5e1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _TEXT,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "yarnconv",  # or the names inside an SVG would be others every time
    "svg.fonttype": "path",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One RoPE to draw. inv_freq, plain_inv_freq: float64[pairs], radians per position, as it is and without
    any scaling. context: positions that it reaches. factor: by which a pair is divided that is divided by
    all of it; None where nobody knows, and the largest division counts.
    """

    name: str
    inv_freq: Float64Array
    plain_inv_freq: Float64Array
    attention_factor: float
    context: int
    factor: float | None = None

    @property
    def kept(self) -> Float64Array:
        """The share of its plain frequency that each pair keeps: float64[pairs], 1 down to 1/factor."""
        return self.inv_freq / self.plain_inv_freq

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """What was done to each pair, as far as an eye can tell."""
        divided = 1.0 / self.kept
        whole = self.factor or float(divided.max())

        def regime(by: float) -> Regime:
            if abs(by - 1.0) <= SHOWN_AS_SAME:
                return "extrapolated"
            return "interpolated" if by >= whole * (1.0 - SHOWN_AS_SAME) else "blended"

        return tuple(regime(float(by)) for by in divided)


def plan_curve(plan: RopePlan, name: str) -> Curve:
    """What a plan makes of the scaled layers, in its largest bucket."""
    longest = plan.main_group.buckets[-1]
    return Curve(
        name=name,
        inv_freq=longest.inv_freq,
        plain_inv_freq=plain_inv_freq(plan.main.theta, plan.main.rotary_dim),
        attention_factor=longest.attention_factor,
        context=plan.target_context,
        factor=longest.factor,
    )


@contextmanager
def _styled() -> Iterator[None]:
    """Our own settings and matplotlib's defaults, whatever the user's are, and theirs again afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast("Any", _STYLE))
        yield


def _drawable(name: str) -> str:
    """A stranger's name as matplotlib can draw it: in glyphs that the font has, and no mathematics."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    line = " ".join(printable(name).split())
    line = line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"
    return "".join(c if font.get_char_index(ord(c)) else "?" for c in line).replace("$", r"\$") or "?"


def _line(index: int, count: int) -> dict[str, Any]:
    """The reference is drawn first and broad, so that what covers it does not hide it."""
    reference = count > 1 and index == count - 1
    width, opacity = (5.0, 0.35) if reference else (2.0, 1.0)
    return {"color": _INKS[index % len(_INKS)], "linewidth": width, "alpha": opacity, "zorder": 3 - reference}


def _frequencies(axes: "Axes", curves: Sequence[Curve], names: Sequence[str], original_context: int) -> None:
    plain = curves[-1].plain_inv_freq
    axes.plot(plain, color=_QUIET, linewidth=1.2, linestyle=(0, (1, 1.6)), label="plain RoPE")
    for index, curve in enumerate(curves):
        axes.plot(curve.inv_freq, label=names[index], **_line(index, len(curves)))
    once = 2.0 * math.pi / original_context
    axes.axhline(once, color=_QUIET, linewidth=0.8)
    where: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "xytext": (0, 4),
        "textcoords": "offset points",
    }
    said = f"one turn in {original_context} positions"
    axes.annotate(said, (0.01, once), color=_QUIET, fontsize=8, **where)
    axes.set(title="Frequencies", xlabel="pair of dimensions", ylabel="radians per position", yscale="log")
    axes.set_xlim(-0.5, max(len(curve.inv_freq) for curve in curves) - 0.5)
    axes.legend(loc="upper right")


def _runs(regimes: Sequence[Regime]) -> Iterator[tuple[int, int, Regime]]:
    """(first, one after the last, regime) of neighbours that are alike."""
    first = 0
    for index in range(1, len(regimes) + 1):
        if index == len(regimes) or regimes[index] != regimes[first]:
            yield first, index, regimes[first]
            first = index


def _shares(axes: "Axes", curves: Sequence[Curve], names: Sequence[str]) -> None:
    shaded = curves[0]
    for first, after, regime in _runs(shaded.regimes):
        axes.axvspan(first - 0.5, after - 0.5, color=_SHADES[regime], linewidth=0, zorder=0)
        if after - first >= 0.12 * len(shaded.kept):
            middle = ((first + after - 1) / 2.0, 1.0)
            words = f"{_DONE[regime]}\n{after - first}"
            place: dict[str, Any] = {
                "xycoords": ("data", "axes fraction"),
                "xytext": (0, -6),
                "textcoords": "offset points",
            }
            axes.annotate(words, middle, ha="center", va="top", color=_TEXT, fontsize=8.5, **place)
    for index, curve in enumerate(curves):
        axes.plot(curve.kept, drawstyle="steps-mid", label=names[index], **_line(index, len(curves)))
    lowest = min(float(curve.kept.min()) for curve in curves)
    highest = max(float(curve.kept.max()) for curve in curves)
    title = "Regimes" if len(curves) == 1 else f"Regimes (shaded: {names[0]})"
    axes.set(title=title, xlabel="pair of dimensions", ylabel="share of the plain frequency", yscale="log")
    axes.set_xlim(-0.5, max(len(curve.inv_freq) for curve in curves) - 0.5)
    axes.set_ylim(lowest / 1.15, highest * (highest / lowest) ** 0.3 * 1.15)
    steps = [1.0 / 2**power for power in range(18) if 1.0 / 2**power >= lowest * 0.99]
    axes.set_yticks(steps, ["1", *(f"1/{2**power}" for power in range(1, len(steps)))])
    axes.minorticks_off()
    axes.grid(visible=False, axis="x")


def _temperature(axes: "Axes", curves: Sequence[Curve], names: Sequence[str]) -> None:
    factors = [curve.attention_factor for curve in curves]
    inks = [_INKS[index % len(_INKS)] for index in range(len(curves))]
    places = np.arange(len(curves))
    axes.barh(places, factors, height=0.5, color=inks, alpha=0.85)
    largest = max(1.0, *factors)
    for place, factor in zip(places, factors, strict=True):
        said = f"{factor:.6g}   (attention logits × {factor**2:.5g})"
        short = factor < 0.6 * largest  # no room in the bar
        beside: dict[str, Any] = {
            "xytext": (8, 0),
            "textcoords": "offset points",
            "va": "center",
            "fontweight": "bold",
        }
        axes.annotate(said, (factor * short, place), color=_TEXT if short else "white", **beside)
    axes.axvline(1.0, color=_TEXT, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", colors=_TEXT, length=0)
    axes.set(title="Temperature", xlabel="attention factor on cos and sin", xlim=(0.0, largest * 1.08))
    axes.set_ylim(len(curves) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _angles(axes: "Axes", found: Curve, reference: Curve, original_context: int) -> None:
    """|position * (inv_freq - reference's)|: of the worst pair and of the median one."""
    axes.set(title="Error of the rotation", xlabel="position", ylabel="radians", xscale="log", yscale="log")
    last = max(found.context, reference.context, 2)
    positions = np.geomspace(1.0, last, POSITIONS)
    rounding = positions * float(reference.inv_freq.max()) * FLOAT32_ROUNDING
    dotted = (0, (1, 1.6))
    axes.plot(positions, rounding, color=_QUIET, linewidth=1.2, linestyle=dotted, label="rounding in float32")
    if found.inv_freq.shape != reference.inv_freq.shape:
        _say(axes, f"{len(found.inv_freq)} pairs against {len(reference.inv_freq)}")
    elif (apart := np.abs(found.inv_freq - reference.inv_freq)).max() == 0.0:
        _say(axes, "the frequencies are the same")
    else:
        axes.plot(positions, positions * apart.max(), color=_INKS[0], label=f"worst pair ({apart.argmax()})")
        if (median := float(np.median(apart))) > 0.0:
            axes.plot(positions, positions * median, color=_INKS[0], linewidth=1.2, label="median pair")
    axes.axhline(math.pi, color=_QUIET, linewidth=0.8)
    under: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "xytext": (0, 4),
        "textcoords": "offset points",
    }
    axes.annotate("half a turn", (0.01, math.pi), color=_QUIET, fontsize=8, **under)
    if 1 < original_context < last:
        axes.axvline(original_context, color=_QUIET, linewidth=0.8)
        beside: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (0, 4),
            "textcoords": "offset points",
        }
        words = "original context"
        axes.annotate(words, (original_context, 1.0), ha="center", color=_QUIET, fontsize=8, **beside)
    axes.set_xlim(1.0, last)
    axes.set_ylim(top=max(axes.get_ylim()[1], 4 * math.pi))
    axes.legend(loc="lower right", frameon=True, facecolor="white", edgecolor="white", framealpha=0.9)


def _say(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.55, words, transform=axes.transAxes, ha="center", color=_TEXT)


def rope_figure(curves: Sequence[Curve], original_context: int) -> "Figure":
    """Frequencies, regimes and temperature of each curve; of two and more also by how many radians the first
    is off the last, which is the reference. The regimes that are shaded are the first one's.
    """
    require("plot", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    compares = len(curves) > 1
    names = [_drawable(curve.name) for curve in curves]
    with _styled():
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14, hspace=0.04, wspace=0.04)
        figure = Figure(figsize=(11.5, 7.8 if compares else 6.2), dpi=150, layout=layout)
        FigureCanvasAgg(figure)
        heights = [1.0, 1.0] if compares else [1.0, 0.34]
        panels = figure.subplot_mosaic("AB\nCD" if compares else "AB\nCC", height_ratios=heights)
        _frequencies(panels["A"], curves, names, original_context)
        _shares(panels["B"], curves, names)
        _temperature(panels["C"], curves, names)
        if compares:
            _angles(panels["D"], curves[0], curves[-1], original_context)
    return figure


def _drawn(figure: "Figure", form: str) -> bytes:
    """The same bytes whenever the same figure is drawn."""
    named = {"svg": {"Date": None, "Creator": FIGURE}, "png": {"Software": FIGURE}}[form]
    drawn = BytesIO()
    with _styled():
        figure.savefig(drawn, format=form, metadata=named)
    return drawn.getvalue()


def write_figure(figure: "Figure", path: Path) -> None:
    """As .png, .svg or .html (one page that needs no other), whole or not at all. Raises BadInput for another
    suffix, and where something else stands that is not replaced.
    """
    check_figure_path(path)
    suffix = path.suffix.lower()
    data = _drawn(figure, "png" if suffix == ".png" else "svg")
    if suffix == ".html":
        picture = base64.b64encode(data).decode("ascii")  # as an image: no part of it can be a script
        data = render("report/figure.html", {"picture": picture, "generator": FIGURE}).encode()
    with staged([path]) as temporary:
        temporary[0].write_bytes(data)


def check_figure_path(path: Path) -> None:
    """Refuse before the work what no picture can be written as, or would take the place of something else."""
    if path.suffix.lower() not in SUFFIXES:
        fix = f"Name it {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        raise BadInput(f"{path.suffix or 'no suffix'!r} is no kind of picture", where=str(path), fix=fix)
    if path.exists() and not path.is_file():
        raise BadInput("is no regular file", where=str(path), fix="Give another name.")
    if path.exists() and not is_figure(path):
        fix = "Move it away, or give another name."
        raise BadInput("the file exists and is no picture that yarnconv drew", where=str(path), fix=fix)
