"""`yarnconv check`: what it reads, whom it asks, and the exit code that follows."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.checkpoint.hub import ALL_FILES, locate
from yarnconv.checkpoint.json_files import MEBIBYTE, read_bytes
from yarnconv.cli.processors import processors
from yarnconv.cli.reports import ReportFiles
from yarnconv.console.baseline_view import print_comparison
from yarnconv.console.check_view import print_report
from yarnconv.console.messages import SCHEMA_VERSION, print_json, print_written
from yarnconv.console.progress import TerminalProgress
from yarnconv.console.step_summary import append_step_summary
from yarnconv.errors import BadInput
from yarnconv.progress import Progress
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.targets.onnx.extension import RUNTIME_OPERATORS
from yarnconv.targets.onnx.files import MODEL_FILE
from yarnconv.targets.onnx.reader import open_onnx
from yarnconv.targets.tensorrt.files import ENGINE_FILE, SIDECAR, engine_directory, is_engine
from yarnconv.targets.tensorrt.sidecar import read_sidecar
from yarnconv.verify.baseline import (
    DEFAULT_MARGIN,
    LARGEST_MARGIN,
    LEAST_MARGIN,
    Baseline,
    read_baseline,
    refuse_other_settings,
)
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.components import require
from yarnconv.verify.computing import Computing, parse_precision
from yarnconv.verify.gguf.check import check_gguf
from yarnconv.verify.hf.check import check_hf, is_checkpoint
from yarnconv.verify.onnx.check import check_onnx
from yarnconv.verify.placing import choose_device
from yarnconv.verify.report import CheckReport
from yarnconv.verify.result import CheckResult
from yarnconv.verify.runners.onnx_runtime import parse_provider
from yarnconv.verify.tensorrt.check import check_tensorrt
from yarnconv.verify.weights import parse_coverage

Judge = Callable[[Path, Path, RopeRequest, CheckOptions, Progress], CheckReport]
HOLDS, DOES_NOT_HOLD, NOT_JUDGED = 0, 1, 5
LONGEST_TEXT = 16 * MEBIBYTE


def _parse_layers(text: str | None) -> int | None:
    if text is None:
        return None
    if text == "all":
        return 0
    if not text.isdecimal() or len(text) > 6 or int(text) == 0:
        raise BadInput(f"{text!r} is no number of layers", where="--layers", fix="Write it as 2 or all.")
    return int(text)


def _read_tokens(path: Path | None) -> list[int] | None:
    """Token ids, as a JSON list or separated by white space or commas."""
    if path is None:
        return None
    words = read_bytes(path, LONGEST_TEXT).decode("utf-8", errors="replace")
    parts = words.replace("[", " ").replace("]", " ").replace(",", " ").split()
    if bad := [part for part in parts if not part.isdecimal() or len(part) > 10]:
        raise BadInput(f"{bad[0][:40]!r} is no token id", where=path.name)
    return [int(part) for part in parts]


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return read_bytes(path, LONGEST_TEXT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 ({error.reason})", where=path.name) from None


def _read_baseline(path: Path | None, margin: float | None) -> tuple[Baseline | None, float]:
    """The earlier report, and by how many times a figure may be worse."""
    if path is None and margin is not None:
        raise BadInput("there is nothing to hold against", where="--margin", fix="Give --baseline with it.")
    if margin is not None and not LEAST_MARGIN <= margin <= LARGEST_MARGIN:
        what = f"{margin:g} is not between {LEAST_MARGIN:g} and {LARGEST_MARGIN:g}"
        raise BadInput(what, where="--margin")
    baseline = None if path is None else read_baseline(path, SCHEMA_VERSION)
    return baseline, DEFAULT_MARGIN if margin is None else margin


def _sample(options: CheckOptions) -> dict[str, str]:
    """What was run and compared: another check whose figures are held against these has to do the same."""
    tokens = "random"
    for name, given in (("text", options.text), ("tokens", options.tokens)):
        if given is not None:
            tokens = f"--{name}, SHA-256 {hashlib.sha256(repr(given).encode()).hexdigest()}"
    reference = f"{options.computing.dtype} on {options.computing.device}"
    return {"tokens": tokens, "weights": options.coverage, "reference": reference}


def _locate_reference(
    reference: str | None, config: Path | None, *, weights: str, revision: str | None
) -> Path:
    """The checkpoint's directory, or the config.json that stands for it."""
    if (reference is None) == (config is None):
        found = "neither is given" if config is None else "both are given"
        fix = "Give the checkpoint, or its config.json alone."
        raise BadInput(found, where="--reference, --reference-config", fix=fix)
    if config is None:
        assert reference is not None
        return locate(reference, revision=revision, files=ALL_FILES)
    if weights == "all":
        what = "there are no weights to compare with beside a config.json"
        raise BadInput(what, where="--weights all", fix="Give the checkpoint with --reference.")
    if revision is not None:
        raise BadInput(f"{config} is a local file, which has no revisions", where="--revision")
    if not config.is_file():
        what = "is no file" if config.exists() else "no such file"
        raise BadInput(what, where=str(config), fix="Give a config.json; a checkpoint with --reference.")
    return config


