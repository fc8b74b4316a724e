"""The command inspect: what an artefact says of its RoPE."""

from pathlib import Path
from typing import Annotated

import typer

from yarnconv.cli.existing import is_gguf, is_onnx
from yarnconv.cli.root import AsJson, app, ends_with_exit_code
from yarnconv.errors import BadInput
from yarnconv.targets.tensorrt.files import SIDECAR

DISAGREES = 1


def _inspect_gguf(path: Path, as_json: bool) -> int:
    from yarnconv.console.gguf_facts_view import gguf_facts_document, print_gguf_facts
    from yarnconv.console.messages import print_json
    from yarnconv.targets.gguf.inspection import inspect_gguf
    from yarnconv.targets.gguf.reader import open_gguf

    with open_gguf(path) as artefact:
        facts = inspect_gguf(artefact)
    if as_json:
        print_json(gguf_facts_document(path, facts))
    else:
        print_gguf_facts(path, facts)
    return DISAGREES if facts.findings else 0


def _inspect_engine(path: Path, as_json: bool) -> int:
    from yarnconv.console.engine_facts_view import engine_facts_document, print_engine_facts
    from yarnconv.console.messages import print_json
    from yarnconv.targets.tensorrt.inspection import inspect_engine
    from yarnconv.targets.tensorrt.sidecar import engine_directory

    directory = engine_directory(path)
    facts = inspect_engine(directory)
    if as_json:
        print_json(engine_facts_document(directory, facts))
    else:
        print_engine_facts(directory, facts)
    return DISAGREES if facts.findings else 0


def _refuse_others(path: Path) -> None:
    """What there is another command for."""
    if is_onnx(str(path)) and not (path / SIDECAR).exists():
        fix = "`yarnconv check` judges it; `yarnconv onnx` extends it, and says what it carries."
        raise BadInput("is an ONNX model", where=str(path), fix=fix)
    if (path / "config.json").exists():
        fix = "`yarnconv plan` shows what it carries, `yarnconv check` judges it."
        raise BadInput("is a checkpoint", where=str(path), fix=fix)


@app.command()
@ends_with_exit_code
def inspect(
    artefact: Annotated[
        Path, typer.Argument(metavar="ARTEFACT", help="GGUF, or directory of a TensorRT engine.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what an artefact's own bytes say of its RoPE. Exit 1 if something does not agree."""
    _refuse_others(artefact)
    look = _inspect_gguf if is_gguf(str(artefact)) else _inspect_engine
    raise typer.Exit(look(artefact, as_json))
