"""A check as one HTML page that needs no other: values of the template `report/check.html`.

Names and values come from strangers: the template escapes all of them, and a policy in the page allows
neither scripts nor requests.
"""

import math
from collections.abc import Sequence
from typing import Any

from yarnconv import __version__
from yarnconv.console.baseline_view import figure_text
from yarnconv.console.check_view import expectation_source
from yarnconv.console.figures import plan_curve
from yarnconv.console.marks import REPORT
from yarnconv.console.messages import printable
from yarnconv.console.rope_drawing import rope_drawing
from yarnconv.rope.scaling import method_name
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.templates import render
from yarnconv.verify.compare import Window
from yarnconv.verify.report import BEYOND_ALL, Diagnosis, weights_by_type
from yarnconv.verify.result import CheckResult

LONGEST_TEXT = 400  # shown of one value
MOST_PROBLEMS = 100
HEADLINES = {True: "Parity holds", False: "Parity does not hold", None: "Parity could not be judged"}


def shown(text: object) -> str:
    """A stranger's text, without control characters and not for ever."""
    whole = printable(str(text))
    return whole if len(whole) <= LONGEST_TEXT else f"{whole[:LONGEST_TEXT]}… ({len(whole)} characters)"


def headline(result: CheckResult) -> str:
    """What came of it, in a few words."""
    if result.report.parity is True and result.regressed:
        return "Parity holds, and figures got worse"
    if result.report.parity is True and result.misfit is not None:
        return "Parity holds, and the baseline does not fit"
    if result.report.parity is True and result.report.remark:
        return "Parity holds as far as it can be seen"
    return HEADLINES[result.report.parity]