def _judge_of(artefact: Path, *, weights: str, max_context: int | None, provider: str) -> Judge:
    """The check of the artefact's kind, once the artefact has been opened: whatever is wrong with it shows
    before a model is downloaded.
    """
    if is_engine(artefact):
        require("check,onnx", "torch", "transformers", "onnx", "onnxruntime")
        if provider != "cpu":
            raise BadInput("is for ONNX models", where="--provider", fix="An engine runs where it can.")
        if weights == "all":
            what = "of an engine rows are sampled, and no more"
            raise BadInput(what, where="--weights all", fix="Leave it out.")
        read_sidecar(artefact)
        return partial(check_tensorrt, max_context=max_context, workers=processors())
    if (artefact / ENGINE_FILE).exists():
        fix = "An engine is judged with what was written beside it."
        raise BadInput(f"there is an engine in it, and no {SIDECAR}", where=str(artefact), fix=fix)
    if is_checkpoint(artefact) and not (artefact / MODEL_FILE).exists():
        require("check", "torch", "transformers")
        if max_context is not None or provider != "cpu":
            where = "--provider" if max_context is None else "--max-context"
            raise BadInput("is for ONNX models", where=where)
        with open_checkpoint(artefact):
            return check_hf
    if artefact.is_dir() or artefact.suffix == ".onnx":
        require("check,onnx", "torch", "transformers", "onnx", "onnxruntime")
        with open_onnx(artefact, unknown=RUNTIME_OPERATORS):
            return partial(check_onnx, max_context=max_context, provider=parse_provider(provider))
    require("check,llama", "torch", "transformers", "llama_cpp")
    if not artefact.is_file():
        fix = "Give a GGUF (of a split model the first part), an ONNX model or an engine's directory."
        raise BadInput("no such file", where=str(artefact), fix=fix)
    if max_context is not None or provider != "cpu":
        raise BadInput("is for ONNX models", where="--provider" if max_context is None else "--max-context")
    with open_gguf(artefact):
        return check_gguf


def run_check(
    artefact: Path,
    reference: str | None,
    request: RopeRequest,
    *,
    reference_config: Path | None,
    layers: str | None,
    weights: str,
    text: Path | None,
    tokens: Path | None,
    seed: int,
    device: str,
    dtype: str,
    diagnose: bool,
    max_context: int | None,
    provider: str,
    revision: str | None,
    files: ReportFiles,
    baseline: Path | None,
    margin: float | None,
    command: str,
    as_json: bool,
) -> int:
    """Check, show, and give the exit code. command: what makes the same check again. Raises BadInput, among
    others of a baseline that turns out to be none of this artefact: once the report is shown and written.
    """
    if text is not None and tokens is not None:
        raise BadInput("both are given", where="--text, --tokens", fix="Give one of them.")
    artefact = engine_directory(artefact)
    files.refuse(artefact, {"--baseline": baseline, "--text": text, "--tokens": tokens})
    earlier, margin = _read_baseline(baseline, margin)
    judge = _judge_of(artefact, weights=weights, max_context=max_context, provider=provider)
    options = CheckOptions(
        layers=_parse_layers(layers),
        coverage=parse_coverage(weights),
        text=_read_text(text),
        tokens=_read_tokens(tokens),
        seed=seed,
        diagnose=diagnose,
        computing=Computing(device=choose_device(device), dtype=parse_precision(dtype)),
    )
    if earlier is not None:
        known = {"seed": seed, **{f"sample.{name}": value for name, value in _sample(options).items()}}
        refuse_other_settings(earlier, known)
    place = _locate_reference(reference, reference_config, weights=weights, revision=revision)
    files.refuse_reference(place)
    report = judge(artefact, place, request, options, TerminalProgress(enabled=not as_json))
    result = CheckResult(report=report, sample=_sample(options), command=command)
    if earlier is not None:
        result = result.held_against(earlier, margin)
    if as_json:
        print_json(result.document)
    else:
        print_report(report)
        if result.comparison is not None:
            print_comparison(result.comparison)
    written = files.write(result)
    if not as_json:
        print_written(written)
    append_step_summary(result)
    if result.misfit is not None:
        raise result.misfit
    return {True: HOLDS, False: DOES_NOT_HOLD, None: NOT_JUDGED}[result.passes]
