"""A check's figures held against those of an earlier one: parity may hold and they get worse all the same.

Floors: how much worse a figure may be whatever the margin. With one and two threads and four sets of
processor instructions relative_max was seen to move by 4.4e-7; kl_max by 5.2e-11 where it is below 1e-9 and
by less than one per cent above, which any margin covers (`python -m tests.bench.baseline_noise`). The floors
are twenty times that: a tenth of the least tolerance. At one position two logits may tie, so that the
agreement of the largest may lose one. Weights are compared in float64, always with the same result: what
remains is float32's rounding of what was read.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput

RELATIVE_FLOOR = 1e-5
KL_FLOOR = 1e-9
WEIGHTS_FLOOR = 1e-7
DEFAULT_MARGIN = 1.5
LEAST_MARGIN, LARGEST_MARGIN = 1.01, 1e6
SAME = 1e-9  # two numbers of a plan: other logarithms on other machines differ by less
# of rope_facts, what says nothing of the numbers that are expected
_BESIDE_THE_PLAN = ("warnings", "profile", "finetuned")
_PARTS = ("structure", "as is")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """A figure that got worse. where: such as as is: far end, prefill 0..15; or what became of the types of
    the weights. allowed: the most it might be.
    found: None where it was not measured any more.
    """

    where: str
    figure: str
    baseline: float
    found: float | None
    allowed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of it. path: of the earlier report. unmatched: what was measured in one of the two only."""

    path: str
    margin: float
    regressions: tuple[Regression, ...]
    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """value: 0 is best. floor: see above."""

    value: float
    floor: float


_Figures = dict[tuple[str, str, str], _Figure]  # by part (or weights), where within it, and name


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An earlier report. settings: what has to be the same here, by name."""

    path: Path
    settings: Mapping[str, object]
    figures: _Figures


def _refuse(path: Path, what: str) -> BadInput:
    fix = "Give a file that `yarnconv check --output-json` of this version wrote."
    return BadInput(what, where=str(path), fix=fix)


class _Reading:
    """Members of a report from a file, whose every type is checked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def member(self, holder: Mapping[str, Any], name: str, kind: type) -> Any:
        value = holder.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _refuse(self._path, f"is no report of a check: {name} is not there, or of another kind")
        return value

    def number(self, holder: Mapping[str, Any], name: str) -> float:
        value = holder.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value < math.inf:
            raise _refuse(self._path, f"is no report of a check: {name} is no number of 0 or more")
        return float(value)

    def objects(self, holder: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
        for value in self.member(holder, name, list):
            if not isinstance(value, dict):
                raise _refuse(self._path, f"is no report of a check: {name} holds something else")
            yield value

    def settings(self, document: Mapping[str, Any]) -> dict[str, object]:
        """What two reports have to share."""
        expected, sample = (self.member(document, name, dict) for name in ("expected", "sample"))
        return {
            "runtime": self.member(self.member(document, "runtime", dict), "name", str),
            **{name: self.member(document, name, int) for name in ("seed", "layers", "all_layers")},
            **{f"expected.{name}": value for name, value in expected.items() if name not in _BESIDE_THE_PLAN},
            **{f"sample.{name}": value for name, value in sample.items()},
        }

    def figures(self, document: Mapping[str, Any]) -> _Figures:
        """What is compared."""
        as_is = self.member(document, "as_is", dict)
        found: _Figures = {}
        for part, holder in zip(_PARTS, (document, as_is), strict=True):
            for window in self.objects(holder, "windows"):
                found |= self._window(part, window)
        types = self.member(self.member(document, "weights", dict), "types", dict)
        for name in types:
            value = self.number(self.member(types, name, dict), "relative_max")
            found["weights", name, "relative_max"] = _Figure(value=value, floor=WEIGHTS_FLOOR)
        return found

    def _window(self, part: str, window: Mapping[str, Any]) -> _Figures:
        first, last, bucket = (self.member(window, name, int) for name in ("first", "last", "bucket"))
        name, phase = (self.member(window, name, str) for name in ("name", "phase"))
        where = f"{name}, {phase} {first}..{last}" + (f", bucket {bucket}" if bucket else "")
        agreement = self.number(window, "top1_agreement")
        one = 1.5 / max(last - first + 1, 1)  # and not two, whichever way a quotient was rounded
        measured = {
            "relative_max": _Figure(value=self.number(window, "relative_max"), floor=RELATIVE_FLOOR),
            "kl_max": _Figure(value=self.number(window, "kl_max"), floor=KL_FLOOR),
            "1 - top1_agreement": _Figure(value=max(1.0 - agreement, 0.0), floor=one),
        }
        return {(part, where, figure): value for figure, value in measured.items()}


def read_baseline(path: Path, schema_version: int) -> Baseline:
    """An earlier report. Raises BadInput for a file that is none, or none of this schema."""
    document = read_json_object(path)
    if document.get("schema_version") != schema_version:
        raise _refuse(path, f"is no report of schema {schema_version}")
    if document.get("parity") is False:  # of what is wrong nothing is a measure
        raise _refuse(path, "is the report of an artefact whose parity does not hold")
    reading = _Reading(path)
    baseline = Baseline(path=path, settings=reading.settings(document), figures=reading.figures(document))
    if not any(part in _PARTS for part, _, _ in baseline.figures):
        raise _refuse(path, "holds no figures: its artefact was not run")
    return baseline


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=SAME)
    return one == other


