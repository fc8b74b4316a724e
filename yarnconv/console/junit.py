"""A check as JUnit XML: one suite, a case for each verdict, window, fact and worse figure."""

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from yarnconv import __version__
from yarnconv.console.baseline_view import figure_text
from yarnconv.console.marks import REPORT
from yarnconv.console.messages import printable
from yarnconv.verify.report import Diagnosis
from yarnconv.verify.result import CheckResult

LONGEST_TEXT = 4000  # of one message; values of metadata come from strangers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """failure, error, skipped: the message of what did not hold, should have been judged and could not, or
    was left out; none where it holds.
    """

    group: str
    name: str
    failure: str | None = None
    error: str | None = None
    skipped: str | None = None
    details: str = ""


def _text(text: str) -> str:
    """A stranger's text as one that XML may hold."""
    shown = printable(text)
    return shown if len(shown) <= LONGEST_TEXT else f"{shown[:LONGEST_TEXT]}... ({len(shown)} characters)"


def _diagnosis(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return ""
    distances = [f"{value:.3g}  {name}" for name, value in diagnosis.distances.items()]
    return "\n".join((f"diagnosis: {diagnosis.label or 'none'}", diagnosis.explanation, *distances))


def _verdicts(result: CheckResult) -> Iterator[_Case]:
    for name, verdict in result.verdicts.items():
        details = _diagnosis(result.report.diagnosis) if name == "structure" else ""
        unjudged = verdict.reason if verdict.outcome == "not_judged" else None
        yield _Case(
            group="verdict",
            name=name,
            failure=verdict.reason if verdict.outcome == "fails" else None,
            error=None if verdict.waived else unjudged,
            skipped=unjudged if verdict.waived else None,
            details=details,
        )


def _windows(result: CheckResult) -> Iterator[_Case]:
    factors = [tables.factor for tables in result.report.expected.main_group.buckets]
    for window in result.report.windows:
        factor = f", factor {factors[window.bucket]:g}" if len(factors) > 1 else ""
        failure = None
        if window.blind is None and not window.holds:
            failure = (
                f"relative error up to {window.relative_max:.3g}, tolerance {window.tolerance:.3g}, "
                f"outside from position {window.first_bad_position}"
            )
        yield _Case(
            group="window",
            name=f"{window.name}, {window.phase} {window.first}..{window.last}{factor}",
            failure=failure,
            skipped=window.blind,
            details=f"KL up to {window.kl_max:.3g}, top-1 {100 * window.top1_agreement:.4g} %",
        )


def _facts(result: CheckResult) -> Iterator[_Case]:
    for key in result.report.keys:
        said = f"{key.found}, expected {key.expected}"
        ignored = f"{said}: {result.report.runtime['name']} does not compute with it"
        yield _Case(
            group="metadata",
            name=key.key,
            failure=said if not key.agrees and key.decisive else None,
            skipped=ignored if not key.agrees and not key.decisive else None,
        )


def _regressions(result: CheckResult) -> Iterator[_Case]:
    if result.misfit is not None:
        yield _Case(group="baseline", name="the baseline fits", error=str(result.misfit))
    if result.comparison is None:
        return
    for one in result.comparison.regressions:
        failure = (
            f"{figure_text(one.found)}, was {figure_text(one.baseline)}, allowed {figure_text(one.allowed)}"
        )
        yield _Case(group="baseline", name=f"{one.where}, {one.figure}", failure=failure)
    if not result.comparison.regressions:
        yield _Case(group="baseline", name=f"no figure is worse than {result.comparison.margin:g} times")


def _as_is(result: CheckResult) -> str:
    """Information: no case, because nothing is held to anything."""
    lines = [result.report.remark] if result.report.remark else []
    lines.append(f"as it is: {result.report.as_is.note}")
    lines += [
        f"{w.name}, {w.phase} {w.first}..{w.last}: relative error up to {w.relative_max:.3g}, "
        f"KL up to {w.kl_max:.3g}, top-1 {100 * w.top1_agreement:.4g} %"
        for w in result.report.as_is.windows
    ]
    return "\n".join((*lines, f"again: {result.command}"))


def junit_xml(result: CheckResult) -> bytes:
    """The whole document, UTF-8."""
    report = result.report
    makers = (_verdicts, _windows, _facts, _regressions)
    cases = [case for make in makers for case in make(result)]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.failure is not None for case in cases)),
        "errors": str(sum(case.error is not None for case in cases)),
        "skipped": str(sum(case.skipped is not None for case in cases)),
    }
    root = ElementTree.Element("testsuites", {"name": REPORT, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _text(report.artifact), **counts})
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"reference": report.reference, "seed": str(report.seed), "yarnconv": __version__}
    facts |= {"runtime": f"{report.runtime['name']} ({report.runtime['version']})"}
    facts |= {"compared with": report.runtime["reference"]}
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
    for case in cases:
        attributes = {"classname": f"yarnconv.{case.group}", "name": _text(case.name)}
        element = ElementTree.SubElement(suite, "testcase", attributes)
        for tag, said in (("failure", case.failure), ("error", case.error)):
            if said is not None:
                kind = {"message": _text(said), "type": case.group}
                told = "\n".join(filter(None, (said, case.details)))
                ElementTree.SubElement(element, tag, kind).text = _text(told)
        if case.skipped is not None:
            ElementTree.SubElement(element, "skipped", {"message": _text(case.skipped)})
        if case.failure is case.error is None and case.details:
            ElementTree.SubElement(element, "system-out").text = _text(case.details)
    ElementTree.SubElement(suite, "system-out").text = _text(_as_is(result))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
