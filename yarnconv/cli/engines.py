"""The command for TensorRT engines: trt."""

from pathlib import Path
from typing import Annotated

import typer

from yarnconv.cli.options import takes_rope_options
from yarnconv.cli.root import (
    AsJson,
    Emit,
    Force,
    MaxContext,
    OutputDirectory,
    Revision,
    app,
    ends_with_exit_code,
    parse_size,
)
from yarnconv.rope.request import RopeRequest

ENGINE = "Engine options"


def _option(name: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, help=text, rich_help_panel=ENGINE)
    return option


@app.command()
@ends_with_exit_code
@takes_rope_options
def trt(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint directory, Hub id, or directory of `yarnconv onnx --kv concat`.",
        ),
    ],
    request: RopeRequest,
    runtime: Annotated[str, typer.Option("--runtime", help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (the checkpoint's own 16 bits), fp16, bf16, fp32, int4, fp8.")
    ] = "auto",
    max_context: MaxContext = None,
    max_batch: Annotated[int | None, _option("--max-batch", "Most sequences at once [1].")] = None,
    max_input: Annotated[
        int | None, _option("--max-input", "Most new tokens of a sequence at once [2048].")
    ] = None,
    profiles: Annotated[
        Path | None,
        _option("--profiles", "TOML file of profiles instead."),
    ] = None,
    compute_capability: Annotated[
        str | None,
        _option("--compute-capability", "Such as 8.9,12.0 (RTX; default: all from 8.0 on that it knows)."),
    ] = None,
    opt_level: Annotated[int | None, _option("--opt-level", "0 to 5; TensorRT's own is 3.")] = None,
    workspace: Annotated[
        str | None, _option("--workspace", "Most GPU memory beside weights and cache, such as 4G.")
    ] = None,
    weight_streaming: Annotated[
        bool, _option("--weight-streaming", "Let weights stay in host memory that do not fit the GPU.")
    ] = False,
    last_token_only: Annotated[
        bool, typer.Option("--last-token-only/--all-logits", help="Logits of the last token, or of all.")
    ] = True,
    runtime_log: Annotated[
        str, typer.Option("--runtime-log", help="What TensorRT says: error, warning, info or verbose.")
    ] = "warning",
    force: Force = False,
    emit: Emit = None,
    output: OutputDirectory = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Build a TensorRT engine that carries the plan, or refuse. It takes no GPU with tensorrt-rtx."""
    from yarnconv.cli.convert import convert_to_tensorrt
    from yarnconv.cli.processors import processors
    from yarnconv.targets.beside import parse_emission
    from yarnconv.targets.tensorrt.builder import find_runtime, parse_capabilities, parse_level
    from yarnconv.targets.tensorrt.target import TensorRtOptions

    options = TensorRtOptions(
        dtype=dtype,
        max_context=max_context,
        max_batch=max_batch,
        max_input=max_input,
        profiles=profiles,
        compute_capabilities=parse_capabilities(compute_capability),
        optimization_level=opt_level,
        workspace=parse_size(workspace, "--workspace"),
        weight_streaming=weight_streaming,
        last_token_only=last_token_only,
        level=parse_level(runtime_log),
        replace=force,
        workers=processors(),
    )
    convert_to_tensorrt(
        model,
        request,
        options,
        find_runtime(runtime),
        wanted=parse_emission(emit, "trt"),
        output=output,
        revision=revision,
        as_json=as_json,
    )
