"""Which mistake explains an artefact's logits: they are held against what each hypothesis predicts.

A hypothesis is run by the same reference with the same weights, and held to what the passages can tell, as
the plan is. It names the cause where it alone explains all that failed; two that do so alike name none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.rope.scaling import Scaling
from yarnconv.rope.tables import Float32Array, Float64Array, RopeTables, buckets
from yarnconv.verify.compare import Sharpness, position_errors
from yarnconv.verify.hypotheses import (
    EXPECTED,
    REMEDIES,
    SHORT_TABLES,
    SWAPPED_ROWS,
    Hypothesis,
    hypotheses,
    moved_rows,
)
from yarnconv.verify.passages import Passage
from yarnconv.verify.reference import TransformersModel
from yarnconv.verify.report import Diagnosis
from yarnconv.verify.weights import TensorComparison

CLEARLY = 3.0  # times as far, in tolerances, as the hypothesis that names the cause
HOPELESS = 10.0  # tolerances: a hypothesis that is further off explains nothing, and no more of it is run
SAME_TABLES = 1e-9  # relative, as `rope.tables` tells regimes apart
LARGEST = float(np.finfo(np.float64).max)  # an error that is no number, in JSON
SHOWN = 3  # of the nearest hypotheses, where none explains

# The tables that a runtime computes a passage with, if a scaling is what it has.
TablesOf = Callable[[Scaling, Passage], RopeTables]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What a runtime made of a passage. found, wanted: float32[judged tokens, vocabulary], the runtime's
    logits and those of the plan.
    """

    passage: Passage
    found: Float32Array
    wanted: Float32Array
    sharpness: Sharpness

    @property
    def fails(self) -> bool:
        """Whether it shows that something is wrong."""
        if self.sharpness.blind is not None:
            return False
        return not bool((position_errors(self.found, self.wanted) <= self.sharpness.allowed).all())

    @property
    def finite(self) -> NDArray[np.bool_]:
        """bool[judged tokens]: where the runtime gave numbers."""
        return np.asarray(np.isfinite(self.found).all(axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A hypothesis held against the evidence. codes: of those that are the same on this model, its own first.
    distance: relative error of the worst position. ratio: the same in tolerances of its passage.
    """

    hypothesis: Hypothesis
    codes: tuple[str, ...]
    distance: float
    ratio: float


def bucket_tables(scaling: Scaling, passage: Passage) -> RopeTables:
    """Those of the passage's bucket, or of the longest that there is."""
    found = buckets(scaling)
    return found[min(passage.bucket, len(found) - 1)]


def _tables(hypothesis: Hypothesis, passage: Passage, tables_of: TablesOf) -> RopeTables:
    if isinstance(hypothesis.rope, tuple):
        return hypothesis.rope[min(passage.bucket, len(hypothesis.rope) - 1)]
    return tables_of(hypothesis.rope, passage)


def _numbers(tables: RopeTables) -> list[float]:
    return [*tables.inv_freq.tolist(), tables.attention_factor, tables.softmax_multiplier]


class _Distinct:
    """Hypotheses that differ on the model that is judged, each with those that are the same as it."""

    def __init__(self, plan: ConversionPlan, passages: Sequence[Passage], tables_of: TablesOf) -> None:
        self._passages, self._tables_of = passages, tables_of
        self._norms = any(layer.attention.query_key_norm for layer in plan.description.layers)
        self.found: list[tuple[Hypothesis, list[str]]] = []
        self._rotations: list[Float64Array] = []
        for hypothesis in hypotheses(plan):
            self._add(hypothesis)

    def _key(self, hypothesis: Hypothesis) -> tuple[object, ...]:
        """All that is not a number of its tables."""
        positions = tuple(hypothesis.passage(p).positions.tobytes() for p in self._passages)
        moved = (hypothesis.rows, hypothesis.norms and self._norms)
        return (*moved, hypothesis.windows, positions)

    def _add(self, hypothesis: Hypothesis) -> None:
        rotation = np.array([_numbers(_tables(hypothesis, p, self._tables_of)) for p in self._passages])
        key = self._key(hypothesis)
        for (other, codes), known in zip(self.found, self._rotations, strict=True):
            if self._key(other) == key and np.allclose(rotation, known, rtol=SAME_TABLES, atol=0.0):
                if hypothesis.code not in codes and other.code != EXPECTED:
                    codes.append(hypothesis.code)
                return
        self.found.append((hypothesis, [hypothesis.code]))
        self._rotations.append(rotation)


def _hold(
    reference: TransformersModel,
    plan: ConversionPlan,
    hypothesis: Hypothesis,
    evidence: Sequence[Evidence],
    tables_of: TablesOf,
) -> tuple[float, float]:
    """(distance, ratio): the relative error of the worst position, as it is and in tolerances, up to the
    first passage that settles it. Positions behind the end of a bucket's tables are left aside.
    """
    ends = table_ends(evidence)
    distance = ratio = 0.0
    rows = moved_rows(plan, hypothesis)
    for one in evidence:
        if hypothesis.code == EXPECTED:
            predicted = one.wanted
        else:
            tables = _tables(hypothesis, one.passage, tables_of)
            with reference.altered(tables, rows=rows, windows=hypothesis.windows):
                predicted = reference.logits(hypothesis.passage(one.passage))
        errors = position_errors(one.found, predicted)
        if one.passage.bucket in ends:
            errors = errors[one.finite]
        worst = float(errors.max(initial=0.0))
        worst = worst if np.isfinite(worst) else LARGEST
        distance, ratio = max(distance, worst), max(ratio, worst / one.sharpness.allowed)
        if ratio > HOPELESS:
            break
    return distance, ratio


def _without_numbers(evidence: Evidence) -> Iterator[int]:
    """Positions that gave none: what is fed at once is spoilt by its last one, a lone token by itself."""
    positions, finite = evidence.passage.judged_positions, evidence.finite
    for phase, part in evidence.passage.phases():
        spoilt = positions[part][~finite[part]]
        yield from map(int, spoilt[-1:] if phase == "prefill" else spoilt)


def table_ends(evidence: Sequence[Evidence]) -> dict[int, int]:
    """By bucket, the first position at which a runtime gave no numbers, as one does behind its tables; none
    where it gave some behind it, or none before.
    """
    ends = {}
    for bucket in {one.passage.bucket for one in evidence}:
        own = [one for one in evidence if one.passage.bucket == bucket]
        spoilt = [position for one in own for position in _without_numbers(one)]
        finite = np.concatenate([one.passage.judged_positions[one.finite] for one in own])
        if spoilt and len(finite) and finite.max() < min(spoilt):
            ends[bucket] = min(spoilt)
    return ends


def _telling(evidence: Sequence[Evidence]) -> list[Evidence]:
    """What decides: every passage that is not blind in a bucket in which one fails; where none fails, all.
    The shortest that fails comes first, for on it most hypotheses do.
    """
    seeing = [one for one in evidence if one.sharpness.blind is None]
    wrong = {one.passage.bucket for one in seeing if one.fails}
    telling = [one for one in seeing if not wrong or one.passage.bucket in wrong]
    return sorted(telling, key=lambda one: (not one.fails, len(one.passage.tokens)))


def _said(held: _Held, alike: Sequence[str], ends: Mapping[int, int]) -> str:
    """For people: what is computed, the remedy, and what else that may be called."""
    hypothesis = held.hypothesis
    sentences = [f"{hypothesis.explanation[0].upper()}{hypothesis.explanation[1:]}."]
    if hypothesis.remedy:
        sentences.append(hypothesis.remedy)
    if others := [*held.codes[1:], *alike]:
        sentences.append(f"The same logits here: {', '.join(dict.fromkeys(others))}.")
    if ends:
        sentences.append(f"There are no numbers at position {min(ends.values())}: the tables end before it.")
    return " ".join(sentences)


def conclude_diagnosis(held: Sequence[_Held], ends: Mapping[int, int]) -> Diagnosis:
    """Name the cause, or the nearest. held: not empty. ends: of the tables, as `table_ends` finds them."""
    by_distance = sorted(held, key=lambda one: one.distance)
    distances: dict[str, float] = {}
    for one in by_distance:
        for code in one.codes:
            distances.setdefault(code, one.distance)
    # the plan first: what explains the logits as well as it does is no mistake that can be seen
    nearest = min(held, key=lambda one: (one.ratio > 1.0 or one.hypothesis.code != EXPECTED, one.ratio))
    fitting = [one for one in held if one.ratio <= 1.0]
    others = [code for one in fitting for code in one.codes if code not in nearest.codes]
    if nearest.hypothesis.code == EXPECTED and nearest.ratio <= 1.0:
        if ends:
            said = f"{_said(nearest, (), ends)} {REMEDIES[SHORT_TABLES]}"
            return Diagnosis(label=SHORT_TABLES, explanation=said, distances=distances)
        said = _said(nearest, others, ends)
        return Diagnosis(label=EXPECTED, explanation=said, distances=distances)
    rivals = [
        one
        for one in held
        if not set(one.codes) & set(nearest.codes) and one.ratio <= max(1.0, CLEARLY * nearest.ratio)
    ]
    if nearest.ratio <= 1.0 and not rivals:
        said = _said(nearest, (), ends)
        return Diagnosis(label=nearest.hypothesis.code, explanation=said, distances=distances)
    if nearest.ratio <= 1.0:
        codes = ", ".join(dict.fromkeys(code for one in (nearest, *rivals) for code in one.codes))
        text = f"Several single mistakes explain the logits, and these passages cannot tell which: {codes}."
        return Diagnosis(label=None, explanation=text, distances=distances)
    close = [f"{one.hypothesis.code} ({one.distance:.2g})" for one in by_distance[:SHOWN]]
    text = (
        f"No single mistake of those known explains the logits; the nearest are {', '.join(close)}. It may "
        "be several at once, or something else than the rotation."
    )
    return Diagnosis(label=None, explanation=text, distances=distances)


def diagnose(
    reference: TransformersModel,
    plan: ConversionPlan,
    evidence: Sequence[Evidence],
    tables_of: TablesOf,
    progress: Progress,
) -> Diagnosis:
    """Hold the logits that a runtime computed against every hypothesis.

    reference: of the evidence's weights and layers, whose rotation is exchanged. tables_of: what a scaling is
    in that runtime.
    """
    telling = _telling(evidence)
    if not telling:
        text = "No passage can tell one rotation from another on this model; give other tokens."
        return Diagnosis(label=None, explanation=text, distances={})
    distinct = _Distinct(plan, [one.passage for one in telling], tables_of).found
    held = []
    with progress.stage("Diagnosis", len(distinct)) as advance:
        for hypothesis, codes in distinct:
            distance, ratio = _hold(reference, plan, hypothesis, telling, tables_of)
            held.append(_Held(hypothesis=hypothesis, codes=tuple(codes), distance=distance, ratio=ratio))
            advance(1)
    return conclude_diagnosis(held, table_ends(telling))


def with_weights(own: Diagnosis | None, tensors: Sequence[TensorComparison]) -> Diagnosis | None:
    """The diagnosis once the weights were compared: rows of q and k that stand elsewhere explain a weights
    verdict, where nothing else is wrong with the weights or the logits.
    """
    wrong = [tensor for tensor in tensors if tensor.problem is not None]
    explained = own is None or own.label == EXPECTED
    if not wrong or not explained or not all(tensor.moved for tensor in wrong):
        return own
    text = f"In {len(wrong)} tensors the checkpoint's rows of q and k stand in the other order of pairs. "
    distances: Mapping[str, float] = {} if own is None else own.distances
    return Diagnosis(label=SWAPPED_ROWS, explanation=text + REMEDIES[SWAPPED_ROWS], distances=distances)
