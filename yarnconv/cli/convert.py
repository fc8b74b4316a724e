"""The conversion commands' work: checkpoint -> plan -> refuse or emit, with what is shown on the way."""

import os
import time
from pathlib import Path

from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.checkpoint.hub import ALL_FILES, locate
from yarnconv.console.messages import print_json
from yarnconv.console.plan_view import print_result, result_document
from yarnconv.console.progress import TerminalProgress
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf.target import GgufOptions, default_name, emit, parse_outtype, prepare


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
    options = GgufOptions(
        outtype=parse_outtype(outtype),
        pre=pre,
        split_max_size=split_max_size,
        workers=len(os.sched_getaffinity(0)),
    )
    started = time.perf_counter()
    directory = locate(model, revision=revision, files=ALL_FILES)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, request)
        job = prepare(plan, options)
        destination = output or Path()
        if destination.is_dir():
            destination = destination / default_name(plan, job.file_type)
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            paths = emit(plan, job, destination, options, advance)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(result_document(plan, job, paths, seconds))
    else:
        print_result(plan, job, paths, seconds)
