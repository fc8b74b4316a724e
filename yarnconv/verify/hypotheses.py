"""What an artefact that does not compute the plan may compute instead: each mistake as data, none of it run.

A hypothesis says with which frequencies and temperature the rotation was made, with which rows of the q/k
projections, at which positions and behind which windows. Several may be one and the same on a model; whoever
runs them finds out.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from yarnconv.errors import BadInput
from yarnconv.model.tensors import ExpectedTensor
from yarnconv.plan import ConversionPlan
from yarnconv.rope.mistakes import relogged
from yarnconv.rope.scaling import (
    DynamicYarn,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    Scaling,
    Stretched,
    Unscaled,
    Yarn,
    is_dynamic,
)
from yarnconv.rope.tables import RopeTables, buckets, magnitude, plain_inv_freq
from yarnconv.verify.passages import Passage

Rows = Literal["separated", "interleaved"]
Shifted = Literal["decoded", "behind the gap"]
EXPECTED = "expected"
SWAPPED_ROWS = "query-key-permutation"
SHORT_TABLES = "table-short"
OTHER_CONTEXTS = (0.25, 0.5, 2.0, 4.0)  # times the original one
COMMON_THETAS = (10000.0, 500000.0, 1000000.0)
# Roles whose rows are those of heads, and those that are one head's.
FUSED = frozenset({"query_key_value", "query_key_value_bias"})
PROJECTIONS = frozenset({"query", "key", "query_bias", "key_bias"}) | FUSED
NORMS = frozenset({"query_norm", "key_norm"})

_FROM_TABLES = "Write the plan's own frequencies into the artefact again."
REMEDIES = {
    "plain-rope": "The scaling did not arrive: write its type and factor (llama.cpp takes a file without "
    "rope.scaling.type for one that is not scaled), or exchange the tables.",
    "bucket-of-length-so-far": "A request's bucket must be chosen from the context that it declares, once: "
    "keys that are cached already keep the frequencies that they were made with.",
    "dynamic-frozen": "The bucket must be chosen from the context that a request declares.",
    "linear": "llama.cpp takes a scaling without a type for linear: write rope.scaling.type yarn.",
    "ntk-aware": "A larger base stands for the plan's own frequencies: write the plan's type and factor.",
    "by-parts": "The plan has another method: write its type, or give --method yarn if that is meant.",
    "temperature-missing": "The frequencies are right and the temperature is not there: write the attention "
    "factor, or fold it into the tables; for frequencies alone give --method ntk-by-parts.",
    "softmax-factor-missing": "Multiply the scale of the scores by (0.1 mscale_all_dim ln s + 1)^2 as well "
    "(llama.cpp: yarn_log_multiplier).",
    "temperature-twice": "llama.cpp computes attn_factor x (1 + 0.1 ln s): its key takes the quotient of the "
    "temperature and that term, not the temperature. Tables take it once, on cos and on sin.",
    "temperature-relogged": "The key takes the temperature itself, which is computed from the factor "
    "once: do not put it into 0.1 m ln s + 1 again, nor through another logarithm.",
    "attention-factor-dropped": "The attention factor that the plan gives was left out, and its runtime took "
    "0.1 ln s + 1 instead: write it.",
    "wrong-original-context": "Write the context seen in pre-training as original context (llama.cpp takes "
    "context_length, transformers max_position_embeddings, where it is missing).",
    "contexts-swapped": "Exchange the original and the target context.",
    "wrong-factor": "Write target / original context, by the context seen in pre-training, as the factor.",
    "betas-ignored": "Write beta_fast and beta_slow (llama.cpp: yarn_beta_fast and yarn_beta_slow).",
    "truncate-ignored": "Write truncate as the plan has it (llama.cpp: the frequencies go into rope_freqs).",
    "wrong-theta": "Write the checkpoint's rope_theta (llama.cpp: rope.freq_base, 10000 if it is missing).",
    "window-dropped": "Write the sliding window and which layers have it.",
    "wrong-pairing": "Rotate the dimensions that the model's family does, (i, i + D/2) or (2i, 2i + 1): "
    "correct the operator's interleaved, or permute the rows of q and k.",
    SWAPPED_ROWS: "Permute the rows of the q and k projections once where the runtime rotates adjacent "
    "pairs, and not at all where it rotates halves.",
    SHORT_TABLES: "Write tables for the whole target context, or check with --max-context.",
    "position-off-by-one": "A decoded token's position is the number of tokens before it, counted from 0.",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hypothesis:
    """code: for machines; several hypotheses may share one. explanation: what is computed, one clause.

    rope: a scaling, or its tables by bucket, the last one serving longer ones. rows: what was done to the
    rows of the q/k projections of each head once too often. norms: and to what lies in a head between
    projection and rotation, so that it is the rotation that pairs others. shift: what is added to the
    positions of `shifted` tokens. windows: whether sliding windows are there.
    """

    code: str
    explanation: str
    rope: Scaling | tuple[RopeTables, ...]
    rows: Rows | None = None
    norms: bool = False
    shift: int = 0
    shifted: Shifted = "decoded"
    windows: bool = True

    def passage(self, passage: Passage) -> Passage:
        """The passage at the positions that are supposed."""
        if self.shift == 0:
            return passage
        first = passage.decoded
        if self.shifted == "behind the gap":
            gaps = np.flatnonzero(np.diff(passage.positions) > 1)
            first = int(gaps[0]) + 1 if len(gaps) else len(passage.tokens)
        positions = passage.positions.copy()
        positions[first:] += self.shift
        return replace(passage, positions=positions)

    @property
    def remedy(self) -> str:
        """What to do about it; nothing where nothing is wrong."""
        return REMEDIES.get(self.code, _FROM_TABLES if self.code != EXPECTED else "")


def head_order(head_dim: int, rotary_dim: int, rows: Rows) -> NDArray[np.intp]:
    """Of the rows of one head, which is moved to each place: adjacent ones to the two halves ("separated"),
    or back.
    """
    order = np.arange(head_dim)
    shape = (-1, 2) if rows == "separated" else (2, -1)
    order[:rotary_dim] = order[:rotary_dim].reshape(shape).T.reshape(-1)
    return order.astype(np.intp)


def row_order(plan: ConversionPlan, tensor: ExpectedTensor, moved: Rows) -> NDArray[np.intp]:
    """The same of a whole tensor, the rows of heads one after the other. Those of values stay."""
    rows, head_dim = tensor.shape[0], plan.rope.head_dim
    one = head_order(head_dim, plan.rope.main.rotary_dim, moved)
    order = np.arange(rows, dtype=np.intp).reshape(-1, head_dim)
    values = plan.description.layers[0].attention.key_value_heads if tensor.role in FUSED else 0
    order[: len(order) - values] = order[: len(order) - values, one]
    return order.reshape(-1)


def moved_rows(plan: ConversionPlan, hypothesis: Hypothesis) -> Mapping[str, NDArray[np.intp]]:
    """By the names of the tensors whose rows are supposed elsewhere, which row stands in each place."""
    if hypothesis.rows is None:
        return {}
    roles = PROJECTIONS | NORMS if hypothesis.norms else PROJECTIONS
    tensors = [binding.expected for binding in plan.bindings if binding.expected.role in roles]
    return {tensor.name: row_order(plan, tensor, hypothesis.rows) for tensor in tensors}


def wrong_orders(plan: ConversionPlan, tensor: ExpectedTensor) -> list[NDArray[np.intp]]:
    """The orders in which a converter may have left the rows of a tensor by mistake; none but of q and k."""
    if tensor.role not in PROJECTIONS or plan.description.layers[0].attention.latent is not None:
        return []
    directions: tuple[Rows, ...] = ("separated", "interleaved")
    return [row_order(plan, tensor, moved) for moved in directions]


def _changed(main: Scaling, **changes: Any) -> Scaling | None:
    """The scaling with other numbers; None where it has no such field, has them already, or cannot be so."""
    if not {field.name for field in fields(main)} >= changes.keys():
        return None
    try:
        made = replace(main, **changes)
    except BadInput:
        return None
    return None if made == main else made


def _methods(main: Scaling) -> Iterator[Hypothesis]:
    """Another method at the same factor."""
    own: dict[str, Any] = {"theta": main.theta, "rotary_dim": main.rotary_dim}
    if is_dynamic(main):
        tables = buckets(main)
        text = "every request is computed with the frequencies of the longest bucket"
        yield Hypothesis(code="dynamic-frozen", explanation=text, rope=tables[-1:])
    yield Hypothesis(code="plain-rope", explanation="plain RoPE is computed, unscaled", rope=Unscaled(**own))
    if is_dynamic(main):
        text = "the bucket follows the length so far instead of the context that is declared"
        yield Hypothesis(code="bucket-of-length-so-far", explanation=text, rope=tables[:1])
    if isinstance(main, Unscaled) or main.factor == 1.0:
        return
    stretch = {**own, "original_context": main.original_context, "factor": main.factor}
    text = f"every frequency is divided by {main.factor:g}, as linear scaling does"
    yield Hypothesis(code="linear", explanation=text, rope=Linear(**stretch))
    if main.rotary_dim > 2:
        text = f"the base is enlarged by the factor {main.factor:g}, as NTK-aware scaling does"
        yield Hypothesis(code="ntk-aware", explanation=text, rope=NtkAware(**stretch))
    if not isinstance(main, Yarn | Llama3 | LongRope) and main.theta > 1.0:
        text = f"YaRN with the factor {main.factor:g} is computed"
        yield Hypothesis(code="by-parts", explanation=text, rope=Yarn(**stretch))


def _temperatures(main: Scaling) -> Iterator[Hypothesis]:
    """The plan's frequencies at another temperature."""
    tables = buckets(main)
    if any(one.softmax_multiplier != 1.0 for one in tables):
        text = f"the scores lack the factor of latent attention ({tables[-1].softmax_multiplier:.6g})"
        bare = tuple(replace(one, softmax_multiplier=1.0) for one in tables)
        yield Hypothesis(code="softmax-factor-missing", explanation=text, rope=bare)
    if all(one.attention_factor == 1.0 for one in tables):
        return

    def at(code: str, text: str, factors: list[float]) -> Hypothesis:
        rope = tuple(
            replace(one, attention_factor=factor) for one, factor in zip(tables, factors, strict=True)
        )
        return Hypothesis(code=code, explanation=text, rope=rope)

    own = [one.attention_factor for one in tables]
    formula = [magnitude(one.factor, 0.1) for one in tables]
    last = own[-1]
    text = f"the frequencies are the plan's, but cos and sin lack the temperature ({last:.6g})"
    yield at("temperature-missing", text, [1.0] * len(own))
    text = f"the temperature {last:.6g} is multiplied on cos and sin twice"
    yield at("temperature-twice", text, [a * a for a in own])
    text = f"the temperature {last:.6g} is multiplied by 0.1 ln s + 1 again"
    yield at("temperature-twice", text, [a * f for a, f in zip(own, formula, strict=True)])
    as_m, as_s = zip(*(relogged(one.attention_factor, one.factor) for one in tables), strict=True)
    text = f"the temperature {last:.6g} is taken for the m of 0.1 m ln s + 1"
    yield at("temperature-relogged", text, list(as_m))
    text = f"the temperature is taken for the s of 0.1 ln s + 1: {as_s[-1]:.6g}"
    yield at("temperature-relogged", text, list(as_s))


