"""The structure of an ONNX model that somebody else exported: nothing can be copied out of it, so it is run
as it is, all its layers, from position 0 on, against transformers with the checkpoint's weights.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from yarnconv.errors import NotJudged
from yarnconv.plan import ConversionPlan
from yarnconv.rope.tables import Float32Array
from yarnconv.sizes import readable_size
from yarnconv.targets.onnx.observed_facts import ObservedFacts
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel
from yarnconv.verify.compare import TOLERANCE_BASE, Sharpness
from yarnconv.verify.diagnosis import Evidence, bucket_tables
from yarnconv.verify.narrow import widened
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.structure import angle_sharpness
from yarnconv.verify.passages import AROUND, DECODED, INSIDE, Passage, make_passages
from yarnconv.verify.reference import Reference
from yarnconv.verify.report import AsIs, Diagnosis
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
from yarnconv.verify.verdict import Verdict
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
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


def read_numbers(model: OnnxModel) -> Numbers:
    """What a model computes with, by its tensors and its operators."""
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
    return Numbers(element=max(nbytes, key=lambda element: nbytes[element]), codes=said or None)


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
            f"{readable_size(needed)} of memory"
        )
    if needed + case.artefact.nbytes > AS_IS_SHARE_OF_MEMORY * memory:
        both = f"its {readable_size(case.artefact.nbytes)} and {readable_size(needed)} of a reference"
        raise NotJudged(f"{both} do not fit into {readable_size(memory)} of memory")


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


def _judge_run(case: Case, numbers: Numbers, observed: ObservedFacts) -> tuple[Judged, AsIs]:
    """Run the model, and hold what it makes against the reference of all layers."""
    _check_affordable(case)
    layers, reach = len(case.plan.description.layers), _reach(case, observed)
    passages = list(_passages_by_bucket(case, reach) if case.is_dynamic else _passages(case, reach))
    computing = case.options.computing
    references = References(
        case.plan, source_weights(case.plan, computing), layers=layers, computing=computing
    )
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


def judge_structure(case: Case, numbers: Numbers, observed: ObservedFacts) -> tuple[Judged, AsIs]:
    """The verdict on the model as it is, what explains it, and what of it is shown for information.

    Not judged where it wants inputs that nobody knows, does not fit, or is quantised; it fails where ONNX
    Runtime does not load it. Raises RuntimeCrashed where that dies of it.
    """
    try:
        return _judge_run(case, numbers, observed)
    except NotJudged as error:
        verdict = Verdict(outcome="not_judged", reason=error.what)
    except RuntimeRefused as error:
        verdict = Verdict(outcome="fails", reason=error.what)
    return Judged(verdict=verdict), AsIs(windows=(), note=f"not compared: {verdict.reason}")