def refuse_other_settings(baseline: Baseline, settings: Mapping[str, object]) -> None:
    """Raise BadInput where any of these settings is another in the baseline."""
    differing = [
        f"{name} is {baseline.settings.get(name)!s:.60}, here {value!s:.60}"
        for name, value in settings.items()
        if not _is_same(baseline.settings.get(name), value)
    ]
    if differing:
        raise BadInput(
            f"measured something else: {'; '.join(differing)}",
            where=str(baseline.path),
            fix="Check with the same options, or give the baseline of this artefact.",
        )


def _compare_parts(baseline: Baseline, figures: _Figures) -> tuple[list[Regression], list[str]]:
    """Regressions of parts that were not measured any more, and names of what only one of the two has."""
    gone, unmatched = [], []
    for part in _PARTS:
        before, now = ({where for p, where, _ in each if p == part} for each in (baseline.figures, figures))
        if before and now and before != now:
            raise BadInput(
                f"measured other windows: {', '.join(sorted(before ^ now)[:3])}",
                where=str(baseline.path),
                fix="Make a new baseline with this version and these options.",
            )
        if before and not now:
            count = float(len(before))
            lost = Regression(where=part, figure="windows", baseline=count, found=None, allowed=count)
            gone.append(lost)
        if now and not before:
            unmatched.append(f"{part}: not measured in the baseline")
    return gone, unmatched


def _compare_types(baseline: Baseline, figures: _Figures) -> tuple[list[Regression], list[str]]:
    """The same of the types of the weights: as what they are stored is no matter of more or less."""
    before, now = ({where for p, where, _ in each if p == "weights"} for each in (baseline.figures, figures))
    if now and not before:
        return [], ["weights: not measured in the baseline"]
    if before == now:
        return [], []
    was, are = (", ".join(sorted(types)) or "none" for types in (before - now, now - before))
    changed = Regression(
        where=f"weights of type {was} before, {are} now",
        figure="types that differ",
        baseline=0.0,
        found=float(len(before ^ now)) if now else None,
        allowed=0.0,
    )
    return [changed], []


def compare_with_baseline(document: Mapping[str, Any], baseline: Baseline, margin: float) -> Comparison:
    """Hold a report's document against an earlier one: no figure may be more than margin times what it was,
    plus its floor. Raises BadInput where the two did not measure the same.
    """
    reading = _Reading(baseline.path)
    own = reading.settings(document)
    refuse_other_settings(baseline, {**dict.fromkeys(baseline.settings), **own})
    figures = reading.figures(document)
    regressions, unmatched = _compare_parts(baseline, figures)
    changed, unmeasured = _compare_types(baseline, figures)
    regressions, unmatched = regressions + changed, unmatched + unmeasured
    for (part, where, name), before in baseline.figures.items():
        found = figures.get((part, where, name))
        allowed = margin * before.value + before.floor
        if found is not None and found.value > allowed:
            regressions.append(
                Regression(
                    where=f"{part}: {where}",
                    figure=name,
                    baseline=before.value,
                    found=found.value,
                    allowed=allowed,
                )
            )
    return Comparison(
        path=str(baseline.path), margin=margin, regressions=tuple(regressions), unmatched=tuple(unmatched)
    )