def _dropped_attention_factor(main: Scaling) -> Iterator[Hypothesis]:
    bare: dict[str, Any] = {"attention_factor": None}
    if isinstance(main, Yarn):
        bare |= {"temperature_coefficient": 0.1, "mscale": None, "mscale_all_dim": None}
    if (made := _changed(main, **bare)) is not None:
        text = (
            f"the attention factor is the formula's {buckets(made)[-1].attention_factor:.6g}, not the plan's"
        )
        yield Hypothesis(code="attention-factor-dropped", explanation=text, rope=made)


def _contexts(plan: ConversionPlan) -> Iterator[Hypothesis]:
    main, target = plan.rope.main, plan.rope.target_context
    places = {
        target: "the target context",
        plan.description.max_position_embeddings: "max_position_embeddings",
    }
    for ratio in OTHER_CONTEXTS:
        context = round(plan.rope.original_context * ratio)
        places.setdefault(context, f"{ratio:g} times as many")
    for context, place in places.items():
        if (made := _changed(main, original_context=context)) is not None:
            text = f"{context} positions, {place}, are taken for the original context"
            yield Hypothesis(code="wrong-original-context", explanation=text, rope=made)
    swapped = _changed(main, original_context=target)
    if swapped is None or not isinstance(main, Linear | Yarn) or isinstance(main, DynamicYarn):
        return
    text = f"original and target context are exchanged: {target} and {plan.rope.original_context}"
    yield Hypothesis(code="contexts-swapped", explanation=text, rope=swapped)
    yield from _inverted(main, swapped, text)


