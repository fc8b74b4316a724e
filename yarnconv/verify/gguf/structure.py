"""The structure verdict of a GGUF, and the artefact run as it is."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from yarnconv.artifact import check_free_space
from yarnconv.rope.scaling import LongRope
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.gguf.block_keys import QUERY_RANK
from yarnconv.targets.gguf.blocks import separate_heads
from yarnconv.targets.gguf.float_copy import VOCABULARY_TENSORS, Kept, copy_bytes, write_float_copy
from yarnconv.targets.gguf.placement import TensorPlacement, placements
from yarnconv.targets.gguf.reader import GgufFile, open_gguf
from yarnconv.targets.gguf.rope import CONTEXT_STEP
from yarnconv.targets.gguf.runtime import ACTIVATIONS_IN_HALF
from yarnconv.verify.activations import activations_in_half
from yarnconv.verify.case import kept_vocabulary
from yarnconv.verify.compare import Sharpness, narrowed
from yarnconv.verify.experts import kept_experts, with_experts
from yarnconv.verify.gguf.case import Case
from yarnconv.verify.passages import INSIDE, PREFIX, Passage, Tokens, make_passages
from yarnconv.verify.reference import Reference
from yarnconv.verify.report import AsIs
from yarnconv.verify.structure import (
    AS_IS_INSIDE,
    AS_IS_PREFIX,
    Judged,
    References,
    Run,
    as_is,
    compare_all,
    judge_copy,
    judge_evidence,
    measured_sharpness,
    not_held,
)
from yarnconv.verify.verdict import Verdict


def _copied_rows(copy: GgufFile, place: TensorPlacement) -> Float32Array | None:
    """One of the float32 copy's tensors as rows of the checkpoint's (values, where it is a column of them),
    mapped where it is as it stands.
    """
    if (stored := copy.tensors.get(place.name)) is None:
        return None  # of a layer beyond the copy's
    values: Float32Array = np.memmap(
        copy.path, dtype="<f4", mode="c", offset=stored.offset, shape=stored.shape
    )
    values = values.swapaxes(1, 2) if place.turned else values
    rows = values.reshape(-1, 1 if place.is_column else values.shape[-1])
    if place.interleave_heads is not None:
        rows = separate_heads(rows, place.interleave_heads).astype(np.float32)
    return rows if place.added == 0.0 else rows - np.float32(place.added)


def _copied_weights(copy: GgufFile, places: Sequence[TensorPlacement]) -> dict[str, Float32Array]:
    """The float32 copy's tensors by the checkpoint's names, mapped and not loaded where they stand as they
    are there.
    """
    found: dict[str, Float32Array] = {}
    for place in places:
        if (rows := _copied_rows(copy, place)) is None:
            continue
        expected = place.binding.expected
        if place.rows is None:
            found[expected.name] = rows.reshape(expected.shape)
            continue
        whole = found.setdefault(expected.name, np.empty(expected.shape, np.float32))
        flat, first = whole.reshape(-1, rows.shape[1]), 0
        for own in place.rows:
            flat[own.start : own.stop : own.step] = rows[first : first + len(own)]
            first += len(own)
    return found


def _run(case: Case, path: Path) -> Run:
    return lambda passages, advance: case.runner.logits(path, passages, advance)


def _unusable_tensor(case: Case) -> str | None:
    for place in case.places:
        stored = case.artefact.tensors.get(place.name)
        if stored is None or not place.fits(stored.shape):
            return f"{place.name} is missing" if stored is None else f"{place.name} has another shape"
    for name in VOCABULARY_TENSORS & case.artefact.tensors.keys():
        if case.artefact.tensors[name].shape[0] != case.plan.description.vocab_size:
            return f"{name} has no row for each entry of the vocabulary"
    return None


def _passages(
    case: Case, tokens: Tokens, *, prefix: int = PREFIX, inside: int = INSIDE
) -> tuple[Passage, ...]:
    """Of longrope both sets are judged: each in a context for which llama.cpp takes it, which is the whole
    context's size and not a request's.
    """
    rope = case.plan.rope
    scaling, original, target = rope.main, rope.original_context, rope.target_context
    make = partial(make_passages, tokens, prefix=prefix, inside=inside)
    if not isinstance(scaling, LongRope):
        return make(original_context=original, target_context=target)
    original, found = scaling.original_context, list[Passage]()
    largest = min(original // CONTEXT_STEP * CONTEXT_STEP, target)
    if largest:
        short = make(original_context=largest, target_context=largest)
        cells = max(len(passage.tokens) for passage in short)
        found = [replace(one, name=f"{one.name}, short set", bucket=0, context=cells) for one in short]
    if target > original:
        long = make(original_context=original, target_context=target)
        found += [replace(one, bucket=1, context=original + 1) for one in long]
    return tuple(found)


def _sharpness(case: Case, reference: Reference, passage: Passage, wanted: Float32Array) -> Sharpness:
    """What a passage can tell of a runtime that rounds angles, and looks some activations up."""
    rounding = case.runner.angle_rounding(case.plan.rope.main.rotary_dim // 2)
    exact = measured_sharpness(reference, passage, wanted, rounding)
    if case.runtime.activation not in ACTIVATIONS_IN_HALF:
        return exact
    with activations_in_half():
        looked_up = reference.logits(passage)
    return narrowed(exact, looked_up, wanted, "float16 in the activations")


def _judge_in(case: Case, directory: Path) -> Judged:
    """Write the float32 copy and hold what llama.cpp makes of it against the reference."""
    vocabulary = kept_vocabulary(case.tokens, case.plan.description.vocab_size, case.options.seed)
    passages = _passages(case, np.searchsorted(vocabulary, case.tokens).astype(np.int64))
    path = directory / "copy.gguf"
    used = case.artefact.scalar(f"{case.runtime.name}.expert_used_count", int, 0)
    experts = kept_experts(case.plan, used)
    plan = with_experts(case.plan, experts)
    told = {f"{case.runtime.name}.{QUERY_RANK}": 0} if _is_lite(case) else {}
    kept = Kept(layers=case.layers, vocabulary=vocabulary, experts=experts, told=told)
    size = copy_bytes(case.artefact, kept)
    check_free_space(path, size, "Free some space, set TMPDIR to another place, or lower --layers.")
    with case.progress.stage("Writing a float32 copy", size, is_bytes=True) as advance:
        write_float_copy(case.artefact, path, kept, advance)
    with open_gguf(path) as copy:
        weights = _copied_weights(copy, placements(plan, case.runtime))
    computing = case.options.computing
    references = References(plan, weights, layers=case.layers, computing=computing)
    evidence = compare_all(
        _run(case, path),
        references,
        passages,
        partial(_sharpness, case),
        runtime=case.runner.name,
        title=f"{case.layers} layers in float32",
        progress=case.progress,
    )
    always = case.options.diagnose
    return judge_evidence(evidence, references, always_diagnose=always, progress=case.progress)


def _is_lite(case: Case) -> bool:
    """Whether llama.cpp knows by the artefact's depth that no latent vector makes its queries."""
    return case.runtime.is_lite(case.all_layers, case.plan.description.vocab_size)


