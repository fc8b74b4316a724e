"""The commands: plan, gguf, onnx, check."""

from pathlib import Path
from typing import Annotated

import typer

from yarnconv.cli.existing import is_gguf, is_onnx, refuse_conversion_options, refuse_extension_options
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
    parse_place,
    parse_size,
)
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest


def _parse_tokens(text: str | None) -> float | None:
    if text is None:
        return None
    scale = {"M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper())
    try:
        tokens = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        tokens = 0.0
    if not 0 < tokens < 1e18:
        raise BadInput(
            f"{text!r} is no number of tokens",
            where="--pretraining-tokens",
            fix="Write it as 2T or 300B.",
        )
    return tokens


@app.command()
@ends_with_exit_code
@takes_rope_options
def plan(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL|GGUF", help="Checkpoint directory, Hub id, or a GGUF to extend.")
    ],
    request: RopeRequest,
    revision: Revision = None,
    pretraining_tokens: Annotated[
        str | None,
        typer.Option("--pretraining-tokens", help="Such as 2T; gives the fine-tune budget in tokens."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what would be embedded: regimes, temperature, memory. Writes nothing."""
    from yarnconv.checkpoint.checkpoint import read_config
    from yarnconv.checkpoint.hub import CONFIG_FILES, locate
    from yarnconv.console.messages import print_json
    from yarnconv.console.plan_view import plan_document, print_plan
    from yarnconv.rope_plan import plan_of_any

    if is_gguf(model):
        from yarnconv.cli.extend import plan_gguf

        refuse_conversion_options(context, "a GGUF")
        plan_gguf(Path(model), request, as_json=as_json)
        return
    tokens = _parse_tokens(pretraining_tokens)
    directory = locate(model, revision=revision, files=CONFIG_FILES)
    config = read_config(directory)
    rope, description = plan_of_any(config, request)
    model_type = config.get("model_type")
    if as_json:
        print_json(plan_document(rope, description, directory, model_type, tokens))
    else:
        print_plan(rope, description, directory, model_type, tokens)


@app.command()
@ends_with_exit_code
@takes_rope_options
def gguf(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|GGUF", help="Checkpoint directory, Hub id, or a GGUF to extend."),
    ],
    request: RopeRequest,
    outtype: Annotated[
        str,
        typer.Option(
            "--outtype",
            help="auto (the checkpoint's own), f32, f16, bf16, q8_0; or one of llama.cpp's, such as q4_k_m.",
        ),
    ] = "auto",
    imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", help="Importance matrix, for llama.cpp's types."),
    ] = None,
    pre: Annotated[
        str | None,
        typer.Option("--pre", help="llama.cpp's pre-tokenizer, where it is not recognised."),
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Most tensor bytes in one file, such as 5G.")
    ] = None,
    only_split: Annotated[
        str | None,
        typer.Option(
            "--only-split",
            metavar="K/N",
            help="Write the K-th of the N files only, in a job of its own; the first writes --emit's too.",
        ),
    ] = None,
    split_jobs: Annotated[
        str | None,
        typer.Option(
            "--split-jobs",
            metavar="FORM",
            help="Convert nothing: list the files, or write a job file for slurm or kubernetes, a job each.",
        ),
    ] = None,
    trust_generic_keys: Annotated[
        bool,
        typer.Option(
            "--trust-generic-keys", help="Extend a GGUF of an architecture whose keys are not known here."
        ),
    ] = False,
    allow_runtime_truncation: Annotated[
        bool,
        typer.Option(
            "--allow-runtime-truncation",
            help="Where llama.cpp cannot be told truncate = false (gpt-oss): write what it rounds to.",
        ),
    ] = False,
    emit: Emit = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="PATH", help="File or directory to write to [.]."),
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write a GGUF for llama.cpp that carries the plan, or refuse. Of a GGUF the tensors stay as they are."""
    from yarnconv.targets.beside import parse_emission

    if is_gguf(model):
        from yarnconv.cli.extend import extend_gguf

        refuse_conversion_options(context, "a GGUF")
        extend_gguf(
            Path(model),
            request,
            trust_generic_keys=trust_generic_keys,
            wanted=parse_emission(emit, "gguf"),
            output=parse_place(output),
            as_json=as_json,
        )
        return
    refuse_extension_options(context)
    from yarnconv.cli.convert import convert_to_gguf
    from yarnconv.cli.split_jobs import parse_jobs
    from yarnconv.targets.gguf.split import parse_part

    most = parse_size(split_max_size, "--split-max-size")
    convert_to_gguf(
        model,
        request,
        outtype=outtype,
        pre=pre,
        split_max_size=most,
        part=parse_part(only_split, most),
        jobs=parse_jobs(context, most),
        wanted=parse_emission(emit, "gguf"),
        imatrix=imatrix,
        allow_runtime_truncation=allow_runtime_truncation,
        output=parse_place(output),
        revision=revision,
        as_json=as_json,
    )


@app.command()
@ends_with_exit_code
@takes_rope_options
def onnx(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|ONNX", help="Checkpoint directory, Hub id, or an ONNX model."),
    ],
    request: RopeRequest,
    dtype: Annotated[
        str, typer.Option("--dtype", help="fp32, fp16, bf16 (for GPUs); int4 or fp8 (matrices).")
    ] = "fp32",
    kv: Annotated[str, typer.Option("--kv", help="in-place (opset 24) or concat (opset 23).")] = "in-place",
    dialect: Annotated[
        str, typer.Option("--dialect", help="standard, or ort-cuda (GroupQueryAttention, no padding).")
    ] = "standard",
    max_context: MaxContext = None,
    last_token_only: Annotated[
        bool, typer.Option("--last-token-only", help="Logits of the last token instead of all.")
    ] = False,
    int4_head: Annotated[
        bool, typer.Option("--int4-head/--no-int4-head", help="int4, fp8: the output head too.")
    ] = True,
    int4_embeddings: Annotated[
        bool, typer.Option("--int4-embeddings/--no-int4-embeddings", help="int4: the embeddings too.")
    ] = False,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Hard-link the checkpoint's files instead of converting.")
    ] = False,
    force: Force = False,
    emit: Emit = None,
    output: OutputDirectory = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write an ONNX decoder for ONNX Runtime that carries the plan, or refuse. Of an ONNX model it exchanges
    the tables.
    """
    from yarnconv.cli.convert import convert_to_onnx
    from yarnconv.cli.extend_onnx import extend_onnx
    from yarnconv.cli.processors import processors
    from yarnconv.targets.beside import parse_emission
    from yarnconv.targets.onnx.extension import ExtensionOptions
    from yarnconv.targets.onnx.target import OnnxOptions, parse_dialect, parse_kv

    if is_onnx(model):
        refuse_conversion_options(context, "an ONNX model")
        extension = ExtensionOptions(max_context=max_context, replace=force, workers=processors())
        wanted = parse_emission(emit, "onnx")
        extend_onnx(model, request, extension, wanted=wanted, output=output, as_json=as_json)
        return
    options = OnnxOptions(
        dtype=dtype,
        kv=parse_kv(kv),
        dialect=parse_dialect(dialect),
        max_context=max_context,
        last_token_only=last_token_only,
        int4_head=int4_head,
        int4_embeddings=int4_embeddings,
        link_weights=link_weights,
        replace=force,
        workers=processors(),
    )
    convert_to_onnx(
        model,
        request,
        options,
        wanted=parse_emission(emit, "onnx"),
        output=output,
        revision=revision,
        as_json=as_json,
    )


@app.command()
@ends_with_exit_code
@takes_rope_options
def check(
    context: typer.Context,
    artefact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTEFACT",
            help="GGUF (of a split model the first file), ONNX directory or file, or directory of a "
            "checkpoint or an engine.",
        ),
    ],
    request: RopeRequest,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="MODEL", help="Checkpoint directory, or a Hub id.")
    ] = None,
    reference_config: Annotated[
        Path | None,
        typer.Option("--reference-config", help="Its config.json alone, instead: weights are not judged."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Layers to run, or all (default: the fewest that reach every kind)."),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="sampled (rows of every tensor), all, or none.")
    ] = "sampled",
    text: Annotated[Path | None, typer.Option("--text", help="Text to run (its first 1024 tokens).")] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="Token ids to run (the first 1024).")
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option("--max-context", help="Positions of the tables (default: original x factor)."),
    ] = None,
    provider: Annotated[str, typer.Option("--provider", help="ONNX: cpu or cuda.")] = "cpu",
    device: Annotated[str, typer.Option("--device", help="Of the reference: auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the reference: float32, float64, bfloat16 or float16.")
    ] = "float32",
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Name what explains the logits, even of a right artefact.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of tokens and samples.")] = 0,
    output_json: Annotated[
        Path | None, typer.Option("--output-json", help="File to write the report to as JSON.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="File to write it to as JUnit XML.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="File to write it to as one web page.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="FILE", help="Earlier --output-json; exit 1 if a figure is worse."
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", help="How many times worse a figure may be [1.5].")
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Judge an artefact with its own runtime against the PyTorch reference."""
    from yarnconv.cli.check import run_check
    from yarnconv.cli.reports import ReportFiles, command_again

    code = run_check(
        artefact,
        reference,
        request,
        reference_config=reference_config,
        layers=layers,
        weights=weights,
        text=text,
        tokens=tokens,
        max_context=max_context,
        provider=provider,
        device=device,
        dtype=dtype,
        diagnose=diagnose,
        seed=seed,
        revision=revision,
        files=ReportFiles(output_json=output_json, junit=junit, html=html),
        baseline=baseline,
        margin=margin,
        command=command_again(context),
        as_json=as_json,
    )
    raise typer.Exit(code)
