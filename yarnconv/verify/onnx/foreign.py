"""The check of an ONNX model that somebody else exported: its tensors are called as its exporter likes.

Nothing can be copied out of it, so the model itself is run, all its layers, from position 0 on, and held
against transformers with the checkpoint's weights. What it turns by is read from its numbers. Its weights are
judged by what they make: a model whose logits are the checkpoint's computes with the checkpoint's weights, as
far as the tolerance tells. Of quantised weights nothing is known, and that is what is said.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from yarnconv.errors import BadInput, NotJudged
from yarnconv.plan import ConversionPlan
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.observed_facts import ObservedFacts, compare_observed
from yarnconv.targets.onnx.placement import StoredWeight
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel
from yarnconv.verify.compare import TOLERANCE_BASE, Sharpness
from yarnconv.verify.diagnosis import Evidence, bucket_tables
from yarnconv.verify.expectation import Expectation
from yarnconv.verify.narrow import NARROW, widened
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.structure import angle_sharpness
from yarnconv.verify.passages import AROUND, DECODED, INSIDE, Passage, make_passages
from yarnconv.verify.reference import Reference, reference_version
from yarnconv.verify.report import AsIs, CheckReport, Diagnosis
from yarnconv.verify.structure import (
    AS_IS_REFERENCE_BYTES,
    AS_IS_SHARE_OF_MEMORY,
    Judged,
    References,
    compare_all,
    judge_evidence,
    not_held,
    source_weights,
    windows_of,
)
from yarnconv.verify.verdict import Verdict, conclude_facts
from yarnconv.verify.weights import left_out
from yarnconv.worker import RuntimeRefused

FEWEST = 2 * AROUND  # positions
LONGEST = 4096  # positions that are run at once, where the attention of so many fits
SCORE_BYTES = (
    12  # of a head's attention from one position to another, in the reference: mask, scores, softmax
)
SHARE_OF_MEMORY = 0.5  # for a reference of all layers
UNBOUND = "its tensors are not called as the checkpoint's"
CODED_OPERATORS = frozenset(
    {"MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"}
    | {"DequantizeLinear", "DynamicQuantizeLinear", "GatherBlockQuantized", "QMoE", "DynamicQuantizeMatMul"}
)
CODES = frozenset({"INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "FLOAT8E4M3FN"})


def is_foreign(plan: ConversionPlan, model: OnnxModel, weights: Mapping[str, StoredWeight | None]) -> bool:
    """Whether a model has another form than ours: most tensors of its layers are called otherwise, or nothing
    in it is what a float32 copy is made of.
    """
    of_layers = [weights[b.expected.name] for b in plan.bindings if b.expected.layer is not None]
    bound = sum(weight is not None for weight in of_layers)
    turns = any(node.op_type == "RotaryEmbedding" for node in model.proto.graph.node)
    return 2 * bound < len(of_layers) or model.cache is None or not turns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """element: ONNX's name of the type that most of the weights have, of the floats. codes: what says that
    weights or activations are quantised, for people; None where nothing does.
    """

    element: str
    codes: str | None


def _operators(model: OnnxModel) -> set[str]:
    """Those of the graph and of the branches in it."""
    found, graphs = set(), [model.proto.graph]
    while graphs:
        for node in graphs.pop().node:
            found.add(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def _numbers(model: OnnxModel) -> _Numbers:
    nbytes = dict.fromkeys(FLOAT_DTYPES, 0)
    codes = sorted(_operators(model) & CODED_OPERATORS)
    for tensor in model.tensors.values():
        if len(tensor.shape) < 2:
            continue
        if tensor.element in nbytes:
            nbytes[tensor.element] += len(tensor.data)
        elif tensor.element in CODES:
            codes.append(tensor.element)
    said = ", ".join(dict.fromkeys(codes))
    return _Numbers(element=max(nbytes, key=lambda element: nbytes[element]), codes=said or None)


# what is run


def _affordable(plan: ConversionPlan) -> int:
    """Positions whose attention, all of it at once, fits beside the reference."""
    heads = max(layer.attention.heads for layer in plan.description.layers)
    return min(LONGEST, math.isqrt(AS_IS_REFERENCE_BYTES // (SCORE_BYTES * heads)))


def _passages(case: Case, reach: int) -> Iterator[Passage]:
    """Positions 0, 1, ...: inside the original context, across its edge and beyond it, up to `reach`."""
    original = case.plan.rope.original_context
    for passage in make_passages(
        case.tokens,
        original_context=min(original, reach),
        target_context=reach,
        prefix=reach,
        jumps=False,
    ):
        if reach > original or passage.name == "inside":
            yield passage
        elif passage.name == "crossing":  # of no edge: the last positions that are run
            yield replace(passage, name="far end")


def _passages_by_bucket(case: Case, reach: int) -> Iterator[Passage]:
    """One for each set of frequencies that is reached; prefilled so far that the length chooses it."""
    least = 1
    for bucket, positions in enumerate(case.layout.positions):
        count = min(positions, reach)
        decoded = max(count - DECODED, least)
        if decoded >= count:
            return
        yield Passage(
            name="inside" if bucket == 0 else "beyond",
            tokens=np.resize(np.roll(case.tokens, -bucket), count),
            positions=np.arange(count, dtype=np.int64),
            jump=None,
            judged=max(count - (INSIDE if bucket == 0 else 2 * AROUND), 0),
            decoded=decoded,
            bucket=bucket,
        )
        least = positions + 1


def _sharpness(
    case: Case, element: str, reference: Reference, passage: Passage, wanted: Float32Array
) -> Sharpness:
    """What a passage can tell of a model that computes in a type."""
    exact = angle_sharpness(case, reference, passage, wanted)
    return widened(exact, reference, passage, wanted, element)


def _check_affordable(case: Case) -> None:
    """Raises NotJudged where the model, or a reference of all its layers, cannot be run here."""
    if case.plan.checkpoint.described:
        raise NotJudged(f"no checkpoint was given, and {UNBOUND}, so that it cannot lend its own")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 4 * sum(math.prod(binding.expected.shape) for binding in case.plan.bindings)
    if needed > max(AS_IS_REFERENCE_BYTES, SHARE_OF_MEMORY * memory):
        raise NotJudged(
            f"{UNBOUND}, so that it can only be run as a whole, and a reference of all layers would take "
            f"{needed / 1e9:.3g} GB of memory"
        )
    if case.artefact.nbytes > AS_IS_SHARE_OF_MEMORY * memory:
        size = f"{case.artefact.nbytes / 1e9:.3g} GB do not fit into {memory / 1e9:.3g} GB of memory"
        raise NotJudged(f"its {size}")


def _nearest(references: References, evidence: Sequence[Evidence], case: Case, codes: str) -> Diagnosis:
    """Which hypotheses come nearest to logits that are held to nothing: of the first passage, for
    information.
    """
    first = replace(evidence[0], sharpness=Sharpness(allowed=TOLERANCE_BASE))
    found = references.diagnose([first], bucket_tables, case.progress)
    if found.label is not None:
        return found
    text = f"Quantised numbers ({codes}) move the logits by an unknown amount: how near is for information."
    return replace(found, explanation=text)


def _judge_quantised(
    case: Case, references: References, evidence: Sequence[Evidence], codes: str
) -> tuple[Judged, AsIs]:
    """What is seen is shown, and held to nothing."""
    layers = len(case.plan.description.layers)
    note = f"all {layers} layers as they are, against the checkpoint's own weights"
    as_is = AsIs(windows=windows_of(evidence), note=note)
    if as_is.problem is not None:
        reason = f"the model itself, all layers: {as_is.problem}"
        return Judged(verdict=Verdict(outcome="fails", reason=reason)), as_is
    off = max(window.relative for window in as_is.windows)
    reason = (
        f"it computes with quantised numbers ({codes}), {UNBOUND}, and how far its logits may be off is not "
        f"known; they are by {off:.2g}"
    )
    diagnosis = _nearest(references, evidence, case, codes)
    return Judged(verdict=Verdict(outcome="not_judged", reason=reason), diagnosis=diagnosis), as_is


def _reach(case: Case, observed: ObservedFacts) -> int:
    """Positions that are run: those that should be there and are, and whose attention fits. Raises NotJudged
    where that are too few to tell anything.
    """
    own = case.max_context if observed.reach is None else observed.reach
    reach = min(case.max_context, own, _affordable(case.plan))
    if reach < FEWEST:
        raise NotJudged(f"only {reach} positions can be run, which is too few to tell")
    return reach


def _judge_run(case: Case, numbers: _Numbers, observed: ObservedFacts) -> tuple[Judged, AsIs]:
    """Run the model, and hold what it makes against the reference of all layers."""
    _check_affordable(case)
    layers, reach = len(case.plan.description.layers), _reach(case, observed)
    passages = list(_passages_by_bucket(case, reach) if case.is_dynamic else _passages(case, reach))
    references = References(case.plan, source_weights(case.plan), layers=layers)
    evidence = compare_all(
        lambda chosen, advance: case.runner.logits(case.artefact.path, chosen, advance),
        references,
        passages,
        not_held if numbers.codes is not None else partial(_sharpness, case, numbers.element),
        runtime=case.runner.name,
        title=f"all {layers} layers as they are",
        progress=case.progress,
    )
    if numbers.codes is not None:
        return _judge_quantised(case, references, evidence, numbers.codes)
    judged = judge_evidence(
        evidence, references, always_diagnose=case.options.diagnose, progress=case.progress
    )
    if reach < case.max_context:
        said = f"{judged.verdict.reason}; positions from {reach} to {case.max_context - 1} were not run"
        judged = replace(judged, verdict=replace(judged.verdict, reason=said))
    return judged, AsIs(windows=(), note="the model itself is what was judged")


def _judge_structure(case: Case, numbers: _Numbers, observed: ObservedFacts) -> tuple[Judged, AsIs]:
    try:
        return _judge_run(case, numbers, observed)
    except NotJudged as error:
        verdict = Verdict(outcome="not_judged", reason=error.what)
    except RuntimeRefused as error:
        verdict = Verdict(outcome="fails", reason=error.what)
    return Judged(verdict=verdict), AsIs(windows=(), note=f"not compared: {verdict.reason}")


# the other verdicts


def _judge_weights(case: Case, numbers: _Numbers, judged: Judged) -> Verdict:
    """By what they make: all layers were run, so logits that are the checkpoint's are made with its weights,
    as far as the tolerance tells. Of the embedding that is said of the rows that were looked up.
    """
    if (verdict := left_out(case.plan, case.options.coverage)) is not None:
        return verdict
    if numbers.codes is not None:
        reason = f"{UNBOUND}, and quantised numbers ({numbers.codes}) hide them in its logits"
        return Verdict(outcome="not_judged", reason=reason)
    if judged.verdict.outcome != "holds":
        return Verdict(outcome="not_judged", reason=f"{UNBOUND}, and its logits do not show them")
    if case.options.coverage == "all":
        return Verdict(outcome="not_judged", reason=f"{UNBOUND}, so that not every value can be compared")
    layers, rows = len(case.plan.description.layers), len(np.unique(case.tokens))
    reason = (
        f"its logits are the checkpoint's, as far as {NARROW.get(numbers.element, 'float32')} tells; all "
        f"{layers} layers were run, and {rows} rows of the embedding ({UNBOUND})"
    )
    return Verdict(outcome="holds", reason=reason)


def _judge_metadata(observed: ObservedFacts) -> Verdict:
    """What it turns by; not judged where some of that was not read."""
    verdict = conclude_facts(observed.facts)
    if observed.unread is None or verdict.outcome == "fails":
        return verdict
    return Verdict(outcome="not_judged", reason=observed.unread)


def judge_foreign(case: Case, expectation: Expectation, reference: Path) -> CheckReport:
    """The report on a model of another form than ours. case.runner: one that fills what the graph declares.

    Raises BadInput where fewer than all layers are asked for, and RuntimeCrashed.
    """
    plan, options = case.plan, case.options
    every = len(plan.description.layers)
    if options.layers not in {None, 0, every}:
        what = f"{UNBOUND}: all {every} layers are run, or none"
        raise BadInput(what, where="--layers", fix="Leave it out.")
    numbers = _numbers(case.artefact)
    observed = compare_observed(plan, case.artefact, case.max_context)
    judged, as_is = _judge_structure(case, numbers, observed)
    return CheckReport(
        artifact=str(case.artefact.path),
        reference=str(reference),
        expected_from=expectation.source,
        expected=plan.rope,
        runtime={
            "name": case.runner.name,
            "version": case.runner.version,
            "reference": reference_version(),
        },
        seed=options.seed,
        layers=every,
        all_layers=every,
        structure=judged.verdict,
        weights=_judge_weights(case, numbers, judged),
        metadata=_judge_metadata(observed),
        windows=judged.windows,
        keys=observed.facts,
        tensors=(),
        as_is=as_is,
        remark=f"it is of another maker's form: {UNBOUND}, so that it can only be run as a whole",
        diagnosis=judged.diagnosis,
        ran=f"the model itself, all {every} layers, against the checkpoint's own weights",
    )
