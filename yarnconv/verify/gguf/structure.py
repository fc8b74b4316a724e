"""The structure verdict of a GGUF, and the artefact run as it is.

llama.cpp runs a float32 copy of the artefact (its own metadata, its own weights, its first layers) against
transformers with the same weights and the expected plan. Whether those weights are the checkpoint's is the
weights verdict's question, so a quantised file is judged as sharply as a float one.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from yarnconv.artifact import check_free_space
from yarnconv.checkpoint.floats import to_float32
from yarnconv.errors import NotJudged, RuntimeCrashed
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.gguf.blocks import separate_heads
from yarnconv.targets.gguf.float_copy import VOCABULARY_TENSORS, copy_bytes, write_float_copy
from yarnconv.targets.gguf.placement import TensorPlacement
from yarnconv.targets.gguf.reader import GgufFile, open_gguf
from yarnconv.verify.compare import Sharpness, Window, compare_passage, sharpness
from yarnconv.verify.gguf.case import Case
from yarnconv.verify.passages import Passage, make_passages
from yarnconv.verify.reference import Reference
from yarnconv.verify.report import AsIs, Verdict
from yarnconv.verify.runners.llama_cpp import RuntimeRefused

AS_IS_PREFIX, AS_IS_INSIDE = 16, 32  # every layer of a large model takes its time
AS_IS_PASSAGES = frozenset({"inside", "far end"})
AS_IS_REFERENCE_BYTES = 2 * 10**9  # float32 weights of a full-depth reference that is still made
AS_IS_SHARE_OF_MEMORY = 0.8
NOT_HELD = Sharpness(allowed=math.inf)  # to any tolerance
NOT_RUN = AsIs(windows=(), note="not run, or refused by llama.cpp")


def _copied_weights(copy: GgufFile, places: Sequence[TensorPlacement]) -> dict[str, Float32Array]:
    """The float32 copy's tensors by the checkpoint's names, mapped and not loaded."""
    weights: dict[str, Float32Array] = {}
    for place in places:
        if (stored := copy.tensors.get(place.name)) is None:
            continue  # of a layer beyond the copy's
        values: Float32Array = np.memmap(
            copy.path, dtype="<f4", mode="c", offset=stored.offset, shape=stored.shape
        )
        if place.interleave_heads is not None:
            rows = values.reshape(stored.shape[0], -1)
            separated = separate_heads(rows, place.interleave_heads).astype(np.float32)
            values = np.ascontiguousarray(separated).reshape(stored.shape)
        weights[place.binding.expected.name] = values
    return weights


def _source_weights(places: Sequence[TensorPlacement]) -> dict[str, Float32Array]:
    """The checkpoint's own weights in float32."""
    return {
        place.binding.expected.name: np.array(
            to_float32(place.binding.source.load(), place.binding.source.dtype)
        )
        for place in places
    }


def _sharpness(case: Case, reference: Reference, passage: Passage, wanted: Float32Array) -> Sharpness:
    """What the passage can tell on this model, from the reference with its frequencies disturbed."""
    pairs = case.plan.rope.main.rotary_dim // 2
    with reference.disturbed(case.runner.angle_rounding(pairs)):
        rounded = reference.logits(passage)
    with reference.disturbed(np.ones(pairs)):
        doubled = reference.logits(passage)
    return sharpness(wanted, rounded, doubled)


def _compare_all(
    case: Case,
    path: Path,
    reference: Reference,
    passages: Sequence[Passage],
    title: str,
    sharpness_of: Callable[[Passage, Float32Array], Sharpness],
) -> list[Window]:
    with case.progress.stage(f"llama.cpp, {title}", len(passages)) as advance:
        found = case.runner.logits(path, passages, advance)
    windows: list[Window] = []
    with case.progress.stage(f"Reference, {title}", len(passages)) as advance:
        for passage, logits in zip(passages, found, strict=True):
            wanted = reference.logits(passage)
            windows += compare_passage(passage, logits, wanted, sharpness=sharpness_of(passage, wanted))
            advance(1)
    return windows


def _conclude(windows: Sequence[Window]) -> Verdict:
    bad = [w for w in windows if w.first_bad_position is not None and w.blind is None]
    blind = [window for window in windows if window.blind is not None]
    worst = max(bad or windows, key=lambda window: window.relative_max)
    if bad:
        first = min(window.first_bad_position or 0 for window in bad)
        reason = (
            f"{len(bad)} of {len(windows)} windows lie outside their tolerance, the first position that does "
            f"is {first}; relative error up to {worst.relative_max:.2g} ({worst.name}, {worst.phase})"
        )
        return Verdict(outcome="fails", reason=reason)
    if blind:
        reason = f"{len(blind)} of {len(windows)} windows cannot tell ({blind[0].name}: {blind[0].blind})"
        return Verdict(outcome="not_judged", reason=reason)
    reason = f"{len(windows)} windows, relative error up to {worst.relative_max:.2g}"
    return Verdict(outcome="holds", reason=reason)


