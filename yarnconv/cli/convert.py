"""The conversion commands' work: checkpoint -> plan -> refuse or emit, with what is shown on the way."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.checkpoint.hub import ALL_FILES, WHOLE, locate, model_name
from yarnconv.cli.existing import is_onnx
from yarnconv.cli.processors import processors
from yarnconv.cli.split_jobs import write_jobs
from yarnconv.console.engine_view import engine_document, print_engine
from yarnconv.console.messages import print_json, print_runtime_message
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, print_written, show_written, written_document
from yarnconv.errors import BadInput
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.beside import Beside, FileBeside
from yarnconv.targets.check_workflow import WORKFLOW_FILE, Reference, check_workflow
from yarnconv.targets.gguf import target as gguf
from yarnconv.targets.gguf.deployment.files import files_beside
from yarnconv.targets.gguf.deployment.from_checkpoint import carried_plan, deployment_of_conversion
from yarnconv.targets.gguf.deployment.names import stale_notes
from yarnconv.targets.gguf.output import destination_of
from yarnconv.targets.gguf.quantiser import choose_type, emit_quantised
from yarnconv.targets.gguf.split import SplitPart, beside_part
from yarnconv.targets.gguf.split_jobs import SplitJobs
from yarnconv.targets.gguf.truncation import with_runtime_truncation
from yarnconv.targets.hf import target as hf
from yarnconv.targets.onnx import target as onnx
from yarnconv.targets.onnx.reader import open_onnx
from yarnconv.targets.plan_card import check_options
from yarnconv.targets.tensorrt import target as tensorrt
from yarnconv.targets.tensorrt.builder import EXTRAS, Builder, RuntimeName
from yarnconv.targets.tensorrt.files import is_engine
from yarnconv.targets.tensorrt.source import Source, from_checkpoint, from_onnx
from yarnconv.verify.components import require


def convert_to_gguf(
    model: str,
    request: RopeRequest,
    *,
    outtype: str,
    pre: str | None,
    split_max_size: int | None,
    part: SplitPart | None,
    jobs: SplitJobs | None,
    wanted: Collection[str],
    imatrix: Path | None,
    allow_runtime_truncation: bool,
    output: Path | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """`yarnconv gguf`. part: the only file to write. jobs: who is to write the files, instead of this run."""
    outtype = outtype.lower()  # llama.cpp and the Hub write Q4_K_M
    quantisation = choose_type(outtype, imatrix, split_max_size)
    if quantisation is not None:
        require("llama", "llama_cpp")
    options = gguf.GgufOptions(
        outtype=gguf.parse_outtype(outtype if quantisation is None else "auto"),
        pre=pre,
        split_max_size=split_max_size,
        keeps_codes=quantisation is None,
        workers=processors(),
    )
    started = time.perf_counter()
    directory = locate(model, revision=revision, files=ALL_FILES)
    with open_checkpoint(directory) as checkpoint:
        served = plan_conversion(checkpoint, request)
        plan = carried_plan(served, wanted)
        if allow_runtime_truncation:
            plan = with_runtime_truncation(plan)
        job = gguf.prepare(plan, options)
        if part is not None:
            job = job.part(part)
        kind, notes = quantisation.type if quantisation else job.file_type.name.lower(), job.notes
        destination = destination_of(output, gguf.default_name(plan, kind))
        beside = Beside(notes=stale_notes(destination))
        if wanted:
            reference = Reference.of(model, revision)
            deployment = deployment_of_conversion(
                served, plan, job, destination, reference, wanted, kind=kind
            )
            beside = files_beside(deployment)
        if jobs is not None:
            write_jobs(jobs, model, directory, job, destination, kind=kind, as_json=as_json)
            return
        if part is not None:
            beside = beside_part(part, beside)
        progress = TerminalProgress(enabled=not as_json)
        if quantisation is not None:
            made = emit_quantised(plan, job, destination, quantisation, options, progress, beside.files)
            paths, notes = list(made.paths), made.notes
        else:
            with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
                paths = gguf.emit(plan, job, destination, options, advance, beside.files)
    written = Written(
        target="gguf",
        kind=kind,
        files=[(path, path.stat().st_size) for path in paths],
        notes=(*notes, *beside.notes),
        seconds=time.perf_counter() - started,
    )
    show_written(plan.rope, written, served=served.rope, as_json=as_json)


def convert_to_onnx(
    model: str,
    request: RopeRequest,
    options: onnx.OnnxOptions,
    *,
    wanted: Collection[str],
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
        check = check_options(request.given, job.options.max_context, plan.rope.target_context)
        extra = _workflow(model, revision, "onnx", check) if "ci" in wanted else []
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            files = onnx.emit(plan, job, destination, options, advance, extra)
    written = Written(
        target="onnx",
        kind=options.dtype,
        files=[(path, path.stat().st_size) for path in files],
        notes=job.notes,
        seconds=time.perf_counter() - started,
    )
    show_written(plan.rope, written, as_json=as_json)


def _workflow(
    model: str, revision: str | None, extra: str, options: str, *, judges_without_gpu: bool = True
) -> list[FileBeside]:
    """The workflow of an artefact that is a directory. extra: of yarnconv, beside check."""
    made = check_workflow(
        WORKFLOW_FILE,
        artefact=".",
        reference=Reference.of(model, revision),
        extras=f"check,{extra}",
        options=options,
        judges_without_gpu=judges_without_gpu,
    )
    return [made]


def _engine_workflow(
    model: str, revision: str | None, source: Source, runtime: RuntimeName
) -> list[FileBeside]:
    given, reach = source.provenance["rope_options"], source.rope.target_context
    options = check_options(given, source.max_context, reach)
    return _workflow(model, revision, f"onnx,{EXTRAS[runtime]}", options, judges_without_gpu=False)


def convert_to_checkpoint(
    model: str,
    request: RopeRequest,
    *,
    replace: bool,
    output: Path | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """`yarnconv hf`."""
    started = time.perf_counter()
    directory = locate(model, revision=revision, files=WHOLE)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, request)
        job = hf.prepare(plan)
        destination = output or Path(hf.default_name(plan))
        progress = TerminalProgress(enabled=not as_json)
        with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
            artefact = hf.emit(plan, job, destination, advance, replace=replace)
        kinds = sorted({tensor.dtype.lower() for tensor in checkpoint.tensors.values()})
    written = Written(
        target="hf",
        kind="+".join(kinds),
        files=[(path, path.stat().st_size) for path in artefact.files],
        notes=artefact.notes,
        seconds=time.perf_counter() - started,
        shows_rate=False,
        how_chosen="the length of the sequence",
    )
    show_written(plan.rope, written, as_json=as_json)


@contextmanager
def _engine_source(
    model: str, request: RopeRequest, options: tensorrt.TensorRtOptions, revision: str | None
) -> Iterator[Source]:
    """What an engine is made of, while its files are open."""
    if is_engine(Path(model)):
        fix = "Give the checkpoint, or an ONNX directory."
        raise BadInput("is an engine's directory", where=model, fix=fix)
    if is_onnx(model):
        with open_onnx(Path(model)) as artefact:
            tensorrt.check_choices(options, request, revision)
            yield from_onnx(artefact, request, options.workers)
        return
    directory = locate(model, revision=revision, files=ALL_FILES)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, request)
        yield from_checkpoint(plan, tensorrt.graph_options(plan, options), model_name(directory))


def convert_to_tensorrt(
    model: str,
    request: RopeRequest,
    options: tensorrt.TensorRtOptions,
    runtime: RuntimeName,
    *,
    wanted: Collection[str],
    output: Path | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """`yarnconv trt`."""
    require("onnx", "onnx")
    started = time.perf_counter()
    with (
        termination_as_interrupt(),
        _engine_source(model, request, options, revision) as source,
        Builder(runtime) as builder,
    ):
        destination = output or Path(tensorrt.default_name(source))
        progress = TerminalProgress(enabled=not as_json)
        extra = _engine_workflow(model, revision, source, runtime) if "ci" in wanted else []
        engine = tensorrt.emit(source, destination, options, builder, progress, print_runtime_message, extra)
    written = Written(
        target="tensorrt",
        kind=source.dtype,
        files=[(path, path.stat().st_size) for path in engine.files],
        notes=engine.notes,
        seconds=time.perf_counter() - started,
        shows_rate=False,
    )
    if as_json:
        print_json({**written_document(source.rope, written), **engine_document(engine)})
    else:
        print_written(source.rope, written)
        print_engine(engine)
