"""The command inspect: what RoPE an artefact carries, by its own bytes, whoever made it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yarnconv.cli.existing import is_gguf
from yarnconv.cli.options import takes_rope_options
from yarnconv.cli.root import AsJson, Revision, app, ends_with_exit_code
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest

if TYPE_CHECKING:
    from yarnconv.targets.carried_rope import Claims, Inspected
    from yarnconv.targets.findings import Severity

FOUND = 1


class FailOn(StrEnum):
    """From which severity on findings are exit 1."""

    error = "error"
    warning = "warning"
    never = "never"


SEVERITY: "dict[FailOn, Severity]" = {FailOn.error: "error", FailOn.warning: "warning"}


def _claims(
    reference: str | None, request: RopeRequest, record: str | None, revision: str | None
) -> "tuple[Claims, ...]":
    """What a reference says. record: what the artefact says it was made with, which fills in the options."""
    from yarnconv.checkpoint.hub import CONFIG_FILES, locate
    from yarnconv.targets.hf.inspection import claims_of, read_config
    from yarnconv.targets.record import recorded_request

    if reference is None:
        if request.asks_for_something:
            raise BadInput(
                "rope options say what an artefact of a reference should carry",
                where="rope options",
                fix="Add --reference MODEL.",
            )
        return ()
    path = Path(reference)
    directory = path if path.exists() else locate(reference, revision=revision, files=CONFIG_FILES)
    if not request.asks_for_something and record is not None:
        request = recorded_request(record) or request
    return (claims_of(read_config(directory), request, "the reference"),)


def _inspect(path: Path, reference: str | None, request: RopeRequest, revision: str | None) -> "Inspected":
    """Open it as what it is, and look."""
    from yarnconv.targets.record import RECORD_KEY

    if is_gguf(str(path)):
        from yarnconv.targets.gguf.inspection import inspect_gguf
        from yarnconv.targets.gguf.reader import open_gguf

        with open_gguf(path) as gguf:
            record = gguf.scalar(RECORD_KEY, str)
            return inspect_gguf(gguf, _claims(reference, request, record, revision))
    from yarnconv.targets.hf.inspection import inspect_checkpoint

    return inspect_checkpoint(path, _claims(reference, request, None, revision))


@app.command()
@ends_with_exit_code
@takes_rope_options
def inspect(
    artefact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTEFACT",
            help="GGUF, ONNX model or directory, TensorRT engine or its directory, or checkpoint.",
        ),
    ],
    request: RopeRequest,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="Checkpoint or config.json to hold it against."),
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Findings from which on the exit code is 1.")
    ] = FailOn.error,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show what RoPE an artefact carries, by its own bytes, and what is wrong with it."""
    from yarnconv.console.inspect_view import inspected_document, print_inspected
    from yarnconv.console.messages import print_json
    from yarnconv.targets.findings import at_least

    facts = _inspect(artefact, reference, request, revision)
    if as_json:
        print_json(inspected_document(str(artefact), facts))
    else:
        print_inspected(str(artefact), facts)
    severe = fail_on is not FailOn.never and at_least(facts.findings, SEVERITY[fail_on])
    if severe:
        raise typer.Exit(FOUND)
