"""The structure verdict of an extended checkpoint: what transformers makes of its config.json, with its own
weights in float32, against the model that the plan describes.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import to_float32
from yarnconv.checkpoint.sources import load
from yarnconv.errors import BadInput
from yarnconv.model.tensors import EXPERT_ROLES
from yarnconv.plan import ConversionPlan, sources_of
from yarnconv.progress import Advance
from yarnconv.rope.scaling import DynamicNtk, LongRope, Scaling, Unscaled, is_dynamic
from yarnconv.rope.tables import Float32Array, RopeTables, buckets, frozen_scalings, ntk_base
from yarnconv.verify.case import kept_vocabulary
from yarnconv.verify.computing import LazyWeights, held, shape_of, writable
from yarnconv.verify.experts import kept_experts, rows_of, with_experts
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is kept of an artefact: its first layers, of the vocabulary and the experts those that are named;
    None for all.
    """

    layers: int
    vocabulary: NDArray[np.intp] | None = None
    experts: NDArray[np.intp] | None = None

    def of(self, role: str) -> NDArray[np.intp] | None:
        """Of a tensor of this role, by its first dimension."""
        if role in VOCABULARY_ROLES:
            return self.vocabulary
        return self.experts if role in EXPERT_ROLES else None


def _weights(case: Case, kept: _Kept) -> Mapping[str, Float32Array]:
    """The artefact's own, by the checkpoint's names."""
    sources = sources_of(case.plan, case.artefact)
    expected = {
        one.name: one
        for one in (binding.expected for binding in case.plan.bindings)
        if one.layer is None or one.layer < kept.layers
    }
    cut = {name: kept.of(one.role) for name, one in expected.items()}
    shapes = {
        name: one.shape if (rows := cut[name]) is None else (len(rows), *one.shape[1:])
        for name, one in expected.items()
    }

    def make(name: str) -> Float32Array:
        source, rows = sources[name], cut[name]
        values = load(source) if rows is None else rows_of(source, rows)
        return writable(to_float32(values, source.dtype))

    return held(LazyWeights(shapes, make), case.options.computing)


def _loaded(
    case: Case, plan: ConversionPlan, weights: Mapping[str, Float32Array], layers: int
) -> TransformersModel:
    """What transformers makes of the artefact's config.json. plan: with as many experts as the weights are
    of. Raises RuntimeRefused where it makes nothing.
    """
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


def _run(case: Case, plan: ConversionPlan, weights: Mapping[str, Float32Array], layers: int) -> Run:
    """One model for all passages; afresh for each where its frequencies follow what it was asked before."""
    scaled_by_length = is_dynamic(case.plan.rope.main) or _says_dynamic(case)

    def run(passages: Sequence[Passage], advance: Advance) -> list[Float32Array]:
        model, found = _loaded(case, plan, weights, layers), []
        for passage in passages:
            found.append(model.logits(passage))
            if scaled_by_length:
                model = _loaded(case, plan, weights, layers)
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
    try:
        sources_of(case.plan, case.artefact)
    except BadInput as error:
        return error.what
    return None


def judge_structure(case: Case) -> Judged:
    """Window by window."""
    if (problem := _unusable(case)) is not None:
        return Judged(verdict=Verdict(outcome="not_judged", reason=problem))
    vocabulary = kept_vocabulary(case.tokens, case.plan.description.vocab_size, case.options.seed)
    experts = kept_experts(case.plan)
    plan = with_experts(case.plan, experts)
    weights = _weights(case, _Kept(layers=case.layers, vocabulary=vocabulary, experts=experts))
    scaling_of = partial(_scaling_at, case.plan.rope.main)
    references = References(
        plan,
        weights,
        layers=case.layers,
        scaling_of=scaling_of,
        computing=case.options.computing,
    )
    try:
        evidence = compare_all(
            _run(case, plan, weights, case.layers),
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
        weights = _weights(case, _Kept(layers=layers))
        return _run(case, case.plan, weights, layers)(passages, advance)

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
