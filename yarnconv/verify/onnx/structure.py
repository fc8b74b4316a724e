"""The structure verdict of an ONNX model, and the model run as it is.

ONNX Runtime runs a float32 copy of the first layers, in every bucket of a dynamic scaling, the longest
first; what was proved of them holds for the other layers if those are built the same, which is looked at in
the graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.artifact import check_free_space
from yarnconv.errors import NotJudged
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.float_copy import FloatCopy
from yarnconv.targets.onnx.layers import difference, read_layers
from yarnconv.targets.onnx.placement import StoredWeight
from yarnconv.verify.case import kept_vocabulary, layer_kinds
from yarnconv.verify.compare import Sharpness
from yarnconv.verify.experts import kept_experts, with_experts
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.passages import Passage, Tokens, make_passages
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

# Exact tables are the better ones; transformers rounds each frequency (measured on its own buffers) and each
# angle, which is what may stand between.
PRODUCT_ROUNDING = 2.0**-23


def bucket_passages(case: Case, tokens: Tokens, *, far_ends: bool = True, **sizes: int) -> Iterator[Passage]:
    """Passages for each bucket, the longest first, so that what a long request left behind would show in a
    short one. A dynamic model is asked with the least context that chooses the bucket; far_ends: and at its
    far end with the most.
    """
    layout, original, dynamic = case.layout, case.plan.rope.original_context, case.is_dynamic
    graph, last = case.artefact, len(layout.positions) - 1
    for bucket in range(last, -1, -1):
        reach = layout.positions[bucket]
        least = layout.positions[bucket - 1] + 1 if bucket else 1
        passages = make_passages(
            tokens,
            original_context=min(original, reach),
            target_context=reach,
            jumps=False,
            **sizes,
        )
        for passage in passages:
            most = far_ends and passage.name == "far end"
            context = reach if most else max(least, len(passage.tokens))
            yield replace(passage, bucket=bucket, context=context if dynamic else None)
            if dynamic and most and bucket == last and not (graph.in_place or graph.requires_context):
                yield replace(passage, name="undeclared", bucket=bucket)  # which stands for the whole context


def _probes(case: Case, tokens: Tokens) -> list[Passage]:
    """For each bucket a token at positions that it has no row for: the first one, one far behind, and one in
    front of all.
    """
    layout = case.layout
    return [
        Passage(
            name="beyond the tables",
            tokens=tokens[: min(reach, 3)],
            positions=np.array([*range(min(reach, 3) - 1), beyond], np.int64),
            jump=None,
            judged=min(reach, 3) - 1,
            decoded=min(reach, 3) - 1,
            bucket=bucket,
            context=reach if case.is_dynamic else None,
        )
        for bucket, reach in enumerate(layout.positions)
        for beyond in (reach, 2 * layout.rows + 1, -1)
    ]


def _run(case: Case, path: Path) -> Run:
    return lambda passages, advance: case.runner.logits(path, passages, advance)


def angle_sharpness(case: Case, reference: Reference, passage: Passage, wanted: Float32Array) -> Sharpness:
    """What a passage can tell of a runtime that computes in float32."""
    inv_freq = case.layout.buckets[passage.bucket].inv_freq
    rounding = reference.frequency_error(inv_freq) + PRODUCT_ROUNDING
    return measured_sharpness(reference, passage, wanted, rounding)


def _usable_weights(case: Case) -> dict[str, StoredWeight]:
    """All weights. Raises NotJudged where one is missing or of another shape."""
    found = {}
    for name, weight in case.weights.items():
        if weight is None:
            raise NotJudged(f"{name} is missing")
        if not weight.fits or not weight.stored.is_read:
            raise NotJudged(f"{name} has another shape or is of a type that is not read")
        found[name] = weight
    return found


def _unlike_layer(case: Case, weights: Mapping[str, StoredWeight]) -> str | None:
    """The first layer that is not built like an earlier one of its kind, and how."""
    layers = read_layers(case.plan, case.artefact, weights)
    kinds = layer_kinds(case.plan)
    for index, layer in enumerate(layers):
        first = kinds.index(kinds[index])
        if layer.signature != layers[first].signature:
            what = difference(layers[first], layer)
            return f"layer {index} is not built like layer {first}: {what}"
    return None


def numbers_beyond_the_tables(case: Case, run: Run, tokens: Tokens) -> str | None:
    """The first position without a row that does not give NaN. tokens: three to run."""
    probes = _probes(case, tokens)
    for probe, logits in zip(probes, run(probes, lambda done: None), strict=True):
        if not np.isnan(logits).all():
            return f"position {probe.positions[-1]}, which has no row in the tables, gives numbers"
    return None


def _kept_experts(case: Case, weights: Mapping[str, StoredWeight]) -> NDArray[np.intp] | None:
    """Which a copy keeps; all where blocks of codes reach from one expert into the next."""
    mixture = case.plan.description.mixture
    units = {weight.stored.unit for weight in weights.values()}
    if mixture is None or any(mixture.intermediate_size % unit for unit in units):
        return None
    return kept_experts(case.plan)


def _judge_in(case: Case, directory: Path) -> Judged:
    """Write the float32 copy and hold what ONNX Runtime makes of it against the references."""
    weights = _usable_weights(case)
    vocabulary = kept_vocabulary(case.tokens, case.plan.description.vocab_size, case.options.seed)
    tokens = np.searchsorted(vocabulary, case.tokens).astype(np.int64)
    experts = _kept_experts(case, weights)
    plan = with_experts(case.plan, experts)
    copy = FloatCopy(plan, case.artefact, weights, layers=case.layers, vocabulary=vocabulary, experts=experts)
    if untaken := copy.untaken:
        return Judged(verdict=Verdict(outcome="fails", reason=f"nothing in the graph takes {untaken[0]}"))
    fix = "Free some space, set TMPDIR to another place, or lower --layers."
    check_free_space(directory / "copy", copy.nbytes, fix)
    with case.progress.stage("Writing a float32 copy", copy.nbytes, is_bytes=True) as advance:
        path = copy.write(directory, advance)
    run = _run(case, path)
    written, computing = copy.written_weights(directory), case.options.computing
    references = References(plan, written, layers=case.layers, computing=computing)
    evidence = compare_all(
        run,
        references,
        list(bucket_passages(case, tokens)),
        partial(angle_sharpness, case),
        runtime=case.runner.name,
        title=f"{case.layers} layers in float32",
        progress=case.progress,
    )
    beyond = numbers_beyond_the_tables(case, run, np.resize(tokens, 3))
    problem = _unlike_layer(case, weights) or beyond
    always = case.options.diagnose
    judged = judge_evidence(evidence, references, always_diagnose=always, progress=case.progress)
    if problem is not None and judged.verdict.outcome != "fails":
        return replace(judged, verdict=Verdict(outcome="fails", reason=problem))
    return judged


def judge_structure(case: Case) -> Judged:
    """Run a float32 copy and hold it against the reference, window by window; then look at the other layers.

    Raises RuntimeCrashed where ONNX Runtime dies of it.
    """
    return judge_copy(partial(_judge_in, case), case.artefact.path, case.layers)


def run_as_is(case: Case, *, same_weights: bool) -> AsIs:
    """Run the artefact untouched; against the checkpoint's own weights where those are few enough, and held
    to the tolerance where it computes in float32 with the same ones (same_weights: whether it has those).

    Raises RuntimeRefused where ONNX Runtime loads its float32 copy but not the model itself.
    """
    if case.on_cpu_without_kernels:
        return AsIs(windows=(), note="not run: ONNX Runtime has no bfloat16 kernels on a CPU")
    passages: Sequence[Passage] = list(
        bucket_passages(case, case.tokens, far_ends=False, prefix=AS_IS_PREFIX, inside=AS_IS_INSIDE)
    )
    return as_is(
        _run(case, case.artefact.path),
        case.plan,
        passages,
        partial(angle_sharpness, case) if same_weights and case.is_exact else not_held,
        size=case.artefact.nbytes,
        runtime=case.runner.name,
        progress=case.progress,
        computing=case.options.computing,
        whatever_the_size=case.options.layers == 0,
    )
