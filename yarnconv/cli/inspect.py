"""The command inspect: what RoPE an artefact carries, by its own bytes, whoever made it."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from yarnconv.cli.existing import is_gguf, is_onnx
from yarnconv.cli.options import takes_rope_options
from yarnconv.cli.root import AsJson, Revision, app, ends_with_exit_code
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.tensorrt.files import ENGINE_FILE, engine_directory, is_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from yarnconv.targets.inspection.carried_rope import Claims, Inspected
    from yarnconv.targets.inspection.findings import Severity

FOUND = 1
ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})
FILE_SUFFIXES = ENGINE_SUFFIXES | {".gguf", ".onnx", ".json"}  # of no Hub id


class FailOn(StrEnum):
    """From which severity on findings are exit 1."""

    error = "error"
    warning = "warning"
    never = "never"


SEVERITY: "dict[FailOn, Severity]" = {FailOn.error: "error", FailOn.warning: "warning"}


# What a reference says of an artefact, by what that says it was made with; nothing where there is none.
ClaimsBy: TypeAlias = "Callable[[str | None], tuple[Claims, ...]]"


def _claims(
    reference: str | None, request: RopeRequest, revision: str | None, record: str | None
) -> "tuple[Claims, ...]":
    """record: fills in the rope options where none are given."""
    from yarnconv.checkpoint.hub import CONFIG_FILES, locate
    from yarnconv.rope.scaling import Unscaled
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
    if path.is_file() and path.suffix != ".json":
        raise BadInput(
            "is neither a checkpoint nor a config.json",
            where=reference,
            fix="Give what the artefact was made of.",
        )
    directory = path if path.exists() else locate(reference, revision=revision, files=CONFIG_FILES)
    own = claims_of(read_config(directory), request, "the reference")
    recorded = None if record is None or request.asks_for_something else recorded_request(record)
    if recorded is None or not isinstance(own.scaling, Unscaled):
        return (own,)  # a scaling of its own is what it says, whatever the artefact does
    source = "the reference (as recorded)"  # no rope options were given: the artefact's own fill them in
    return (claims_of(read_config(directory), recorded, source),)


def _downloaded(model: Path, revision: str | None) -> Path:
    """The config of a checkpoint that is named by its Hub id."""
    from yarnconv.checkpoint.hub import CONFIG_FILES, locate

    return locate(str(model), revision=revision, files=CONFIG_FILES)


def _is_engine(path: Path) -> bool:
    """An engine, whatever its file is called, or the directory of one of ours."""
    if path.is_dir():
        return is_engine(path) or (path / ENGINE_FILE).is_file()
    return path.suffix in ENGINE_SUFFIXES


def _inspect_engine(path: Path, claims_by: "ClaimsBy") -> "Inspected":
    import json

    from yarnconv.targets.tensorrt.inspection import inspect_engine
    from yarnconv.targets.tensorrt.sidecar import read_sidecar

    if not path.exists():
        raise BadInput("no such file", where=str(path), fix="Give an engine, or its directory.")
    directory = engine_directory(path)
    record = json.dumps(read_sidecar(directory)["plan"]) if is_engine(directory) else None
    return inspect_engine(path, claims_by(record))


def _inspect_onnx(path: Path, claims_by: "ClaimsBy") -> "Inspected":
    from yarnconv.targets.onnx.extension import RUNTIME_OPERATORS
    from yarnconv.targets.onnx.inspection import inspect_onnx
    from yarnconv.targets.onnx.reader import open_onnx
    from yarnconv.targets.record import RECORD_KEY
    from yarnconv.verify.components import require

    require("onnx", "onnx")
    with open_onnx(path, unknown=RUNTIME_OPERATORS) as model:
        return inspect_onnx(model, claims_by(model.metadata(RECORD_KEY)))


def _inspect_gguf(path: Path, claims_by: "ClaimsBy") -> "Inspected":
    from yarnconv.targets.gguf.inspection import inspect_gguf
    from yarnconv.targets.gguf.reader import open_gguf
    from yarnconv.targets.record import RECORD_KEY

    with open_gguf(path) as artefact:
        return inspect_gguf(artefact, claims_by(artefact.scalar(RECORD_KEY, str)))


def _inspect_checkpoint(path: Path, claims_by: "ClaimsBy") -> "Inspected":
    from yarnconv.targets.hf.inspection import inspect_checkpoint

    if path.is_dir() and not (path / "config.json").is_file():
        what = "there is neither a model nor a config.json in it"
        raise BadInput(what, where=str(path), fix="Give an artefact, or a checkpoint's directory.")
    return inspect_checkpoint(path, claims_by(None))


def _opener(path: Path) -> "Callable[[Path, ClaimsBy], Inspected]":
    """Who looks into a file or directory of its kind."""
    if _is_engine(path):
        return _inspect_engine
    if is_onnx(str(path)):
        return _inspect_onnx
    if is_gguf(str(path)) and path.suffix != ".json":
        return _inspect_gguf
    return _inspect_checkpoint


def _plotter(path: Path, artefact: Path, *, as_json: bool) -> "Callable[[Inspected], None]":
    """What draws a picture, once it is known what. Refuses before the work what could not be written."""
    from yarnconv.artifact import check_directory
    from yarnconv.console.figures import check_figure_path, rope_figure, write_figure
    from yarnconv.console.inspect_curves import curves_of, original_context
    from yarnconv.console.messages import print_written
    from yarnconv.verify.components import require

    require("plot", "matplotlib")
    check_figure_path(path)
    check_directory(path.parent)

    def draw(facts: "Inspected") -> None:
        curves = curves_of(facts)
        if not curves:
            what = "there is nothing to draw: no frequencies and temperature were found that an axis holds"
            raise BadInput(what, where=str(artefact))
        write_figure(rope_figure(curves, original_context(facts)), path)
        if not as_json:
            print_written([path])

    return draw


@app.command()
@ends_with_exit_code
@takes_rope_options
def inspect(
    artefact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTEFACT",
            help="GGUF, ONNX model or directory, TensorRT engine or its directory, checkpoint directory, or "
            "a Hub id.",
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
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it into a .png, .svg or .html as well."),
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show what RoPE an artefact carries, by its own bytes, and what is wrong with it."""
    from yarnconv.console.inspect_view import inspected_document, print_inspected
    from yarnconv.console.messages import print_json
    from yarnconv.targets.inspection.findings import at_least

    draw = None if plot is None else _plotter(plot, artefact, as_json=as_json)
    claims_by = partial(_claims, reference, request, revision)
    path = (
        artefact if artefact.exists() or artefact.suffix in FILE_SUFFIXES else _downloaded(artefact, revision)
    )
    facts = _opener(path)(path, claims_by)
    if as_json:
        print_json(inspected_document(str(artefact), facts))
    else:
        print_inspected(str(artefact), facts)
    if draw is not None:
        draw(facts)
    severe = fail_on is not FailOn.never and at_least(facts.findings, SEVERITY[fail_on])
    if severe:
        raise typer.Exit(FOUND)