def _inverted(main: Linear | Yarn, swapped: Scaling, text: str) -> Iterator[Hypothesis]:
    """The factor, as a ratio of the contexts, upside down too: frequencies are multiplied by it. What then
    becomes of the temperature is llama.cpp's 0.1 ln s + 1, below 1, or none.
    """
    plain = plain_inv_freq(main.theta, main.rotary_dim)
    (tables,) = buckets(swapped)
    interpolated = (plain - tables.inv_freq) / (plain - plain / main.factor)
    inv_freq = plain * (1.0 + interpolated * (main.factor - 1.0))
    factors = [1.0]
    if isinstance(main, Yarn):
        quotient = tables.attention_factor / magnitude(main.factor, 0.1)
        factors.append(quotient * (1.0 - 0.1 * math.log(main.factor)))
    for factor in factors:
        rope = (replace(tables, factor=1.0 / main.factor, inv_freq=inv_freq, attention_factor=factor),)
        yield Hypothesis(code="contexts-swapped", explanation=f"{text}, and so is the factor", rope=rope)


def _numbers(plan: ConversionPlan) -> Iterator[Hypothesis]:
    """The plan's method with one other number."""
    main = plan.rope.main
    yield from _contexts(plan)
    if isinstance(main, Yarn):
        if (made := _changed(main, beta_fast=32.0, beta_slow=1.0)) is not None:
            text = f"the betas are 32 and 1, not {main.beta_fast:g} and {main.beta_slow:g}"
            yield Hypothesis(code="betas-ignored", explanation=text, rope=made)
        text = f"the correction range is {'not ' if main.truncate else ''}rounded outwards"
        rope = replace(main, truncate=not main.truncate)
        yield Hypothesis(code="truncate-ignored", explanation=text, rope=rope)
    if isinstance(main, Stretched):
        ratio = plan.description.max_position_embeddings / main.original_context
        factors = {
            2.0 * main.factor: "twice the plan's",
            0.5 * main.factor: "half the plan's",
            ratio: "max_position_embeddings / original context",
        }
        for factor, place in factors.items():
            if (made := _changed(main, factor=factor)) is not None:
                text = f"the factor is {factor:g}, {place}"
                yield Hypothesis(code="wrong-factor", explanation=text, rope=made)
    default = plan.family.config_defaults.get("rope_theta")
    own = {float(default)} if isinstance(default, int | float) else set()
    for theta in sorted({*COMMON_THETAS, *own}):
        if (made := _changed(main, theta=theta)) is not None:
            text = f"rope_theta is {theta:g}, not {main.theta:g}"
            yield Hypothesis(code="wrong-theta", explanation=text, rope=made)


