"""`yarnconv plan FILE.gguf` and `yarnconv gguf FILE.gguf`: an existing GGUF with another plan."""

import time
from pathlib import Path

from yarnconv.console.messages import print_json
from yarnconv.console.plan_view import print_rope_plan
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, print_written, written_document
from yarnconv.plan import rope_facts
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf.carried import plan_carried, read_carried
from yarnconv.targets.gguf.extension import default_name, emit_extension, prepare_extension
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.targets.gguf.rope import encode_rope
from yarnconv.targets.gguf.rope_limits import keys_read


def plan_gguf(source: Path, request: RopeRequest, *, as_json: bool) -> None:
    """`yarnconv plan FILE.gguf`: what an extension would be, or that llama.cpp could not be told it."""
    with open_gguf(source) as artefact:
        keys = keys_read(artefact, trust_generic_keys=not request.asks_for_something)
        plan = plan_carried(read_carried(artefact, keys), request)
        encode_rope(plan, keys)
    if as_json:
        print_json({"model": str(source), "architecture": keys.name, **rope_facts(plan)})
    else:
        print_rope_plan(plan, f"{source.name} ({keys.name}, {artefact.weight_type.lower()})")


def extend_gguf(
    source: Path, request: RopeRequest, *, trust_generic_keys: bool, output: Path | None, as_json: bool
) -> None:
    """Plan, write, show."""
    started = time.perf_counter()
    with open_gguf(source) as artefact:
        job = prepare_extension(artefact, request, trust_generic_keys=trust_generic_keys)
        destination = output or Path()
        if destination.is_dir():
            destination = destination / default_name(artefact, job.plan)
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            paths = emit_extension(job, destination, advance)
    written = Written(
        target="gguf",
        kind=job.kind,
        files=[(path, file.size) for path, file in zip(paths, job.files, strict=True)],
        notes=job.notes,
        seconds=time.perf_counter() - started,
    )
    if as_json:
        print_json(written_document(job.plan, written))
    else:
        print_written(job.plan, written)
