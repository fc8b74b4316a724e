"""The structure verdict of an extended checkpoint: what transformers makes of its config.json, with its own
weights in float32, against the model that the plan describes.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import to_float32
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope.scaling import DynamicNtk, LongRope, Scaling, Unscaled, is_dynamic
from yarnconv.rope.tables import Float32Array, RopeTables, buckets, frozen_scalings, ntk_base
from yarnconv.verify.case import kept_vocabulary
from yarnconv.verify.computing import LazyWeights, held, shape_of, writable
from yarnconv.verify.hf.case import Case
from yarnconv.verify.passages import Passage, make_passages
from yarnconv.verify.reference import TransformersModel, read_directory_config
from yarnconv.verify.report import AsIs
from yarnconv.verify.structure import (
    AS_IS_INSIDE,
    AS_IS_PREFIX,
    Judged,
    References,
    Run,
    SharpnessOf,
    as_is,
    compare_all,
    judge_evidence,
    measured_sharpness,
    not_held,
)
from yarnconv.verify.verdict import Verdict
from yarnconv.worker import RuntimeRefused

NAME = "transformers"
FLOAT32_ROUNDING = 2.0**-24  # of a frequency: both sides compute them alike
VOCABULARY_ROLES = frozenset({"token_embedding", "output_head"})


def _weights(case: Case, layers: int, vocabulary: NDArray[np.intp] | None) -> Mapping[str, Float32Array]:
    """The artefact's own, of its first layers, by the checkpoint's names. vocabulary: rows to keep of the
    embedding and the head, None for all.
    """
    kept = [b.expected for b in case.plan.bindings if b.expected.layer is None or b.expected.layer < layers]
    shapes = {one.name: one.shape for one in kept}
    cut = {one.name for one in kept if one.role in VOCABULARY_ROLES and vocabulary is not None}
    if vocabulary is not None:
        shapes |= {name: (len(vocabulary), shapes[name][1]) for name in cut}

    def make(name: str) -> Float32Array:
        tensor = case.artefact.tensors[name]
        values = tensor.load()
        return writable(to_float32(values[vocabulary] if name in cut else values, tensor.dtype))

    return held(LazyWeights(shapes, make), case.options.computing)


def _loaded(case: Case, weights: Mapping[str, Float32Array], layers: int) -> TransformersModel:
    """What transformers makes of the artefact's config.json. Raises RuntimeRefused where it makes nothing."""
    plan = case.plan
    vocab_size, _ = shape_of(weights, plan.family.tensors["token_embedding"])
    try:
        with tempfile.TemporaryDirectory(prefix="yarnconv-check-") as directory:
            config = read_directory_config(
                Path(directory), case.artefact.config, plan, layers=layers, vocab_size=vocab_size
            )
        computing = replace(case.options.computing, dtype="float32")
        return TransformersModel(plan, config, weights, layers=layers, computing=computing)
    except Exception as error:  # it raises what it happens upon: KeyError, TypeError, its own kinds
        said = " ".join(str(error).split())[:300]
        raise RuntimeRefused(f"transformers does not load it ({type(error).__name__}: {said})") from None


def _run(case: Case, weights: Mapping[str, Float32Array], layers: int) -> Run:
    """One model for all passages; afresh for each where its frequencies follow what it was asked before."""
    scaled_by_length = is_dynamic(case.plan.rope.main) or _says_dynamic(case)

    def run(passages: Sequence[Passage], advance: Advance) -> list[Float32Array]:
        model, found = _loaded(case, weights, layers), []
        for passage in passages:
            found.append(model.logits(passage))
            if scaled_by_length:
                model = _loaded(case, weights, layers)
            advance(1)
        return found

    return run


def _says_dynamic(case: Case) -> bool:
    """Whether any of its scalings, for all layers or by their type, follows the length."""
    spellings = [case.artefact.config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    inner = [own for said in spellings for own in said.values() if isinstance(own, Mapping)]
    kinds = {str(said.get(key)) for said in (*spellings, *inner) for key in ("rope_type", "type")}
    return bool(kinds & {"dynamic", "longrope", "su"})


def _scaling_at(main: Scaling, passage: Passage) -> Scaling:
    """What transformers computes a passage with: its dynamic type follows the passage's own length, and
    longrope has two sets to choose from by it.
    """
    if isinstance(main, DynamicNtk):
        base = ntk_base(main, int(passage.positions[-1]) + 1)
        return Unscaled(theta=base, rotary_dim=main.rotary_dim)
    if isinstance(main, LongRope):
        return frozen_scalings(main)[int(passage.positions[-1] >= main.original_context)]
    return main


def _tables_at(scaling: Scaling, passage: Passage) -> RopeTables:
    """Likewise its tables."""
    return buckets(_scaling_at(scaling, passage))[-1]


def _sharpness_of(plan: ConversionPlan) -> SharpnessOf:
    pairs = plan.rope.main.rotary_dim // 2
    return partial(measured_sharpness, rounding=np.full(pairs, FLOAT32_ROUNDING))


def _passages(case: Case, tokens: NDArray[np.int64], **sizes: int) -> tuple[Passage, ...]:
    rope = case.plan.rope
    return make_passages(
        tokens,
        original_context=rope.original_context,
        target_context=rope.target_context,
        jumps=False,
        **sizes,
    )


def _unusable(case: Case) -> str | None:
    for binding in case.plan.bindings:
        found = case.artefact.tensors.get(binding.expected.name)
        if found is None or found.shape != binding.expected.shape:
            how = "is missing" if found is None else "has another shape"
            return f"{binding.expected.name} {how}"
    return None


def judge_structure(case: Case) -> Judged:
    """Window by window."""
    if (problem := _unusable(case)) is not None:
        return Judged(verdict=Verdict(outcome="not_judged", reason=problem))
    vocabulary = kept_vocabulary(case.tokens, case.plan.description.vocab_size, case.options.seed)
    weights = _weights(case, case.layers, vocabulary)
    scaling_of = partial(_scaling_at, case.plan.rope.main)
    references = References(
        case.plan,
        weights,
        layers=case.layers,
        scaling_of=scaling_of,
        computing=case.options.computing,
    )
    try:
        evidence = compare_all(
            _run(case, weights, case.layers),
            references,
            _passages(case, np.searchsorted(vocabulary, case.tokens).astype(np.int64)),
            _sharpness_of(case.plan),
            runtime=NAME,
            title=f"{case.layers} layers in float32",
            progress=case.progress,
        )
    except RuntimeRefused as error:
        return Judged(verdict=Verdict(outcome="fails", reason=error.what))
    return judge_evidence(
        evidence,
        references,
        always_diagnose=case.options.diagnose,
        progress=case.progress,
        tables_of=_tables_at,
    )


def run_as_is(case: Case) -> AsIs:
    """All layers, in float32; against the checkpoint's own weights where those are few enough."""
    layers = len(case.plan.description.layers)

    def run(passages: Sequence[Passage], advance: Advance) -> Sequence[Float32Array]:
        return _run(case, _weights(case, layers, None), layers)(passages, advance)

    return as_is(
        run,
        case.plan,
        _passages(case, case.tokens, prefix=AS_IS_PREFIX, inside=AS_IS_INSIDE),
        not_held,
        size=4 * sum(int(np.prod(binding.expected.shape)) for binding in case.plan.bindings),
        runtime=NAME,
        progress=case.progress,
        computing=case.options.computing,
        whatever_the_size=case.options.layers == 0,
        scaling_of=partial(_scaling_at, case.plan.rope.main),
    )
