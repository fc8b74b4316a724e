"""`yarnconv check`: what it reads, whom it asks, and the exit code that follows."""

from pathlib import Path

from yarnconv.artifact import check_directory, staged
from yarnconv.checkpoint.hub import ALL_FILES, locate
from yarnconv.checkpoint.json_files import MEBIBYTE, read_bytes
from yarnconv.console.check_view import print_report
from yarnconv.console.messages import json_text, print_json
from yarnconv.console.progress import TerminalProgress
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.components import require
from yarnconv.verify.gguf.check import check_gguf
from yarnconv.verify.report import report_document
from yarnconv.verify.weights import parse_coverage

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


def _check_report_path(path: Path, artefact: Path, reference: Path) -> None:
    """Refuse before the work what would fail after it, or destroy what was judged."""
    check_directory(path.parent)
    if path.exists() and not path.is_file():
        raise BadInput("is no regular file", where=str(path), fix="Correct --output-json.")
    if path.resolve() == artefact.resolve() or path.resolve().parent == reference.resolve():
        raise BadInput(
            "would be written over the artefact or into the checkpoint",
            where=str(path),
            fix="Correct --output-json.",
        )


def _write_json(document: dict[str, object], path: Path) -> None:
    with staged([path]) as temporary:
        temporary[0].write_text(json_text(document), encoding="utf-8")


def run_check(
    artefact: Path,
    reference: str,
    request: RopeRequest,
    *,
    layers: str | None,
    weights: str,
    text: Path | None,
    tokens: Path | None,
    seed: int,
    revision: str | None,
    output_json: Path | None,
    as_json: bool,
) -> int:
    """Check, show, and give the exit code."""
    require("check,llama", "torch", "transformers", "llama_cpp")
    if text is not None and tokens is not None:
        raise BadInput("both are given", where="--text, --tokens", fix="Give one of them.")
    if not artefact.is_file():
        what = "a directory, not a GGUF" if artefact.is_dir() else "no such file"
        raise BadInput(what, where=str(artefact), fix="Give the GGUF; of a split model the first part.")
    with open_gguf(artefact):
        pass  # whatever is wrong with it shows before a model is downloaded
    options = CheckOptions(
        layers=_parse_layers(layers),
        coverage=parse_coverage(weights),
        text=_read_text(text),
        tokens=_read_tokens(tokens),
        seed=seed,
    )
    directory = locate(reference, revision=revision, files=ALL_FILES)
    if output_json is not None:
        _check_report_path(output_json, artefact, directory)
    report = check_gguf(artefact, directory, request, options, TerminalProgress(enabled=not as_json))
    document = report_document(report)
    if as_json:
        print_json(document)
    else:
        print_report(report)
    if output_json is not None:
        _write_json(document, output_json)
    return {True: HOLDS, False: DOES_NOT_HOLD, None: NOT_JUDGED}[report.parity]
