"""What got worse than a baseline, for people."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yarnconv.console.messages import printable
from yarnconv.verify.baseline import Comparison


def figure_text(value: float | None) -> str:
    """A figure, or that there is none any more."""
    return "not measured" if value is None else f"{value:.2g}"


def print_comparison(comparison: Comparison) -> None:
    """A table of what got worse, what was not compared, and what follows."""
    console = Console(highlight=False, markup=False)
    name = printable(comparison.path)
    if comparison.regressions:
        console.print(Text("\nworse than the baseline", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("where", overflow="fold")
        table.add_column("figure", no_wrap=True)
        for heading in ("was", "is", "allowed"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in comparison.regressions:
            found = Text(figure_text(one.found), style="bold red")
            was, allowed = figure_text(one.baseline), figure_text(one.allowed)
            table.add_row(Text(printable(one.where)), one.figure, was, found, allowed)
        console.print(table)
    for what in comparison.unmatched:
        console.print(Text(f"not compared: {printable(what)}", style="dim"))
    count = len(comparison.regressions)
    if count:
        are = "figure is" if count == 1 else "figures are"
        said = f"\n{count} {are} worse than {comparison.margin:g} x {name}"
        console.print(Text(said, style="bold red"))
    else:
        console.print(Text(f"\nno figure is worse than {comparison.margin:g} x {name}", style="green"))
