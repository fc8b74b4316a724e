"""The conversion commands' work: checkpoint -> plan -> refuse or emit, with what is shown on the way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.checkpoint.hub import ALL_FILES, locate, model_name
from yarnconv.cli.extend_onnx import is_onnx
from yarnconv.cli.processors import processors
from yarnconv.console.engine_view import engine_document, print_engine
from yarnconv.console.messages import print_json, print_runtime_message
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.result_view import Written, print_written, written_document
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf import target as gguf
from yarnconv.targets.onnx import target as onnx
from yarnconv.targets.onnx.reader import open_onnx
from yarnconv.targets.tensorrt import target as tensorrt
from yarnconv.targets.tensorrt.builder import Builder, RuntimeName
from yarnconv.targets.tensorrt.sidecar import is_engine
from yarnconv.targets.tensorrt.source import Source, from_checkpoint, from_onnx
from yarnconv.verify.components import require


def _show(plan: ConversionPlan, written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json(written_document(plan.rope, written))
    else:
        print_written(plan.rope, written)


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
        engine = tensorrt.emit(source, destination, options, builder, progress, print_runtime_message)
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
