"""The structure verdict, and the artefact run as it is: what every runtime's check has in common.

A runtime runs a float32 copy of the artefact (its own structure and metadata, its own weights, its first
layers) against transformers with the same weights and the expected plan. Whether those weights are the
checkpoint's is the weights verdict's question, so a quantised file is judged as sharply as a float one.
"""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from yarnconv.checkpoint.floats import to_float32
from yarnconv.checkpoint.sources import load
from yarnconv.errors import NotJudged, RuntimeCrashed
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance, Progress
from yarnconv.rope.scaling import Scaling, Unscaled
from yarnconv.rope.tables import Float32Array, Float64Array, frozen_scalings
from yarnconv.sizes import readable_size
from yarnconv.verify.compare import Sharpness, Window, compare_passage, narrowed, sharpness
from yarnconv.verify.computing import AS_EVER, Computing, LazyWeights, held, writable
from yarnconv.verify.diagnosis import Evidence, TablesOf, bucket_tables, diagnose
from yarnconv.verify.passages import Passage
from yarnconv.verify.reference import Reference
from yarnconv.verify.report import AsIs, Diagnosis
from yarnconv.verify.verdict import Verdict
from yarnconv.worker import RuntimeRefused

AS_IS_PREFIX, AS_IS_INSIDE = 16, 32  # every layer of a large model takes its time
AS_IS_PASSAGES = frozenset({"inside", "far end"})
AS_IS_REFERENCE_BYTES = 2 * 10**9  # float32 weights of a full-depth reference that is still made
AS_IS_SHARE_OF_MEMORY = 0.8
NOT_HELD = Sharpness(allowed=math.inf)  # to any tolerance
NOT_RUN = AsIs(windows=(), note="not run, or refused by the runtime")

# Runs passages through the artefact; advance(1) after each.
Run = Callable[[Sequence[Passage], Advance], Sequence[Float32Array]]
SharpnessOf = Callable[[Reference, Passage, Float32Array], Sharpness]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The structure verdict, the windows that it follows from, and what explains them if that was asked."""

    verdict: Verdict
    windows: Sequence[Window] = ()
    diagnosis: Diagnosis | None = None


class References:
    """The reference of each scaling, made afresh for it when first asked for: transformers' own dynamic modes
    remember what they were asked before.

    scaling_of: what a passage is held to, if not the scaling of its bucket. computing: where, and in which
    type.
    """

    def __init__(
        self,
        plan: ConversionPlan,
        weights: Mapping[str, Float32Array],
        *,
        layers: int,
        scaling_of: Callable[[Passage], Scaling] | None = None,
        computing: Computing = AS_EVER,
    ) -> None:
        self._plan, self._weights, self._layers = plan, weights, layers
        self._computing = computing
        self._scaling_of = scaling_of or self._scaling_of_bucket
        self._made: dict[tuple[Scaling, Computing], Reference] = {}

    def _scaling_of_bucket(self, passage: Passage) -> Scaling:
        return frozen_scalings(self._plan.rope.main)[passage.bucket]

    def of(self, passage: Passage) -> Reference:
        """The reference that a passage is held against."""
        return self._with(self._scaling_of(passage), self._computing)

    def _with(self, scaling: Scaling, computing: Computing) -> Reference:
        if (scaling, computing) not in self._made:
            self._made[scaling, computing] = Reference(
                self._plan, self._weights, layers=self._layers, scaling=scaling, computing=computing
            )
        return self._made[scaling, computing]

    def widened(self, exact: Sharpness, passage: Passage, wanted: Float32Array) -> Sharpness:
        """What a passage can tell once the reference's own rounding counts, measured against float32."""
        if not self._computing.is_narrow or exact.allowed == math.inf:
            return exact
        float32 = self._with(self._scaling_of(passage), replace(self._computing, dtype="float32"))
        return narrowed(exact, wanted, float32.logits(passage), self._computing.dtype)

    def diagnose(self, evidence: Sequence[Evidence], tables_of: TablesOf, progress: Progress) -> Diagnosis:
        """What explains the logits that a runtime computed with these weights."""
        main = self._plan.rope.main
        plain = Unscaled(theta=main.theta, rotary_dim=main.rotary_dim)
        self._made.clear()  # of models as large as may be one at a time is enough
        reference = self._with(plain, self._computing)
        return diagnose(reference, self._plan, evidence, tables_of, progress)


def measured_sharpness(
    reference: Reference, passage: Passage, wanted: Float32Array, rounding: Float64Array
) -> Sharpness:
    """What the passage can tell on this model, from the reference with its frequencies disturbed.

    rounding: relative error that the runtime's angles may have, by pair.
    """
    with reference.disturbed(rounding):
        rounded = reference.logits(passage)
    with reference.disturbed(np.ones_like(rounding)):
        doubled = reference.logits(passage)
    return sharpness(wanted, rounded, doubled)


def with_whole(structure: Verdict, problem: str | None) -> Verdict:
    """The structure verdict once the artefact itself was run. problem: what is wrong with all its layers."""
    if problem is None or structure.outcome == "fails":
        return structure
    return Verdict(outcome="fails", reason=f"the model itself, all layers: {problem}")


def not_held(reference: Reference, passage: Passage, wanted: Float32Array) -> Sharpness:
    """For information only."""
    return NOT_HELD


