"""Where the two forms of the KV cache differ, and nothing else.

in-place: a buffer of the client's size, new keys scattered into it (TensorScatter, opset 24); attention runs
    over the whole buffer, and the buffer's size is the context that the request declared.
concat: past and new keys concatenated (opset 23), which older runtimes and TensorRT take.

The mask comes from each slot's rank, the count of real tokens up to it, never from position_ids: those feed
RoPE only and may be sparse. Shapes: B batch, S new tokens, T past and new tokens, C slots of the cache.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from yarnconv.targets.onnx.graph import Graph

KvForm = Literal["in-place", "concat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What the layers share. ranks: int64[B, C]; real: bool[B, 1, 1, C]; query_ranks: int64[B, 1, S, 1]."""

    ranks: str
    real: str
    query_ranks: str


class Operators(Protocol):
    """One form of the cache."""

    opset: int
    past_dimension: str
    present_dimension: str

    def begin(self, graph: Graph) -> Cache:
        """What is computed once, from the inputs attention_mask and input_ids."""

    def extend(self, graph: Graph, past: str, new: str, present: str) -> str:
        """Past keys or values with the new ones: [B, heads, C, head_dim]."""

    def context(self, graph: Graph, target_context: int) -> str:
        """int64[1]: the context that the request declared."""


def _cache(graph: Graph, mask: str, begin: str, end: str) -> Cache:
    """Ranks of all slots, and those of the new tokens, which stand at begin..end-1."""
    ranks = graph.node("CumSum", mask, graph.constant(1))
    own = graph.node("Slice", ranks, begin, end, graph.constant([1]))
    # a query that is padding itself sees the first real token: an empty row would be NaN and spread
    own = graph.node("Max", own, graph.constant([1]))
    real = graph.cast(mask, "BOOL")
    return Cache(
        ranks=ranks,
        real=graph.node("Unsqueeze", real, graph.constant([1, 2])),
        query_ranks=graph.node("Unsqueeze", own, graph.constant([1, 3])),
    )


class InPlace:
    """The client's buffer, written in place."""

    opset = 24
    past_dimension = "kv_capacity"
    present_dimension = "kv_capacity"

    def __init__(self) -> None:
        self._write_at = ""

    def begin(self, graph: Graph) -> Cache:
        """Pads attention_mask to the buffer's size; new tokens go behind the past ones."""
        new, total = graph.size("input_ids", 1), graph.size("attention_mask", 1)
        past = graph.node("Sub", total, new)
        missing = graph.node("Sub", self._capacity(graph), total)
        pads = graph.node("Concat", graph.constant([0, 0, 0]), missing, axis=0)
        mask = graph.node("Pad", "attention_mask", pads)
        self._write_at = graph.node("Expand", past, graph.size("input_ids", 0))
        return _cache(graph, mask, past, total)

    def extend(self, graph: Graph, past: str, new: str, present: str) -> str:
        """Scattered at the end of the past."""
        return graph.node("TensorScatter", past, new, self._write_at, output=present, axis=2)

    def context(self, graph: Graph, target_context: int) -> str:
        """The buffer's size: it cannot change in mid-sequence, and the client need not know of it."""
        return self._capacity(graph)

    @staticmethod
    def _capacity(graph: Graph) -> str:
        return graph.size("past_key_values.0.key", 2)


class Concat:
    """A cache that grows with the sequence."""

    opset = 23
    past_dimension = "past_sequence_length"
    present_dimension = "total_sequence_length"

    def begin(self, graph: Graph) -> Cache:
        """attention_mask is as long as the cache will be."""
        total = graph.size("attention_mask", 1)
        past = graph.node("Sub", total, graph.size("input_ids", 1))
        return _cache(graph, "attention_mask", past, total)

    def extend(self, graph: Graph, past: str, new: str, present: str) -> str:
        """Concatenated."""
        return graph.node("Concat", past, new, output=present, axis=2)

    def context(self, graph: Graph, target_context: int) -> str:
        """A scalar input: prompt and new tokens together. Without it, the whole target context."""
        graph.input("rope_context", "INT64", [])
        graph.defaulted("rope_context", target_context)
        return graph.node("Unsqueeze", "rope_context", graph.constant([0]))


OPERATORS: dict[KvForm, type[InPlace] | type[Concat]] = {"in-place": InPlace, "concat": Concat}
