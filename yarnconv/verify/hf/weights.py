"""The weights verdict of an extended checkpoint: its tensors are the checkpoint's, byte for byte."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import row_bytes
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.hf.case import Case
from yarnconv.verify.hypotheses import wrong_orders
from yarnconv.verify.verdict import Verdict
from yarnconv.verify.weights import MOVED, TensorComparison, conclude_weights, left_out, sampled_rows


def _is_the_same_place(one: TensorRef, other: TensorRef) -> bool:
    """Whether both are the same bytes of the same file: one that was linked."""
    return one.offset == other.offset and one.file.path.samefile(other.file.path)


def _are_moved(source: TensorRef, found: TensorRef, wrong: Sequence[NDArray[np.intp]]) -> bool:
    """A bias's values move as a matrix's rows do."""
    wanted, stored = (row_bytes(ref).reshape(ref.shape[0], -1) for ref in (source, found))
    return any(np.array_equal(wanted[order], stored) for order in wrong)


def _compare(
    source: TensorRef, found: TensorRef | None, wrong: Sequence[NDArray[np.intp]], options: CheckOptions
) -> TensorComparison:
    """wrong: orders in which rows may stand by mistake."""
    if found is None:
        return TensorComparison(name=source.name, stored_as=None, problem="is missing")
    comparison = TensorComparison(name=source.name, stored_as=found.dtype)
    if (found.dtype, found.shape) != (source.dtype, source.shape):
        problem = f"is {found.dtype} {list(found.shape)}, not {source.dtype} {list(source.shape)}"
        return replace(comparison, problem=problem)
    if _is_the_same_place(source, found):
        return replace(comparison, judged=prod(source.shape), relative=0.0)
    wanted, stored = (row_bytes(tensor) for tensor in (source, found))
    judged = 0
    for rows in sampled_rows(len(wanted), source.shape[-1], options.coverage, options.seed):
        # as bits, so that a NaN is itself
        same = (wanted[rows] == stored[rows]).all(axis=-1)
        judged += len(rows) * source.shape[-1]
        if not same.all():
            if _are_moved(source, found, wrong):
                return replace(comparison, judged=judged, problem=MOVED, moved=True)
            first = int(rows[np.argmin(same)])
            problem = f"{int((~same).sum())} rows are not the checkpoint's, the first is row {first}"
            return replace(comparison, judged=judged, problem=problem)
    return replace(comparison, judged=judged, relative=0.0)


def judge_weights(case: Case) -> tuple[Verdict, list[TensorComparison]]:
    """Every tensor of the checkpoint, and none besides."""
    if (verdict := left_out(case.plan, case.options.coverage)) is not None:
        return verdict, []
    compared = []
    expected = {binding.expected.name: binding.expected for binding in case.plan.bindings}
    stored = {ref.name: ref for binding in case.plan.bindings for ref in binding.source.refs}
    with case.progress.stage("Comparing weights", len(stored)) as advance:
        for name, source in stored.items():
            wrong = wrong_orders(case.plan, expected[name]) if name in expected else ()
            compared.append(_compare(source, case.artefact.tensors.get(name), wrong, case.options))
            advance(1)
    for tensors in (case.artefact.tensors, case.plan.checkpoint.tensors):
        for file in {id(ref.file): ref.file for ref in tensors.values()}.values():
            file.forget()
    surplus = case.artefact.tensors.keys() - case.plan.checkpoint.tensors.keys()
    return conclude_weights(compared, sorted(surplus)), compared