def compare_all(
    run: Run,
    references: References,
    passages: Sequence[Passage],
    sharpness_of: SharpnessOf,
    *,
    runtime: str,
    title: str,
    progress: Progress,
) -> list[Evidence]:
    """Run all passages in the runtime and in their references: what both made of each."""
    with progress.stage(f"{runtime}, {title}", len(passages)) as advance:
        found = run(passages, advance)
    evidence = []
    with progress.stage(f"Reference, {title}", len(passages)) as advance:
        for passage, logits in zip(passages, found, strict=True):
            reference = references.of(passage)
            wanted = reference.logits(passage)
            if logits.shape != wanted.shape:
                what = f"{runtime} gives logits of shape {list(logits.shape)}, not {list(wanted.shape)}"
                raise RuntimeRefused(what)
            allowed = references.widened(sharpness_of(reference, passage, wanted), passage, wanted)
            evidence.append(Evidence(passage=passage, found=logits, wanted=wanted, sharpness=allowed))
            advance(1)
    return evidence


def windows_of(evidence: Sequence[Evidence]) -> list[Window]:
    """Hold the logits against each other, phase by phase."""
    return [
        window
        for one in evidence
        for window in compare_passage(one.passage, one.found, one.wanted, sharpness=one.sharpness)
    ]


def judge_evidence(
    evidence: Sequence[Evidence],
    references: References,
    *,
    always_diagnose: bool,
    progress: Progress,
    tables_of: TablesOf = bucket_tables,
) -> Judged:
    """What follows from the logits of a float32 copy; and why, where they are not the plan's or where that is
    asked always.
    """
    windows = windows_of(evidence)
    wrong = any(one.fails for one in evidence)
    diagnosis = references.diagnose(evidence, tables_of, progress) if wrong or always_diagnose else None
    return Judged(verdict=conclude(windows), windows=windows, diagnosis=diagnosis)


def judge_copy(judge: Callable[[Path], Judged], artefact: Path, layers: int) -> Judged:
    """The verdict on a float32 copy of an artefact's first layers, which `judge` writes into the directory
    that it is given, and runs.

    Raises RuntimeCrashed where the runtime dies of it.
    """
    with tempfile.TemporaryDirectory(prefix="yarnconv-check-") as directory:
        try:
            return judge(Path(directory))
        except NotJudged as error:
            return Judged(verdict=Verdict(outcome="not_judged", reason=str(error)))
        except RuntimeRefused as error:
            return Judged(verdict=Verdict(outcome="fails", reason=error.what))
        except RuntimeCrashed as error:
            where = f"{artefact} (a float32 copy of its first {layers} layers)"
            raise RuntimeCrashed(error.what, where=where, fix=error.fix) from None


def conclude(windows: Sequence[Window]) -> Verdict:
    """What follows from the windows."""
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


def source_weights(plan: ConversionPlan, computing: Computing) -> Mapping[str, Float32Array]:
    """The checkpoint's own weights in float32."""
    sources = {binding.expected.name: binding.source for binding in plan.bindings}

    def make(name: str) -> Float32Array:
        return writable(to_float32(load(sources[name]), sources[name].dtype))

    shapes = {name: source.shape for name, source in sources.items()}
    return held(LazyWeights(shapes, make), computing)


def as_is(
    run: Run,
    plan: ConversionPlan,
    passages: Sequence[Passage],
    sharpness_of: SharpnessOf,
    *,
    size: int,
    runtime: str,
    progress: Progress,
    computing: Computing,
    weights: Callable[[], Mapping[str, Float32Array]] | None = None,
    share_of_memory: float = 0.0,
    whatever_the_size: bool = False,
    scaling_of: Callable[[Passage], Scaling] | None = None,
) -> AsIs:
    """Run the artefact untouched; against a reference of all layers where that is small enough.

    passages: of which those named in AS_IS_PASSAGES are run. sharpness_of: what they are held to. size: bytes
    that the runtime must hold. weights: the reference's, the checkpoint's own where they are not given.
    share_of_memory: that the reference may take, if that is more than AS_IS_REFERENCE_BYTES.
    whatever_the_size: compare even with one that memory does not hold. scaling_of: as in `References`. Raises
    RuntimeRefused where the runtime does not load the artefact itself.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > AS_IS_SHARE_OF_MEMORY * memory:
        note = f"not run: its {readable_size(size)} do not fit into {readable_size(memory)} of memory"
        return AsIs(windows=(), note=note)
    chosen = [passage for passage in passages if passage.name in AS_IS_PASSAGES]
    layers = len(plan.description.layers)
    title = f"all {layers} layers as they are"
    needed = 4 * sum(prod(binding.expected.shape) for binding in plan.bindings)
    why_not = f"a reference of all layers would take {readable_size(needed)}"
    if plan.checkpoint.described and weights is None:
        why_not = "no checkpoint was given"
    elif whatever_the_size or needed <= max(AS_IS_REFERENCE_BYTES, share_of_memory * memory):
        made = source_weights(plan, computing) if weights is None else weights()
        references = References(plan, made, layers=layers, scaling_of=scaling_of, computing=computing)
        evidence = compare_all(
            run, references, chosen, sharpness_of, runtime=runtime, title=title, progress=progress
        )
        whose = "checkpoint's" if weights is None else "artefact's"
        return AsIs(windows=windows_of(evidence), note=f"{title}, against the {whose} own weights")
    with progress.stage(f"{runtime}, {title}", len(chosen)) as advance:
        found = run(chosen, advance)
    finite = all(np.isfinite(logits).all() for logits in found)
    return AsIs(
        windows=(),
        finite=finite,
        note=f"{title}: {sum(map(len, found))} positions, all logits {'finite' if finite else 'NOT FINITE'}; "
        f"not compared, {why_not}",
    )
