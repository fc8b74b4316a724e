"""The commands for continuous integration: ci init."""

from pathlib import Path
from typing import Annotated

import typer

from yarnconv.cli.root import AsJson, app, ends_with_exit_code
from yarnconv.errors import BadInput, one_of

PLACEHOLDER = "MODEL"

ci = typer.Typer(no_args_is_help=True, help="Parity in a repository's continuous integration.")
app.add_typer(ci, name="ci")


@ci.command()
@ends_with_exit_code
def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The repository.", show_default=False)
    ] = Path(),
    model: Annotated[
        str, typer.Option("--model", help="Hub id, or a directory of the repository.", show_default=False)
    ] = PLACEHOLDER,
    target: Annotated[str, typer.Option("--target", help="gguf or onnx.")] = "gguf",
    factor: Annotated[float, typer.Option("--factor", help="Context extension ratio.")] = 4.0,
    force: Annotated[bool, typer.Option("--force", help="Replace a workflow that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a workflow for GitHub Actions that converts, checks and keeps the report."""
    from rich.console import Console
    from rich.text import Text

    from yarnconv.artifact import check_directory, staged
    from yarnconv.console.messages import print_json, printable
    from yarnconv.rope.scaling import MAXIMUM_FACTOR
    from yarnconv.targets.check_workflow import PARITY_EXTRAS, PARITY_FILE, parity_workflow

    chosen = one_of(target, tuple(PARITY_EXTRAS), "--target")
    if not 1.0 <= factor <= MAXIMUM_FACTOR:
        raise BadInput(f"{factor:g} is not between 1 and {MAXIMUM_FACTOR:g}", where="--factor")
    check_directory(directory)
    path = directory / PARITY_FILE
    if path.exists() and not path.is_file():
        raise BadInput("is no regular file", where=str(path), fix="Move it away.")
    if (path.exists() or path.is_symlink()) and not force:
        raise BadInput("the workflow exists", where=str(path), fix="Give --force to replace it.")
    text = parity_workflow(model, target=chosen, factor=factor)
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged([path]) as temporary:
        temporary[0].write_text(text, encoding="utf-8")
    notes = [f"Name the checkpoint in it instead of {PLACEHOLDER}."] if model == PLACEHOLDER else []
    if as_json:
        print_json({"files": [{"path": str(path), "bytes": path.stat().st_size}], "notes": notes})
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(Text("wrote ", style="green").append(printable(str(path)), style="bold"))
    for note in notes:
        console.print(f"  note: {note}")
