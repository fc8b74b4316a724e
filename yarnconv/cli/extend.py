"""`yarnconv plan FILE.gguf` and `yarnconv gguf FILE.gguf`: an existing GGUF with another plan."""

import time
from collections.abc import Collection
from pathlib import Path

from yarnconv.console.messages import print_json
from yarnconv.console.plan_view import print_rope_plan, runtime_warnings
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, show_written
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import rope_facts
from yarnconv.targets.beside import Beside
from yarnconv.targets.gguf.carried import plan_carried, read_carried
from yarnconv.targets.gguf.deployment.names import stale_notes
from yarnconv.targets.gguf.extension import (
    check_extension,
    default_name,
    emit_extension,
    prepare_extension,
)
from yarnconv.targets.gguf.launch import launch_buckets, needs_flags
from yarnconv.targets.gguf.output import destination_of
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.targets.gguf.rope import encode_rope
from yarnconv.targets.gguf.rope_limits import keys_read


def plan_gguf(source: Path, request: RopeRequest, *, as_json: bool) -> None:
    """`yarnconv plan FILE.gguf`: what an extension would be, or that llama.cpp could not be told it."""
    with open_gguf(source) as artefact:
        keys = keys_read(artefact, trust_generic_keys=not request.asks_for_something)
        plan = plan_carried(read_carried(artefact, keys), request)
        if needs_flags(plan):
            launch_buckets(plan, keys)
        else:
            encode_rope(plan, keys)
    if as_json:
        facts = {**rope_facts(plan), "runtime_warnings": runtime_warnings(plan)}
        print_json({"model": str(source), "architecture": keys.name, **facts})
    else:
        print_rope_plan(plan, f"{source.name} ({keys.name}, {artefact.weight_type.lower()})")


def extend_gguf(
    source: Path,
    request: RopeRequest,
    *,
    trust_generic_keys: bool,
    wanted: Collection[str],
    output: Path | None,
    as_json: bool,
) -> None:
    """Plan, write, show."""
    started = time.perf_counter()
    with open_gguf(source) as artefact:
        check_extension(artefact, request)
        keys = keys_read(artefact, trust_generic_keys=trust_generic_keys)
        own = read_carried(artefact, keys)
        served = plan_carried(own, request)
        plan = served
        if wanted:  # what these files are made of is imported only where there are some
            from yarnconv.targets.gguf.deployment.files import files_beside
            from yarnconv.targets.gguf.deployment.from_gguf import carried_extension, deployment_of_extension

            plan = carried_extension(own, served, request, keys, wanted)
        job = prepare_extension(artefact, plan, keys)
        destination = destination_of(output, default_name(artefact, plan))
        beside = Beside(notes=stale_notes(destination))
        if wanted:
            beside = files_beside(deployment_of_extension(artefact, served, job, keys, destination, wanted))
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            paths = emit_extension(job, destination, advance, beside.files)
    written = Written(
        target="gguf",
        kind=job.kind,
        files=[(path, path.stat().st_size) for path in paths],
        notes=(*job.notes, *beside.notes),
        seconds=time.perf_counter() - started,
    )
    show_written(plan, written, served=served, as_json=as_json)
