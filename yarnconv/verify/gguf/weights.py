"""The weights verdict of a GGUF."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.codes import Mxfp4Tensor
from yarnconv.checkpoint.floats import Rows, to_float32
from yarnconv.checkpoint.sources import TensorSource, load, row_count, take
from yarnconv.targets.gguf.blocks import interleave_heads
from yarnconv.targets.gguf.file_format import BLOCKS, TensorType
from yarnconv.targets.gguf.placement import MadeTensor, TensorPlacement
from yarnconv.targets.gguf.reader import StoredTensor
from yarnconv.targets.gguf.rope import LONGROPE_TENSORS, ROPE_FREQS
from yarnconv.targets.gguf.steps import value_steps
from yarnconv.verify.gguf.case import Case
from yarnconv.verify.hypotheses import wrong_orders
from yarnconv.verify.verdict import Verdict
from yarnconv.verify.weights import (
    BLOCK_TYPES,
    FLOAT_TYPES,
    MOVED,
    TensorComparison,
    WeightJudge,
    conclude_weights,
    left_out,
    sampled_rows,
)


@dataclass(frozen=True, slots=True)
class _Column:
    """Values of a small tensor, [rows, width]."""

    values: Rows

    def take(self, rows: NDArray[np.intp]) -> Rows:
        return self.values[rows]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Rows of a source, each of which stands in the artefact where `order` says."""

    source: TensorSource
    order: NDArray[np.intp] | None

    def take(self, rows: NDArray[np.intp]) -> Rows:
        return take(self.source, rows if self.order is None else self.order[rows])


def _wanted(placement: TensorPlacement, wrong: NDArray[np.intp] | None = None) -> _Column | _Matrix:
    """What the artefact's tensor should hold, row by row. wrong: an order that its rows may stand in."""
    source, heads = placement.source, placement.interleave_heads
    order: NDArray[np.intp] | None = None
    if heads is not None or wrong is not None:
        order = np.arange(row_count(source.shape))
        if heads is not None:
            order = interleave_heads(order[:, None], heads)[:, 0].astype(np.intp)
        order = order if wrong is None else order[wrong]
    if placement.is_column:
        values = load(source).reshape(-1)
        values = values if order is None else values[order]
        return _Column(values.reshape(placement.shape[0] if len(placement.shape) > 1 else 1, -1))
    return _Matrix(source, order)


MOST_PREDICTING = 16  # layers behind the model's, of which published models have one


def _judge(
    stored: StoredTensor, wanted_rows: _Column | _Matrix, place: TensorPlacement, case: Case
) -> WeightJudge:
    """The stored rows against those that each of them should be."""
    dtype, coverage, seed = place.binding.source.dtype, case.options.coverage, case.options.seed
    # codes of four bits that were copied, not rounded
    exact = stored.tensor_type is TensorType.MXFP4 and isinstance(place.binding.source, Mxfp4Tensor)
    judge = WeightJudge(stored.tensor_type.name, BLOCKS[stored.tensor_type][0], exact=exact)
    for rows in sampled_rows(stored.row_count, stored.shape[-1], coverage, seed):
        wanted = to_float32(np.ascontiguousarray(wanted_rows.take(rows)), dtype)
        if place.added != 0.0:
            wanted = wanted + np.float32(place.added)
        steps = value_steps(stored.packed(rows), stored.tensor_type)
        judge.add(
            stored.rows(rows).reshape(-1),
            wanted.reshape(-1),
            rows,
            None if steps is None else steps.reshape(-1),
        )
    judge.conclude()
    return judge


def _compare_tensor(placement: TensorPlacement, stored: StoredTensor | None, case: Case) -> TensorComparison:
    """One tensor of the checkpoint against the artefact's."""
    if stored is None:
        return TensorComparison(name=placement.name, stored_as=None, problem="is missing")
    comparison = TensorComparison(name=placement.name, stored_as=stored.tensor_type.name)
    kind = stored.tensor_type.name
    if not placement.fits(stored.shape):
        return replace(comparison, problem=f"has shape {list(stored.shape)}, not {list(placement.shape)}")
    if kind not in FLOAT_TYPES and kind not in BLOCK_TYPES:
        return replace(comparison, known=False)
    judge = _judge(stored, _wanted(placement), placement, case)
    if judge.problem is not None:
        for wrong in wrong_orders(case.plan, placement.binding.expected):
            if len(wrong) != row_count(placement.source.shape):
                continue  # of a fused matrix a part
            if _judge(stored, _wanted(placement, wrong), placement, case).problem is None:
                return replace(
                    comparison, judged=judge.judged, relative=judge.relative, problem=MOVED, moved=True
                )
    return replace(comparison, judged=judge.judged, relative=judge.relative, problem=judge.problem)


def _compare_made(made: MadeTensor, stored: StoredTensor | None) -> TensorComparison:
    """One that no checkpoint holds, value by value."""
    if stored is None:
        return TensorComparison(name=made.name, stored_as=None, problem="is missing")
    comparison = TensorComparison(
        name=made.name, stored_as=stored.tensor_type.name, judged=made.values.size, relative=0.0
    )
    if stored.shape != made.values.shape:
        return replace(comparison, problem=f"has shape {list(stored.shape)}, not {list(made.values.shape)}")
    if not np.array_equal(stored.rows(slice(None)).reshape(-1), made.values):
        return replace(comparison, problem="is not what takes no part in the computation")
    return comparison


def _compare_all(case: Case) -> list[TensorComparison]:
    compared = []
    with case.progress.stage("Comparing weights", len(case.places)) as advance:
        for place in case.places:
            stored = case.artefact.tensors.get(place.name)
            compared.append(_compare_tensor(place, stored, case))
            advance(1)
    compared += [_compare_made(made, case.artefact.tensors.get(made.name)) for made in case.made]
    for file in case.files:
        file.forget()
    return compared


def judge_weights(case: Case) -> tuple[Verdict, list[TensorComparison]]:
    """Every tensor of the checkpoint, and none besides (divisors of RoPE are the metadata verdict's)."""
    if (verdict := left_out(case.plan, case.options.coverage)) is not None:
        return verdict, []
    compared = _compare_all(case)
    known = {place.name for place in case.places} | {made.name for made in case.made}
    known |= {ROPE_FREQS, *LONGROPE_TENSORS}
    layers = len(case.plan.description.layers)
    beyond = range(layers, layers + min(case.artefact.predicting_layers, MOST_PREDICTING))
    others = tuple(f"blk.{index}." for index in beyond)
    surplus = {name for name in case.artefact.tensors.keys() - known if not name.startswith(others)}
    return conclude_weights(compared, sorted(surplus)), compared
