"""The weights verdict of an ONNX model."""

from dataclasses import replace

import numpy as np

from yarnconv.checkpoint.floats import to_float32
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.placement import FP8, INT4, StoredWeight
from yarnconv.targets.onnx.quantisation import INT4_BLOCK
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.verdict import Verdict
from yarnconv.verify.weights import (
    Coverage,
    TensorComparison,
    WeightJudge,
    conclude_weights,
    sampled_rows,
)

HIGHEST_CODE = np.float32(7)
FP8_MANTISSA_BITS, FP8_LEAST_EXPONENT = 3, -6  # of E4M3's normal numbers


def _source(weight: StoredWeight, first: int, last: int) -> Float32Array:
    """The checkpoint's values for stored rows first..last-1, in the stored layout."""
    values = weight.binding.source.load()
    rows = np.ascontiguousarray(values[:, first:last].T if weight.stored.transposed else values[first:last])
    return np.asarray(to_float32(rows, weight.binding.source.dtype))


def _blocks(weight: StoredWeight, values: Float32Array) -> Float32Array:
    """Flat values with those of one 4-bit block side by side."""
    if weight.stored.kind == INT4 and weight.stored.transposed:
        values = np.ascontiguousarray(values.reshape(-1, INT4_BLOCK, values.shape[1]).swapaxes(1, 2))
    return values.reshape(-1)


def _steps(weight: StoredWeight, found: Float32Array, first: int, last: int) -> Float32Array | None:
    """How far apart the values are that each one's block can hold. In 4 bits twice that at the end of its
    range, where what would be +8 is +7; in E4M3 as far as its exponent says. found: the stored values, block
    by block.
    """
    if weight.stored.kind == FP8:
        columns = np.abs(weight.block_scales(first, last))
        scales = np.broadcast_to(columns, (last - first, weight.shape[1])).reshape(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            exponents = np.maximum(np.floor(np.log2(np.abs(found) / scales)), FP8_LEAST_EXPONENT)
        steps: Float32Array = (scales * np.exp2(exponents - FP8_MANTISSA_BITS)).astype(np.float32)
        return steps
    if weight.stored.kind != INT4:
        return None
    own = np.repeat(weight.block_scales(first, last).reshape(-1), INT4_BLOCK)
    return np.abs(own) * np.where(found == HIGHEST_CODE * own, np.float32(2), np.float32(1))


def _compare_tensor(
    name: str, weight: StoredWeight | None, coverage: Coverage, seed: int
) -> TensorComparison:
    """One tensor of the checkpoint against the artefact's."""
    if weight is None:
        return TensorComparison(name=name, stored_as=None, problem="is missing")
    comparison = TensorComparison(name=name, stored_as=weight.stored.kind)
    if not weight.stored.is_read:
        return replace(comparison, known=False)
    if not weight.fits:
        problem = f"has shape {list(weight.shape)}, for {list(weight.binding.source.shape)} of the checkpoint"
        return replace(comparison, problem=problem)
    judge = WeightJudge(weight.stored.kind, INT4_BLOCK)
    unit = weight.stored.unit
    width = int(np.prod(weight.shape[1:], dtype=np.int64)) * unit
    for chosen in sampled_rows(weight.shape[0] // unit, width, coverage, seed):
        for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
            first, last = int(run[0]) * unit, (int(run[-1]) + 1) * unit
            values = _blocks(weight, weight.float32(first, last))
            wanted = _blocks(weight, _source(weight, first, last))
            judge.add(values, wanted, run * unit, _steps(weight, values, first, last))
    judge.conclude()
    return replace(comparison, judged=judge.judged, relative=judge.relative, problem=judge.problem)


def judge_weights(case: Case) -> tuple[Verdict, list[TensorComparison]]:
    """Every tensor of the checkpoint."""
    if case.options.coverage == "none":
        return Verdict(outcome="not_judged", reason="left out (--weights none)", waived=True), []
    compared = []
    with case.progress.stage("Comparing weights", len(case.weights)) as advance:
        for name, weight in case.weights.items():
            compared.append(_compare_tensor(name, weight, case.options.coverage, case.options.seed))
            advance(1)
    for file in case.files:
        file.forget()
    return conclude_weights(compared, ()), compared
