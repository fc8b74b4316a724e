"""`yarnconv onnx` of an ONNX model that is there already: its tables are exchanged, its weights stay."""

import time
from collections.abc import Collection
from pathlib import Path

from yarnconv.console.messages import print_json
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, print_written, written_document
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.beside import Beside
from yarnconv.targets.check_workflow import (
    UNKNOWN_REFERENCE,
    WORKFLOW_FILE,
    check_workflow,
    unknown_reference_note,
)
from yarnconv.targets.onnx import extension
from yarnconv.targets.onnx.extension_writing import emit
from yarnconv.targets.onnx.reader import open_onnx
from yarnconv.targets.plan_card import check_options
from yarnconv.verify.components import require


def _workflow(job: extension.Extension) -> Beside:
    """The workflow that checks the model. Raises BadInput for one that `check` does not read."""
    if job.lookup.rows is None:
        raise BadInput(
            "`yarnconv check` reads graphs of `yarnconv onnx` only",
            where="--emit ci",
            fix="Leave ci out, or convert from the checkpoint.",
        )
    made = check_workflow(
        WORKFLOW_FILE,
        artefact=".",
        reference=UNKNOWN_REFERENCE,
        extras="check,onnx",
        options=check_options(job.request.given, job.max_context, job.rope.target_context),
    )
    return Beside(files=(made,), notes=(unknown_reference_note("the model", WORKFLOW_FILE),))


def extend_onnx(
    model: str,
    request: RopeRequest,
    options: extension.ExtensionOptions,
    *,
    wanted: Collection[str],
    output: Path | None,
    as_json: bool,
) -> None:
    """Plan, exchange the tables, write, and say what was written."""
    require("onnx", "onnx")
    started = time.perf_counter()
    with open_onnx(Path(model), unknown=extension.RUNTIME_OPERATORS) as artefact:
        job = extension.prepare(artefact, request, options)
        destination = output or Path(extension.default_name(job))
        beside = _workflow(job) if "ci" in wanted else Beside()
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            files, more = emit(job, destination, options, advance, beside.files)
    written = Written(
        target="onnx",
        kind=job.dtype,
        files=[(path, path.stat().st_size) for path in files],
        notes=[*job.notes, *more, *beside.notes],
        seconds=time.perf_counter() - started,
        shows_rate=False,
    )
    if as_json:
        print_json(written_document(job.rope, written))
    else:
        print_written(job.rope, written)