def _unusable_tensor(case: Case) -> str | None:
    for place in case.places:
        stored = case.artefact.tensors.get(place.name)
        if stored is None or stored.shape != place.binding.source.shape:
            return f"{place.name} is missing" if stored is None else f"{place.name} has another shape"
    for name in VOCABULARY_TENSORS & case.artefact.tensors.keys():
        if case.artefact.tensors[name].shape[0] != case.plan.description.vocab_size:
            return f"{name} has no row for each entry of the vocabulary"
    return None


def _float_copy_windows(case: Case, directory: Path) -> list[Window]:
    """Write the float32 copy and hold what llama.cpp makes of it against the reference."""
    vocabulary = case.kept_vocabulary()
    passages = make_passages(
        np.searchsorted(vocabulary, case.tokens).astype(np.int64),
        original_context=case.plan.rope.original_context,
        target_context=case.plan.rope.target_context,
    )
    path = directory / "copy.gguf"
    size = copy_bytes(case.artefact, case.layers, len(vocabulary))
    check_free_space(path, size, "Free some space, set TMPDIR to another place, or lower --layers.")
    with case.progress.stage("Writing a float32 copy", size, is_bytes=True) as advance:
        write_float_copy(case.artefact, path, layers=case.layers, vocabulary=vocabulary, advance=advance)
    with open_gguf(path) as copy:
        reference = Reference(case.plan, _copied_weights(copy, case.places), layers=case.layers)
    return _compare_all(
        case,
        path,
        reference,
        passages,
        f"{case.layers} layers in float32",
        lambda passage, wanted: _sharpness(case, reference, passage, wanted),
    )


def judge_structure(case: Case) -> tuple[Verdict, list[Window]]:
    """Run a float32 copy and hold it against the reference, window by window.

    Raises RuntimeCrashed where llama.cpp dies of it.
    """
    if (problem := _unusable_tensor(case)) is not None:
        return Verdict(outcome="not_judged", reason=problem), []
    with tempfile.TemporaryDirectory(prefix="yarnconv-check-") as directory:
        try:
            windows = _float_copy_windows(case, Path(directory))
        except NotJudged as error:
            return Verdict(outcome="not_judged", reason=str(error)), []
        except RuntimeRefused as error:
            return Verdict(outcome="fails", reason=error.what), []
        except RuntimeCrashed as error:
            where = f"{case.artefact.path} (a float32 copy of its first {case.layers} layers)"
            raise RuntimeCrashed(error.what, where=where, fix=error.fix) from None
    return _conclude(windows), windows


def run_as_is(case: Case) -> AsIs:
    """Run the artefact untouched; against the checkpoint's own weights where those are few enough.

    Raises RuntimeRefused where llama.cpp loads its float32 copy but not the file itself.
    """
    size = sum(file.size for file in case.artefact.files)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > AS_IS_SHARE_OF_MEMORY * memory:
        note = f"not run: its {size / 1e9:.3g} GB do not fit into {memory / 1e9:.3g} GB of memory"
        return AsIs(windows=(), note=note)
    passages = [
        passage
        for passage in make_passages(
            case.tokens,
            original_context=case.plan.rope.original_context,
            target_context=case.plan.rope.target_context,
            prefix=AS_IS_PREFIX,
            inside=AS_IS_INSIDE,
        )
        if passage.name in AS_IS_PASSAGES
    ]
    title = f"all {case.all_layers} layers as they are"
    needed = 4 * sum(prod(place.binding.source.shape) for place in case.places)
    if needed <= AS_IS_REFERENCE_BYTES:
        reference = Reference(case.plan, _source_weights(case.places), layers=case.all_layers)
        windows = _compare_all(
            case, case.artefact.path, reference, passages, title, lambda passage, wanted: NOT_HELD
        )
        return AsIs(windows=windows, note=f"{title}, against the checkpoint's own weights")
    with case.progress.stage(f"llama.cpp, {title}", len(passages)) as advance:
        found = case.runner.logits(case.artefact.path, passages, advance)
    finite = all(np.isfinite(logits).all() for logits in found)
    return AsIs(
        windows=(),
        note=f"{title}: {sum(map(len, found))} positions, all logits {'finite' if finite else 'NOT FINITE'}; "
        f"not compared, a reference of all layers would take {needed / 1e9:.3g} GB",
    )
