"""What an artefact was found to carry, for people and as JSON."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from yarnconv.console.inspect_curves import curves_of
from yarnconv.console.messages import one_line, print_warnings
from yarnconv.console.plan_view import runtime_warnings
from yarnconv.console.regime_bars import RegimeBars
from yarnconv.rope.identify import Fit, Temperature
from yarnconv.rope.scaling import Stretched, Unscaled, Yarn, method_name
from yarnconv.rope.tables import correction_range, count_regimes
from yarnconv.rope_plan import rope_facts
from yarnconv.targets.inspection.carried_rope import CarriedBucket, CarriedGroup, Claims, Inspected
from yarnconv.targets.inspection.findings import Finding, Severity
from yarnconv.targets.inspection.rope_findings import described

LONGEST = 400  # characters of a value that are shown
EXACT = 1e-9  # of a frequency, where it is no use to say how exact
_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "note": "dim"}
_TEMPERATURES: dict[Temperature, str] = {
    "none": "no temperature",
    "full": "by its formula",
    "missing": "none: NTK-by-parts",
    "twice": "the temperature is applied twice",
    "relogged": "the temperature was put through its formula again",
    "other": "of no formula",
}


def _in_json(value: object) -> object:
    """JSON has no infinity: a number that is none is its name, however deep it lies."""
    if isinstance(value, Mapping):
        return {key: _in_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _fit_facts(fit: Fit) -> dict[str, Any]:
    """A fit by the names that `plan --json` has for its facts."""
    scaling = fit.scaling
    yarn = scaling if isinstance(scaling, Yarn) else None
    extended = scaling if not isinstance(scaling, Unscaled) else None
    low, high = correction_range(yarn) if yarn else (None, None)
    return {
        "method": fit.method,
        "factor": extended.factor if extended else None,
        "original_context": extended.original_context if extended and fit.context != "unknown" else None,
        "rope_theta": scaling.theta if scaling else None,
        "beta_fast": yarn.beta_fast if yarn else None,
        "beta_slow": yarn.beta_slow if yarn else None,
        "truncate": yarn.truncate if yarn else None,
        "low": low,
        "high": high,
        "regimes": count_regimes(scaling) if scaling else None,
    }


def _bucket_document(bucket: CarriedBucket) -> dict[str, Any]:
    observed = bucket.observation
    return {
        **_fit_facts(bucket.fit),
        "temperature": bucket.fit.temperature,
        "residual": bucket.fit.residual,
        "uncertainty": float(observed.uncertainty.max()),
        "reach": bucket.reach,
        "broken": bucket.broken,
        "attention_factor": observed.attention_factor,
        "softmax_scale_multiplier": observed.softmax_multiplier,
        "inv_freq": observed.inv_freq.tolist(),
    }


def _group_document(group: CarriedGroup) -> dict[str, Any]:
    return {
        "layers": group.layers,
        "source": group.source,
        "element": group.element,
        "buckets": [_bucket_document(bucket) for bucket in group.buckets],
    }


def _unplanned_facts(facts: Inspected) -> dict[str, Any]:
    """The facts of a plan, of an artefact that carries none with a name."""
    longest = facts.groups[0].buckets[-1] if facts.groups and facts.groups[0].buckets else None
    context = next((c.context for c in facts.claims if c.context), None)
    if longest is None:
        return {"method": "none" if not facts.groups else "unknown", "target_context": context}
    observed = longest.observation
    return {
        **_fit_facts(longest.fit),
        "method": facts.groups[0].method,
        "target_context": context,
        "rotary_dim": 2 * len(observed.inv_freq),
        "attention_factor": observed.attention_factor,
        "softmax_scale_multiplier": observed.softmax_multiplier,
        "inv_freq": observed.inv_freq.tolist(),
    }


def _claim_document(claim: Claims) -> dict[str, Any]:
    return {
        "source": claim.source,
        "says": described(claim.scaling) if claim.scaling else None,
        "method": method_name(claim.scaling) if claim.scaling else None,
        "original_context": claim.original_context,
        "context": claim.context,
    }


def inspected_document(artifact: str, facts: Inspected) -> dict[str, Any]:
    """`inspect --json`: the plan that it carries, where one can be named, and what was read."""
    plan = facts.plan
    document = {
        "artifact": artifact,
        "target": facts.target,
        **(rope_facts(plan) if plan else _unplanned_facts(facts)),
        **facts.identity,
        **({"runtime_warnings": runtime_warnings(plan)} if plan else {}),
        "carried": [_group_document(group) for group in facts.groups],
        "claims": [_claim_document(claim) for claim in facts.claims],
        "keys": dict(facts.details),
        "notes": list(facts.notes),
        "findings": [asdict(finding) for finding in facts.findings],
    }
    return cast("dict[str, Any]", _in_json(document))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = one_line(value if isinstance(value, str) else json.dumps(_in_json(value), default=str))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _temperature(bucket: CarriedBucket) -> str:
    observed, fit = bucket.observation, bucket.fit
    text = f"{observed.attention_factor:.6g} on cos and sin ({_TEMPERATURES[fit.temperature]})"
    if observed.softmax_multiplier not in {None, 1.0}:
        text += f"; softmax scale x {observed.softmax_multiplier:.6g}"
    return text


def _method(bucket: CarriedBucket) -> Text:
    fit = bucket.fit
    if bucket.broken is not None:
        return Text(f"damaged: {one_line(bucket.broken)}", style="bold red")
    if fit.scaling is None:
        return Text("unknown: no method explains its frequencies", style="bold yellow")
    text = Text(described(fit.scaling, fit.context))
    exact = fit.residual is None or fit.residual < EXACT
    return text.append(f"  (frequencies {'exact' if exact else f'within {fit.residual:.1e}'})", style="dim")


def _group_rows(group: CarriedGroup) -> Iterator[tuple[str, Text]]:
    element = f", {group.element}" if group.element else ""
    yield "layers", Text(one_line(f"{group.layers}, by {group.source}{element}")[:300])
    if not group.buckets:
        yield "carries", Text("no RoPE")
    for bucket in group.buckets:
        reach = "" if bucket.reach is None else f" up to {bucket.reach}"
        yield f"carries{reach}", _method(bucket)
        if not isinstance(bucket.fit.scaling, Unscaled) or bucket.fit.temperature == "other":
            yield "temperature", Text(_temperature(bucket))


def _carried_table(facts: Inspected) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for group in facts.groups:
        for name, value in _group_rows(group):
            table.add_row(name, value)
    if facts.plan is not None and isinstance(facts.plan.main, Stretched):
        plan = facts.plan
        table.add_row("context", f"{plan.original_context} -> {plan.target_context} positions")
    for claim in facts.claims:
        said = [] if claim.scaling is None else [described(claim.scaling)]
        said += [f"context {claim.context}"] if claim.context else []
        table.add_row(one_line(claim.source)[:60], Text(", ".join(said) or "says nothing of RoPE", "dim"))
    return table


def _findings_table(findings: tuple[Finding, ...]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        text = Text(f"{finding.code}: ", style="bold").append(one_line(finding.message), "not bold")
        text.append(f"\n{one_line(finding.remedy)}", style="dim not bold")
        table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), text)
    return table


def print_inspected(artifact: str, facts: Inspected) -> None:
    """What it carries, what it says, and what is odd about it."""
    console = Console(highlight=False, markup=False)
    console.print(Text(one_line(f"{artifact} ({facts.title})"), style="bold"))
    console.print(_carried_table(facts))
    if curves := curves_of(facts):
        console.print(RegimeBars(curves))
    if facts.details:
        keys = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for key, value in facts.details.items():
            keys.add_row(Text(one_line(key), style="dim"), Text(_shown(value)))
        console.print(Text("as it stands there", style="bold"), keys, sep="\n")
    print_warnings(console, facts.notes)
    if facts.findings:
        console.print(Group(Text("findings", style="bold"), _findings_table(facts.findings)))
    else:
        console.print(Text("nothing odd was found", style="green"))
