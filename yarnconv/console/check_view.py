"""A check's report, for people."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from yarnconv.console.messages import printable
from yarnconv.rope.scaling import method_name
from yarnconv.verify.compare import Window
from yarnconv.verify.expectation import Source
from yarnconv.verify.report import CheckReport, Diagnosis
from yarnconv.verify.verdict import Outcome, Verdict

SHOWN_HYPOTHESES = 6  # the nearest
_MARKS: dict[Outcome, tuple[str, str]] = {
    "holds": ("holds", "green"),
    "fails": ("FAILS", "bold red"),
    "not_judged": ("not judged", "yellow"),
}

_SOURCES: dict[Source, str] = {
    "options": "the options given",
    "provenance": "what the artefact says it was made with; give rope options to expect something else",
    "checkpoint": "the checkpoint's own config",
}


def expectation_source(source: Source) -> str:
    """Where the expected plan comes from, for people."""
    return _SOURCES[source]


def _outcome(outcome: Outcome) -> Text:
    word, style = _MARKS[outcome]
    return Text(word, style=style)


def _expected(report: CheckReport) -> str:
    plan, longest = report.expected, report.expected.main_group.buckets[-1]
    return (
        f"{method_name(plan.main)} x{longest.factor:g}, context {plan.original_context} -> "
        f"{plan.target_context}, attention factor {longest.attention_factor:.6g} "
        f"(from {expectation_source(report.expected_from)})"
    )


def _windows_table(windows: Sequence[Window], factors: Sequence[float], *, judged: bool) -> Table:
    """One row each; narrow enough for 80 columns, whatever the positions. factors: of the buckets."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("window", "phase"):
        table.add_column(heading, no_wrap=True)
    if len(factors) > 1:
        table.add_column("factor", justify="right", no_wrap=True)
    headings = ("positions", "relative\nerror", "tolerance", "KL\nmax", "top-1")
    for heading in headings if judged else [h for h in headings if h != "tolerance"]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for window in windows:
        mark = Text()
        if judged:
            mark = _outcome("not_judged" if window.blind else "holds" if window.holds else "fails")
            if not window.holds and not window.blind:
                mark.append(f" at {window.first_bad_position}")
        table.add_row(
            window.name,
            window.phase,
            *([f"{factors[window.bucket]:g}"] if len(factors) > 1 else []),
            f"{window.first}..{window.last}",
            f"{window.relative_max:.1e}",
            *([f"{window.tolerance:.1e}"] if judged else []),
            f"{window.kl_max:.1e}",
            f"{100 * window.top1_agreement:.0f} %",
            mark,
        )
    return table


def _diagnosis(diagnosis: Diagnosis) -> list[Table | Text]:
    """The named cause, then how far the nearest hypotheses are."""
    named = Text("\ndiagnosis: ", style="bold")
    named.append(diagnosis.label or "none", style="bold" if diagnosis.label else "bold yellow")
    parts: list[Table | Text] = [named, Text(printable(diagnosis.explanation))]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("hypothesis", no_wrap=True)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for code, distance in list(diagnosis.distances.items())[:SHOWN_HYPOTHESES]:
        table.add_row(code, f"{distance:.1e}", "explains the logits" if code == diagnosis.label else "")
    return [*parts, table] if diagnosis.distances else parts


def _named(report: CheckReport) -> tuple[tuple[str, Verdict], ...]:
    return (
        ("structure", report.structure),
        ("weights", report.weights),
        ("metadata", report.metadata),
    )


def _verdicts(report: CheckReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, verdict in _named(report):
        table.add_row(name, _outcome(verdict.outcome), Text(printable(verdict.reason)))
    return table


def _keys_table(report: CheckReport) -> Table:
    """Only what differs: a table of agreements hides the one line that matters."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for column in ("key", "expected", "found"):
        table.add_column(column)
    for key in report.keys:
        if not key.agrees:
            style = "red" if key.decisive else "dim"
            note = "" if key.decisive else f" ({report.runtime['name']} does not compute with it)"
            found = Text(printable(key.found) + note, style=style)
            table.add_row(Text(printable(key.key)), Text(printable(key.expected)), found)
    return table


def _conclusion(report: CheckReport) -> Text:
    waived = [name for name, verdict in _named(report) if verdict.waived]
    without = f" ({', '.join(waived)} not judged, as asked)" if waived else ""
    if report.parity and report.remark:
        return Text(printable(report.remark), style="bold green")
    if report.parity:
        said = Text(f"parity holds{without}", style="bold green")
        if report.expected_from == "provenance":
            said.append(", with the plan that the artefact says it was made with", style="not bold default")
        return said
    if report.parity is None:
        said = Text("parity could not be judged", style="bold yellow")
        return (
            said.append(f": {printable(report.remark)}", style="not bold default") if report.remark else said
        )
    return Text("parity does not hold", style="bold red")


def print_report(report: CheckReport) -> None:
    """What was expected, the windows, the verdicts, and what follows."""
    console = Console(highlight=False, markup=False)
    heading = Table.grid(padding=(0, 2))
    heading.add_column(style="bold", no_wrap=True)
    heading.add_column(overflow="fold")
    heading.add_row("artefact", Text(printable(report.artifact)))
    heading.add_row("reference", Text(printable(report.reference)))
    heading.add_row("expected", _expected(report))
    runtime = report.runtime
    heading.add_row("runtime", f"{runtime['name']} ({runtime['version']}) against {runtime['reference']}")
    console.print(heading)
    factors = [tables.factor for tables in report.expected.main_group.buckets]
    parts: list[Table | Text | Padding] = []
    if report.windows:
        copied = f"float32 copy of {report.layers} of {report.all_layers} layers, its own weights"
        title = f"structure: {report.ran or copied}"
        parts += [Text(f"\n{title}", style="bold"), _windows_table(report.windows, factors, judged=True)]
    parts.append(Text(f"\nas it is: {report.as_is.note}", style="bold"))
    if report.as_is.windows:
        parts.append(_windows_table(report.as_is.windows, factors, judged=False))
    if report.diagnosis is not None:
        parts += _diagnosis(report.diagnosis)
    if any(not key.agrees for key in report.keys):
        parts += [Text("\nmetadata that differs", style="bold"), _keys_table(report)]
    parts += [Text(""), _verdicts(report), Text(""), _conclusion(report)]
    console.print(Group(*parts))