def _elsewhere(plan: ConversionPlan) -> Iterator[Hypothesis]:
    """The plan's rotation of other rows, at other positions, behind no window."""
    main = plan.rope.main
    if any(layer.attention.window is not None for layer in plan.description.layers):
        text = "layers that have a sliding window see everything before them"
        yield Hypothesis(code="window-dropped", explanation=text, rope=main, windows=False)
    both: tuple[tuple[Rows, str], ...] = (("separated", "adjacent pairs"), ("interleaved", "halves"))
    if plan.description.layers[0].attention.latent is not None:
        both = ()  # what rotates is the end of a head, by no matrix that has its own name
    for rows, pairs in both:
        text = f"dimensions are rotated in {pairs}, which the model's are not"
        yield Hypothesis(code="wrong-pairing", explanation=text, rope=main, rows=rows, norms=True)
    for rows, _ in both:
        text = f"the rows of q and k are {rows} once too often"
        yield Hypothesis(code=SWAPPED_ROWS, explanation=text, rope=main, rows=rows)
    kinds: tuple[tuple[Shifted, str], ...] = (
        ("decoded", "decoded tokens"),
        ("behind the gap", "tokens behind a gap"),
    )
    for shifted, whose in kinds:
        for shift in (1, -1):
            text = f"the positions of {whose} are {abs(shift)} too {'high' if shift > 0 else 'low'}"
            yield Hypothesis(
                code="position-off-by-one", explanation=text, rope=main, shift=shift, shifted=shifted
            )


def hypotheses(plan: ConversionPlan) -> list[Hypothesis]:
    """The plan itself, then every single mistake that it can be held against, the simplest first."""
    main = plan.rope.main
    return [
        Hypothesis(code=EXPECTED, explanation="the plan is computed", rope=main),
        *_methods(main),
        *_temperatures(main),
        *_dropped_attention_factor(main),
        *_numbers(plan),
        *_elsewhere(plan),
    ]
