"""The conversion commands' work: checkpoint -> plan -> refuse or emit, with what is shown on the way."""

import os
import time
from pathlib import Path

from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.checkpoint.hub import ALL_FILES, locate
from yarnconv.console.messages import print_json
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, print_written, written_document
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf import target as gguf
from yarnconv.targets.onnx import target as onnx
from yarnconv.verify.components import require


def _show(plan: ConversionPlan, written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json(written_document(plan.rope, written))
    else:
        print_written(plan.rope, written)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def convert_to_gguf(
    model: str,
    request: RopeRequest,
    *,
    outtype: str,
    pre: str | None,
    split_max_size: int | None,
    output: Path | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """`yarnconv gguf`."""
    options = gguf.GgufOptions(
        outtype=gguf.parse_outtype(outtype),
        pre=pre,
        split_max_size=split_max_size,
        workers=processors(),
    )
    started = time.perf_counter()
    directory = locate(model, revision=revision, files=ALL_FILES)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, request)
        job = gguf.prepare(plan, options)
        destination = output or Path()
        if destination.is_dir():
            destination = destination / gguf.default_name(plan, job.file_type)
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            paths = gguf.emit(plan, job, destination, options, advance)
    written = Written(
        target="gguf",
        kind=job.file_type.name.lower(),
        files=[(path, file.size) for path, file in zip(paths, job.files, strict=True)],
        notes=job.notes,
        seconds=time.perf_counter() - started,
    )
    _show(plan, written, as_json=as_json)


def convert_to_onnx(
    model: str,
    request: RopeRequest,
    options: onnx.OnnxOptions,
    *,
    output: Path | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """`yarnconv onnx`."""
    require("onnx", "onnx")
    started = time.perf_counter()
    directory = locate(model, revision=revision, files=ALL_FILES)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, request)
        job = onnx.prepare(plan, options)
        destination = output or Path(onnx.default_name(plan, options))
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            files = onnx.emit(plan, job, destination, options, advance)
    written = Written(
        target="onnx",
        kind=options.dtype,
        files=[(path, path.stat().st_size) for path in files],
        notes=job.notes,
        seconds=time.perf_counter() - started,
    )
    _show(plan, written, as_json=as_json)
