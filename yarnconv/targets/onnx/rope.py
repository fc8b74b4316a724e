"""The plan's tables in the graph: cos and sin of every bucket one after the other, looked up by position.

The tables are exact: float64, rounded once to float32, the temperature folded in. (transformers rounds each
frequency and each angle to float32, which is 3.9e-3 rad at position 131071; `check` allows for that.)

A bucket of factor b serves requests of up to b x original positions and holds as many rows, and the last one
whatever context there is: longrope's second set, whose factor is no ratio of contexts, too. The last row of
all is NaN: a position beyond its bucket's rows, or a negative one, gets that, never another row's rotation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.rope.tables import RopeTables, reached_context
from yarnconv.rope_plan import RopeGroup
from yarnconv.targets.onnx.external_data import PIECE_VALUES, ExternalTensor
from yarnconv.targets.onnx.graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayout:
    """buckets, and how many positions each holds."""

    buckets: tuple[RopeTables, ...]
    positions: tuple[int, ...]

    @property
    def offsets(self) -> list[int]:
        """First row of each bucket."""
        return [sum(self.positions[:index]) for index in range(len(self.positions))]

    @property
    def rows(self) -> int:
        """Rows of all buckets, without the one of NaN."""
        return sum(self.positions)


def group_context(group: RopeGroup, original_context: int) -> int:
    """The context that a group's factors are counted from: its own scaling's, which need not be that of the
    layers that are extended. original_context: the plan's, where the scaling has none.
    """
    own: int = getattr(group.scaling, "original_context", original_context)
    return own


def lay_out_tables(group: RopeGroup, original_context: int, max_context: int) -> TableLayout:
    """Buckets that a context of at most `max_context` can reach. original_context: the plan's."""
    original = group_context(group, original_context)
    if len(group.buckets) == 1:
        return TableLayout(buckets=group.buckets, positions=(max_context,))
    kept, positions = list[RopeTables](), list[int]()
    for tables in group.buckets:
        kept.append(tables)
        last = len(kept) == len(group.buckets)
        reach = max_context if last else reached_context(original, tables.factor)
        positions.append(min(reach, max_context))
        if positions[-1] == max_context:
            break
    return TableLayout(buckets=tuple(kept), positions=tuple(positions))


def is_dynamic(group: RopeGroup, original_context: int, max_context: int) -> bool:
    """Whether a request's context chooses among frequencies, in tables of so many positions.
    original_context: the plan's.
    """
    return len(lay_out_tables(group, original_context, max_context).buckets) > 1


def _table_rows(layout: TableLayout, which: str, first: int, last: int) -> NDArray[np.float32]:
    """Rows first..last-1 of the table of cos or sin: float32[last - first, pairs]."""
    pairs = len(layout.buckets[0].inv_freq)
    out = np.full((last - first, pairs), np.nan, dtype=np.float32)
    for tables, offset, count in zip(layout.buckets, layout.offsets, layout.positions, strict=True):
        begin, end = max(first, offset), min(last, offset + count)
        if begin < end:
            made = tables.cos if which == "cos" else tables.sin
            out[begin - first : end - first] = made(begin - offset, end - offset)
    return out


def _tables(graph: Graph, layout: TableLayout, suffix: str) -> list[str]:
    pairs = len(layout.buckets[0].inv_freq)
    return [
        graph.tensor(
            ExternalTensor(
                name=f"{which}_cache{suffix}",
                element="FLOAT",
                bits=32,
                shape=(layout.rows + 1, pairs),
                rows=lambda first, last, which=which: _table_rows(layout, which, first, last),  # type: ignore[misc]
                step=max(1, PIECE_VALUES // pairs),
            )
        )
        for which in ("cos", "sin")
    ]


def _rounded(values: NDArray[np.float64], element: str) -> NDArray[np.generic]:
    """Float64 rounded once to an ONNX float type; bfloat16 as its 16 bits."""
    if element != "BFLOAT16":
        return values.astype(np.float16) if element == "FLOAT16" else values.astype(np.float32)
    significand, exponent = np.frexp(values)
    short = np.ldexp(np.rint(np.ldexp(significand, 8)), exponent - 8)  # to its 8 bits, ties to even
    bits: NDArray[np.uint32] = short.astype(np.float32).view(np.uint32) >> 16
    return bits.astype(np.uint16)


def bare_table(name: str, which: str, tables: RopeTables, positions: int, element: str) -> ExternalTensor:
    """The table of cos or sin of one bucket, without a row of NaN: for nodes that look rows up themselves.
    element: its ONNX type's name, to which float64 is rounded once.
    """
    pairs = len(tables.inv_freq)

    def rows(first: int, last: int) -> NDArray[np.generic]:
        angles = np.arange(first, last, dtype=np.float64)[:, None] * tables.inv_freq
        values = np.cos(angles) if which == "cos" else np.sin(angles)
        return _rounded(values * tables.attention_factor, element)

    return ExternalTensor(
        name=name,
        element=element,
        bits=32 if element == "FLOAT" else 16,
        shape=(positions, pairs),
        rows=rows,
        step=max(1, PIECE_VALUES // pairs),
    )


def _per_bucket(graph: Graph, values: Sequence[int], bucket: str | None) -> str:
    """int64[1]: the value of the request's bucket."""
    if bucket is None:
        return graph.constant([values[0]])
    return graph.node("Gather", graph.constant(list(values)), bucket)


def request_bucket(graph: Graph, layout: TableLayout, context: str | None) -> str | None:
    """int64[1]: which bucket a request is of; None where there is one only. context: int64[1], the context
    that the request declared.
    """
    if len(layout.buckets) == 1:
        return None
    assert context is not None
    beyond = graph.node("Less", graph.constant(list(layout.positions[:-1])), context)
    return graph.node("ReduceSum", graph.cast(beyond, "INT64"), graph.constant([0]), keepdims=1)


def softmax_multiplier(graph: Graph, layout: TableLayout, bucket: str | None) -> str | None:
    """float32[1]: what the request's bucket multiplies scores by; None where all buckets do it alike."""
    values = [tables.softmax_multiplier for tables in layout.buckets]
    if bucket is None or len(set(values)) == 1:
        return None
    return graph.node("Gather", graph.constant(values, "float32"), bucket)


def rotation(graph: Graph, layout: TableLayout, bucket: str | None, suffix: str = "") -> tuple[str, str]:
    """(cos, sin) of the positions asked for: float32[B, S, pairs]. bucket: as `request_bucket`."""
    rows = graph.node("Add", "position_ids", _per_bucket(graph, layout.offsets, bucket))
    limit = _per_bucket(graph, layout.positions, bucket)
    within = graph.node(
        "And",
        graph.node("Less", "position_ids", limit),
        graph.node("GreaterOrEqual", "position_ids", graph.constant([0])),
    )
    rows = graph.node("Where", within, rows, graph.constant([layout.rows]))
    cos, sin = (graph.node("Gather", table, rows, axis=0) for table in _tables(graph, layout, suffix))
    return cos, sin
