"""`yarnconv onnx` of an ONNX model that is there already: its tables are exchanged, its weights stay."""

import time
from pathlib import Path

import typer

from yarnconv.console.messages import print_json
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, print_written, written_document
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx import extension
from yarnconv.targets.onnx.extension_writing import emit
from yarnconv.targets.onnx.reader import open_onnx
from yarnconv.verify.components import require

# what of `yarnconv onnx` is for a conversion only: the model's own form and weights stay
CONVERSION_OPTIONS = {
    "dtype": "--dtype",
    "kv": "--kv",
    "dialect": "--dialect",
    "last_token_only": "--last-token-only",
    "int4_head": "--int4-head, --no-int4-head",
    "int4_embeddings": "--int4-embeddings, --no-int4-embeddings",
    "link_weights": "--link-weights",
    "revision": "--revision",
}


def is_onnx(model: str) -> bool:
    """Whether MODEL is an ONNX file or directory and no checkpoint."""
    path = Path(model)
    if path.is_dir():
        checkpoint = (path / "config.json").exists() and any(path.glob("*.safetensors"))
        return not checkpoint and any(path.glob("*.onnx"))
    return path.suffix == ".onnx" and path.is_file()


def refuse_strays(context: typer.Context) -> None:
    """Options of a conversion are an error, their defaults spelled out too: nothing asked for is dropped."""
    for name, option in CONVERSION_OPTIONS.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise BadInput(
                "has no meaning for an ONNX model that is there already",
                where=option,
                fix="Leave it out, or convert from the checkpoint.",
            )


def extend_onnx(
    model: str,
    request: RopeRequest,
    options: extension.ExtensionOptions,
    *,
    output: Path | None,
    as_json: bool,
) -> None:
    """Plan, exchange the tables, write, and say what was written."""
    require("onnx", "onnx")
    started = time.perf_counter()
    with open_onnx(Path(model), unknown=extension.RUNTIME_OPERATORS) as artefact:
        job = extension.prepare(artefact, request, options)
        destination = output or Path(extension.default_name(job))
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            files, more = emit(job, destination, options, advance)
    written = Written(
        target="onnx",
        kind=job.dtype,
        files=[(path, path.stat().st_size) for path in files],
        notes=[*job.notes, *more],
        seconds=time.perf_counter() - started,
        shows_rate=False,
    )
    if as_json:
        print_json(written_document(job.rope, written))
    else:
        print_written(job.rope, written)