def _depth_that_matters(case: Case) -> str | None:
    """Why a copy of the first layers is not the model cut short, where it is not."""
    model, runtime = case.plan.description, case.runtime
    latent = model.layers[0].attention.latent
    # of no vocabulary that tells anything: a copy's is smaller
    if latent is not None and latent.query_rank is not None and runtime.is_lite(case.layers, 0):
        return (
            f"llama.cpp's {runtime.name} architecture makes queries without a latent vector in a model of "
            f"{case.layers} layers, as a copy would be: ask for another number of --layers"
        )
    if runtime.windows_at(case.all_layers) != runtime.windows_at(case.layers):
        return (
            f"llama.cpp's {runtime.name} architecture knows of windows by the number of layers, and takes "
            f"another model for the {case.layers} layers of a copy than for all {case.all_layers}: add "
            "--layers all"
        )
    whole, copy = (runtime.attention_scale(model, layers) for layers in (case.all_layers, case.layers))
    if runtime.multipliers or math.isclose(whole, copy):
        return None
    return (
        f"llama.cpp takes another attention scale for {case.all_layers} layers than for the {case.layers} of "
        f"a copy ({whole:.4g}, {copy:.4g}): add --layers all"
    )


def judge_structure(case: Case) -> Judged:
    """Run a float32 copy and hold it against the reference, window by window.

    Raises RuntimeCrashed where llama.cpp dies of it.
    """
    if (problem := _unusable_tensor(case) or _depth_that_matters(case)) is not None:
        return Judged(verdict=Verdict(outcome="not_judged", reason=problem))
    return judge_copy(partial(_judge_in, case), case.artefact.path, case.layers)


def run_as_is(case: Case) -> AsIs:
    """Run the artefact untouched; against the checkpoint's own weights where those are few enough.

    Raises RuntimeRefused where llama.cpp loads its float32 copy but not the file itself.
    """
    passages = _passages(case, case.tokens, prefix=AS_IS_PREFIX, inside=AS_IS_INSIDE)
    return as_is(
        _run(case, case.artefact.path),
        case.plan,
        passages,
        not_held,
        size=sum(file.size for file in case.artefact.files),
        runtime=case.runner.name,
        progress=case.progress,
        computing=case.options.computing,
        whatever_the_size=case.options.layers == 0,
    )
