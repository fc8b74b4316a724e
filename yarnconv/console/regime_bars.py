"""What was done to every pair's frequency, as rows of cells for a terminal."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from yarnconv.console.figures import SHOWN_AS_SAME, Curve
from yarnconv.console.messages import printable
from yarnconv.rope.tables import Regime

# Colour and density both say the regime, so that the rows read without colour too.
_CELLS: dict[Regime, tuple[str, str, str]] = {
    "extrapolated": ("█", "#", "green"),
    "blended": ("▒", "+", "yellow"),
    "interpolated": ("░", ".", "red"),
}
_WORDS: dict[Regime, str] = {"extrapolated": "kept", "blended": "blended", "interpolated": "divided"}
_DIFFERS = "^"
LONGEST_NAME = 20
WIDEST = 80


def _shorten(name: str) -> str:
    line = " ".join(printable(name).split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 3]}..."


def _cell(regimes: Sequence[Regime]) -> Regime:
    """Of several pairs that share a cell: what all are, else something between."""
    return regimes[0] if len(set(regimes)) == 1 else "blended"


class RegimeBars:
    """A Rich renderable: a row for each curve, the artefact's first, and of two curves a row that marks the
    pairs whose frequencies differ.
    """

    def __init__(self, curves: Sequence[Curve]) -> None:
        self._curves = curves

    def _differing(self) -> list[bool]:
        """Of each pair, whether the first curve's frequency is another than the last one's."""
        found, reference = self._curves[0].inv_freq, self._curves[-1].inv_freq
        shared = min(len(found), len(reference))
        same = abs(found[:shared] / reference[:shared] - 1.0) <= SHOWN_AS_SAME
        return [*(~same).tolist(), *[True] * (max(len(found), len(reference)) - shared)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [_shorten(curve.name) for curve in self._curves]
        margin = max(map(len, names)) + 2
        pairs = max(len(curve.inv_freq) for curve in self._curves)
        room = max(min(options.max_width, WIDEST) - margin, 8)
        together = -(-pairs // room)
        starts = range(0, pairs, together)
        for name, curve in zip(names, self._curves, strict=True):
            yield Segment(name.ljust(margin), Style(bold=True))
            regimes = curve.regimes
            for start in (start for start in starts if start < len(regimes)):
                yield self._drawn(_cell(regimes[start : start + together]), options)
            yield Segment.line()
        if len(self._curves) > 1 and any(differing := self._differing()):
            marks = (_DIFFERS if any(differing[start : start + together]) else " " for start in starts)
            yield Segment("differs".ljust(margin)[:margin], Style(dim=True))
            yield Segment("".join(marks).rstrip())
            yield Segment.line()
        yield Segment(" " * margin)
        for regime, word in _WORDS.items():
            yield self._drawn(regime, options)
            yield Segment(f" {word}   ", Style(dim=True))
        each = "one pair" if together == 1 else f"{together} pairs"
        yield Segment(f"(a cell: {each})", Style(dim=True))
        yield Segment.line()

    @staticmethod
    def _drawn(regime: Regime, options: ConsoleOptions) -> Segment:
        dense, plain, colour = _CELLS[regime]
        return Segment(plain if options.ascii_only else dense, Style(color=colour))
