"""The weights verdict of an ONNX model."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import to_float32
from yarnconv.checkpoint.sources import row_count, take
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.placement import StoredWeight
from yarnconv.targets.onnx.quantisation import INT4_BLOCK
from yarnconv.targets.onnx.reader import FLOAT_DTYPES
from yarnconv.targets.onnx.weights import matrix_shape
from yarnconv.verify.hypotheses import wrong_orders
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.verdict import Verdict
from yarnconv.verify.weights import (
    FLOAT_TYPES,
    MOVED,
    Coverage,
    TensorComparison,
    WeightJudge,
    conclude_weights,
    left_out,
    sampled_rows,
)

# A scale may be so many times the one that its column's largest value needs: the next power of two is. A
# thousand times it would round the whole column to zero, and be plain rounding still.
COARSEST = 2.0
LEAST_NORMAL = 2.0**-126


def _source(weight: StoredWeight, order: NDArray[np.intp] | None, first: int, last: int) -> Float32Array:
    """Of the checkpoint's values those for stored rows first..last-1, in the stored layout. order: of the
    checkpoint's rows, where it is not their own.
    """
    source = weight.matrix
    if len(source.shape) == 1:
        values = source.block(slice(None)).reshape(-1)
        rows = (values if order is None else values[order])[first:last]
    elif weight.stored.transposed:
        values = source.block(slice(None), slice(first, last))
        rows = (values if order is None else values[order]).T
    elif order is None:
        height = row_count(source.shape[1:]) if len(source.shape) > 2 else 1
        rows = source.block(slice(first * height, last * height)).reshape(-1, *source.shape[1:])
    else:
        rows = take(source, order[first:last])
    return np.asarray(to_float32(np.ascontiguousarray(rows), source.dtype))


def _flat(weight: StoredWeight, values: Float32Array) -> Float32Array:
    """Flat values of whole rows, those of a block of rows side by side."""
    if weight.stored.unit > 1:
        values = np.ascontiguousarray(values.reshape(-1, weight.stored.unit, values.shape[1]).swapaxes(1, 2))
    return values.reshape(-1)


def _coarse_column(weight: StoredWeight, coverage: Coverage, seed: int) -> str | None:
    """What is wrong with the first column whose scale is larger than its values need; of some columns, which
    are the checkpoint's rows, unless all are covered.
    """
    scales, scheme, source = weight.column_scales, weight.stored.scheme, weight.matrix
    if scales is None or scheme is None or weight.stored.scales is None:
        return None
    outputs, inputs = matrix_shape(source)
    _, rounding = FLOAT_TYPES[FLOAT_DTYPES[weight.stored.scales.element]]
    for chosen in sampled_rows(outputs, inputs, coverage, seed):
        values = to_float32(np.ascontiguousarray(take(source, chosen)), source.dtype)
        largest = np.abs(values).max(axis=1).astype(np.float64)
        allowed = COARSEST * largest / scheme.largest + max(rounding, LEAST_NORMAL)
        coarse = np.flatnonzero((largest > 0) & ~(np.abs(scales[chosen]) <= allowed))
        if len(coarse):
            times = np.abs(scales[chosen[coarse[0]]]) * scheme.largest / largest[coarse[0]]
            return f"has a scale {times:.2g} times what column {chosen[coarse[0]]} needs"
    return None


def _judge(
    weight: StoredWeight, coverage: Coverage, seed: int, order: NDArray[np.intp] | None = None
) -> WeightJudge:
    """The stored values against the checkpoint's. order: as in `_source`."""
    judge = WeightJudge(weight.stored.kind, INT4_BLOCK)
    unit = weight.stored.unit
    width = int(np.prod(weight.shape[1:], dtype=np.int64)) * unit
    for chosen in sampled_rows(weight.shape[0] // unit, width, coverage, seed):
        for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
            first, last = int(run[0]) * unit, (int(run[-1]) + 1) * unit
            values = _flat(weight, weight.float32(first, last))
            wanted = _source(weight, order, first, last)
            steps = weight.steps(first, last, wanted)
            own_steps = None if steps is None else _flat(weight, steps)
            judge.add(values, _flat(weight, wanted), run * unit, own_steps)
    judge.conclude()
    return judge


def _compare_tensor(name: str, weight: StoredWeight | None, case: Case) -> TensorComparison:
    """One tensor of the checkpoint against the artefact's."""
    if weight is None:
        return TensorComparison(name=name, stored_as=None, problem="is missing")
    comparison = TensorComparison(name=name, stored_as=weight.stored.kind)
    if not weight.stored.is_read:
        return replace(comparison, known=False)
    if not weight.fits:
        shape_problem = (
            f"has shape {list(weight.shape)}, for {list(weight.binding.expected.shape)} of the checkpoint"
        )
        return replace(comparison, problem=shape_problem)
    coverage, seed = case.options.coverage, case.options.seed
    judge = _judge(weight, coverage, seed)
    problem, moved = judge.problem, False
    if problem is not None:
        orders = wrong_orders(case.plan, weight.binding.expected)
        moved = any(_judge(weight, coverage, seed, order).problem is None for order in orders)
        problem = MOVED if moved else problem
    else:
        problem = _coarse_column(weight, coverage, seed)
    return replace(comparison, judged=judge.judged, relative=judge.relative, problem=problem, moved=moved)


def judge_weights(case: Case) -> tuple[Verdict, list[TensorComparison]]:
    """Every tensor of the checkpoint."""
    if (verdict := left_out(case.plan, case.options.coverage)) is not None:
        return verdict, []
    compared = []
    with case.progress.stage("Comparing weights", len(case.weights)) as advance:
        for name, weight in case.weights.items():
            compared.append(_compare_tensor(name, weight, case))
            advance(1)
    for file in case.files:
        file.forget()
    return conclude_weights(compared, ()), compared