class _Scale:
    """A logarithmic axis in whole decades about the values that are not 0."""

    def __init__(self, values: Sequence[float]) -> None:
        logs = [math.log10(value) for value in values if 0.0 < value < BEYOND_ALL]
        self.low = math.floor(min(logs, default=-6.0))
        self.high = max(math.ceil(max(logs, default=0.0)), self.low + 1)

    def percent(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 100."""
        if value <= 0.0:
            return 0.0
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return round(100.0 * min(max(part, 0.0), 1.0), 2)

    @property
    def ticks(self) -> list[dict[str, Any]]:
        """The ends and whole decades between them."""
        step = -(-(self.high - self.low) // 5)
        decades = range(self.low, self.high + 1, step)
        return [{"power": power, "at": self.percent(10.0**power)} for power in decades]


def _number(value: float) -> str:
    return "no number" if value >= BEYOND_ALL else f"{value:.1e}"


def _window_rows(windows: Sequence[Window], scale: _Scale, factors: Sequence[float], *, judged: bool) -> Any:
    return [
        {
            "name": window.name,
            "phase": window.phase,
            "factor": f"{factors[window.bucket]:g}",
            "first": window.first,
            "last": window.last,
            "error": _number(window.relative_max),
            "bar": scale.percent(window.relative_max),
            "tolerance": _number(window.tolerance) if judged else None,
            "limit": scale.percent(window.tolerance) if judged else None,
            "kl": _number(window.kl_max),
            "top1": f"{100.0 * window.top1_agreement:.0f} %",
            "outcome": "not_judged" if window.blind or not judged else "holds" if window.holds else "fails",
            "remark": window.blind or ("" if window.holds else f"at {window.first_bad_position}"),
        }
        for window in windows
    ]


def _windows(result: CheckResult) -> dict[str, Any]:
    report = result.report
    factors = [tables.factor for tables in report.expected.main_group.buckets]
    every = [*report.windows, *report.as_is.windows]
    scale = _Scale([w.relative_max for w in every] + [w.tolerance for w in report.windows])
    return {
        "ticks": scale.ticks,
        "with_factor": len(factors) > 1,
        "structure": _window_rows(report.windows, scale, factors, judged=True),
        "as_is": _window_rows(report.as_is.windows, scale, factors, judged=False),
    }


def _expected(plan: RopePlan) -> list[tuple[str, str]]:
    """What was expected, as names and values."""
    longest, scaling = plan.main_group.buckets[-1], plan.main
    rows = [
        ("method", f"{method_name(scaling)}, factor {longest.factor:g}"),
        ("context", f"{plan.original_context} → {plan.target_context} positions"),
        ("rope", f"theta {scaling.theta:g}, {scaling.rotary_dim} of {plan.head_dim} dimensions rotate"),
        ("attention factor", f"{longest.attention_factor:.6g} on cos and sin"),
    ]
    if longest.softmax_multiplier != 1.0:
        rows.append(("softmax scale", f"× {longest.softmax_multiplier:.6g}"))
    if len(plan.main_group.buckets) > 1:
        rows.append(("buckets", ", ".join(f"{tables.factor:g}" for tables in plan.main_group.buckets)))
    if len(plan.groups) > 1:
        parts = [(len(g.layers), method_name(g.scaling) if g.scaling else "no RoPE") for g in plan.groups]
        rows.append(("layers", ", ".join(f"{count} {name}" for count, name in parts)))
    return rows


def _diagnosis(diagnosis: Diagnosis | None) -> dict[str, Any] | None:
    if diagnosis is None:
        return None
    scale = _Scale(list(diagnosis.distances.values()))
    distances = [
        {
            "name": shown(name),
            "text": _number(value),
            "bar": scale.percent(value),
            "best": name == diagnosis.label,
        }
        for name, value in diagnosis.distances.items()
    ]
    label, explanation = shown(diagnosis.label or "none"), shown(diagnosis.explanation)
    return {"label": label, "explanation": explanation, "distances": distances}


def _weights(result: CheckResult) -> dict[str, Any]:
    types = weights_by_type(result.report.tensors)
    problems = [tensor for tensor in result.report.tensors if tensor.problem is not None]
    return {
        "types": [
            {**entry, "name": shown(name), "relative_max": f"{entry['relative_max']:.2g}"}
            for name, entry in types.items()
        ],
        "problems": [
            {"tensor": shown(one.name), "type": shown(one.stored_as), "problem": shown(one.problem)}
            for one in problems[:MOST_PROBLEMS]
        ],
        "more": max(len(problems) - MOST_PROBLEMS, 0),
    }


def _baseline(result: CheckResult) -> dict[str, Any] | None:
    if result.comparison is None:
        return None
    return {
        "path": shown(result.comparison.path),
        "margin": f"{result.comparison.margin:g}",
        "unmatched": [shown(what) for what in result.comparison.unmatched],
        "regressions": [
            {
                "where": shown(one.where),
                "figure": one.figure,
                **{name: figure_text(getattr(one, name)) for name in ("baseline", "found", "allowed")},
            }
            for one in result.comparison.regressions
        ],
    }


def result_values(result: CheckResult) -> dict[str, Any]:
    """What the templates of a report need."""
    report = result.report
    return {
        "version": __version__,
        "headline": headline(result),
        "outcome": {True: "holds", False: "fails", None: "not_judged"}[result.passes],
        "remark": shown(report.remark) if report.remark else None,
        "artefact": shown(report.artifact),
        "reference": shown(report.reference),
        "runtime": {name: shown(value) for name, value in report.runtime.items()},
        "seed": report.seed,
        "layers": report.layers,
        "all_layers": report.all_layers,
        "sample": {name: shown(value) for name, value in result.sample.items()},
        "command": printable(result.command),
        "verdicts": [
            {
                "name": name,
                "outcome": verdict.outcome,
                "reason": shown(verdict.reason),
            }
            for name, verdict in result.verdicts.items()
        ],
        "expected": _expected(report.expected),
        "expected_from": expectation_source(report.expected_from),
        "rope": rope_drawing(plan_curve(report.expected, "expected"), report.expected.original_context),
        "windows": _windows(result),
        "as_is": {"note": shown(report.as_is.note), "problem": shown(report.as_is.problem or "")},
        "differing": [
            {
                **{name: shown(getattr(key, name)) for name in ("key", "expected", "found")},
                "decisive": key.decisive,
            }
            for key in report.keys
            if not key.agrees
        ],
        "weights": _weights(result),
        "diagnosis": _diagnosis(report.diagnosis),
        "baseline": _baseline(result),
        "misfit": None if result.misfit is None else shown(result.misfit),
        "warnings": [shown(warning) for warning in report.expected.warnings],
    }


def html_report(result: CheckResult) -> bytes:
    """The whole page, UTF-8."""
    return render("report/check.html", {**result_values(result), "generator": REPORT}).encode()
