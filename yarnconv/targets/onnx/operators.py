"""Where the dialects and the forms of the KV cache differ, and nothing else.

in-place: a buffer of the client's size, new keys scattered into it (TensorScatter, opset 24); attention runs
    over the whole buffer, and the buffer's size is the context that the request declared.
concat: past and new keys concatenated (opset 23), which older runtimes and TensorRT take.
ort-cuda: ONNX Runtime's own GroupQueryAttention in place of the standard Attention, for CUDA's kernel of it.
    It has no mask: a row with padding in it gives NaN.

The standard dialect's mask comes from each slot's rank, the count of real tokens up to it, never from
position_ids: those feed RoPE only and may be sparse.

Softcapped scores are made of primitive nodes: of Attention's own softcap TensorRT's parser takes none, and
ONNX says that it comes behind the mask, where ONNX Runtime 1.32 (measured) puts it in front, as models do.
So is a softmax with sinks, of which Attention knows nothing.

Shapes: B batch, S new tokens, T past and new tokens, C slots of the cache, H heads, D head_dim.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from yarnconv.model.description import AttentionDescription
from yarnconv.targets.onnx.graph import Graph

ROPE_CONTEXT = "rope_context"  # the input by which the concat form is told the request's context
KvForm = Literal["in-place", "concat"]
Dialect = Literal["standard", "ort-cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Names of one layer's cache: graph inputs and outputs, [B, key/value heads, C, D]."""

    past_key: str
    past_value: str
    present_key: str
    present_value: str


class Operators(Protocol):
    """One dialect with one form of the cache."""

    opset: int
    past_dimension: str
    present_dimension: str

    def begin(self, graph: Graph) -> None:
        """What is computed once, from the inputs attention_mask and input_ids."""

    def guarded(self, graph: Graph, embedded: str) -> str:
        """The embedded tokens, NaN in rows that this dialect cannot serve."""

    def attend(
        self,
        graph: Graph,
        attention: AttentionDescription,
        heads: tuple[str, str, str],
        slots: Slots,
        scale: float,
        sinks: str | None,
    ) -> str:
        """Attention of rotated queries to past and new keys: [B, S, H D]. heads: query, key and value, each
        [B, H, S, D]. scale: of the scores. sinks: float32[H], scores that take a share and give nothing.
        """

    def context(self, graph: Graph, default: int | None) -> str:
        """int64[1]: the context that the request declared. default: where it is an input, its value unless
        the request gives another; None where every request has to give one.
        """


def _joined(graph: Graph, heads_first: str, width: int) -> str:
    """[B, H, S, D] as [B, S, H D]."""
    last = graph.node("Transpose", heads_first, perm=[0, 2, 1, 3])
    return graph.node("Reshape", last, graph.constant([0, 0, width]))


def _buffer_size(graph: Graph) -> str:
    return graph.size("past_key_values.0.key", 2)


def _by_hand(
    graph: Graph,
    heads: tuple[str, str, str],
    mask: str,
    scale: float,
    softcap: float | None,
    sinks: str | None,
) -> str:
    """Attention of primitive nodes: [B, heads, S, D]. heads: queries, and as many heads of all keys and
    values. softcap: c of scores c tanh(score / c). sinks: [B, heads, S, 1]. From the scores on it computes in
    float32, as Attention's softmax does.
    """
    query, keys, values = heads
    scaled = graph.node("Mul", query, graph.node("CastLike", graph.constant(scale, "float32"), query))
    scores = graph.node("MatMul", scaled, graph.node("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = graph.cast(scores, "FLOAT")
    if softcap is not None:
        cap = graph.constant(softcap, "float32")
        scores = graph.node("Mul", graph.node("Tanh", graph.node("Div", scores, cap)), cap)
    masked = graph.node("Where", mask, scores, graph.constant(float("-inf"), "float32"))
    if sinks is not None:
        masked = graph.node("Concat", masked, sinks, axis=3)
    shares = graph.node("Softmax", masked, axis=-1)
    if sinks is not None:
        first, last = graph.constant([0]), graph.constant([-1])
        shares = graph.node("Slice", shares, first, last, graph.constant([3]))
    return graph.node("MatMul", graph.node("CastLike", shares, query), values)


def _sink_column(graph: Graph, sinks: str, query: str, few: int, groups: int) -> str:
    """[B, few, groups S, 1]: of every query its head's sink, where those that share a key head are folded.
    query: [B, few groups, S, D].
    """
    by_group = graph.node("Reshape", sinks, graph.constant([1, few, groups, 1]))
    count = graph.constant([few, groups])
    size = graph.node("Concat", graph.size(query, 0), count, graph.size(query, 2), axis=0)
    return graph.node("Reshape", graph.node("Expand", by_group, size), graph.constant([0, few, -1, 1]))


class _Standard:
    """The standard Attention with an explicit mask.

    folds_groups: whether the query heads that share a key head are handed over as further queries of it. It
    is the same sum, and the cache is read once and not once per query head. Measured on two cores, 24 query
    and 8 key heads: a step over 32768 slots takes 0.7 of the time, one over 512 takes 1 to 2 % more.
    """

    folds_groups = False

    def __init__(self) -> None:
        self._ranks = self._real = self._query_ranks = ""
        self._masks: dict[tuple[int | None, int], str] = {}

    def guarded(self, graph: Graph, embedded: str) -> str:
        """As they are: the mask serves every row."""
        return embedded

    def _rank(self, graph: Graph, mask: str, begin: str, end: str) -> None:
        """Ranks of all slots, and those of the new tokens, which stand at begin..end-1."""
        self._ranks = graph.node("CumSum", mask, graph.constant(1))
        own = graph.node("Slice", self._ranks, begin, end, graph.constant([1]))
        # a query that is padding itself sees the first real token: an empty row would be NaN and spread
        own = graph.node("Max", own, graph.constant([1]))
        self._real = graph.node("Unsqueeze", graph.cast(mask, "BOOL"), graph.constant([1, 2]))
        self._query_ranks = graph.node("Unsqueeze", own, graph.constant([1, 3]))

    def _mask(self, graph: Graph, window: int | None, groups: int) -> str:
        """bool[B, 1, groups S, C]: real slots up to the query's own rank, and within its window."""
        if (window, groups) not in self._masks:
            ranks = graph.node("Unsqueeze", self._ranks, graph.constant([1, 2]))
            seen = graph.node("And", graph.node("LessOrEqual", ranks, self._query_ranks), self._real)
            if window is not None:
                reach = graph.node("Add", ranks, graph.constant([window]))
                seen = graph.node("And", seen, graph.node("Greater", reach, self._query_ranks))
            if groups > 1:
                seen = graph.node("Tile", seen, graph.constant([1, 1, groups, 1]))
            self._masks[window, groups] = seen
        return self._masks[window, groups]

    def _extend(self, graph: Graph, past: str, new: str, present: str) -> str:
        """Past keys or values with the new ones."""
        raise NotImplementedError

    def attend(
        self,
        graph: Graph,
        attention: AttentionDescription,
        heads: tuple[str, str, str],
        slots: Slots,
        scale: float,
        sinks: str | None,
    ) -> str:
        """Attention of the new tokens to the whole cache."""
        query, key, value = heads
        keys = self._extend(graph, slots.past_key, key, slots.present_key)
        values = self._extend(graph, slots.past_value, value, slots.present_value)
        few, head_dim = attention.key_value_heads, attention.head_dim
        by_hand = attention.softcap is not None or sinks is not None
        folds = self.folds_groups or by_hand
        groups = attention.heads // few if folds else 1
        mask = self._mask(graph, attention.window, groups)
        if sinks is not None:
            sinks = _sink_column(graph, sinks, query, few, groups)
        if groups > 1:
            query = graph.node("Reshape", query, graph.constant([0, few, -1, head_dim]))
        if by_hand:
            attended = _by_hand(graph, (query, keys, values), mask, scale, attention.softcap, sinks)
        else:
            attended = graph.node("Attention", query, keys, values, mask, scale=scale)
        if groups > 1:
            attended = graph.node("Reshape", attended, graph.constant([0, attention.heads, -1, head_dim]))
        return _joined(graph, attended, attention.heads * attention.head_dim)


class InPlace(_Standard):
    """The client's buffer, written in place."""

    folds_groups = True
    opset = 24
    past_dimension = "kv_capacity"
    present_dimension = "kv_capacity"

    def __init__(self) -> None:
        super().__init__()
        self._write_at = ""

    def begin(self, graph: Graph) -> None:
        """Pads attention_mask to the buffer's size; new tokens go behind the past ones."""
        new, total = graph.size("input_ids", 1), graph.size("attention_mask", 1)
        past = graph.node("Sub", total, new)
        missing = graph.node("Sub", _buffer_size(graph), total)
        pads = graph.node("Concat", graph.constant([0, 0, 0]), missing, axis=0)
        mask = graph.node("Pad", "attention_mask", pads)
        self._write_at = graph.node("Expand", past, graph.size("input_ids", 0))
        self._rank(graph, mask, past, total)

    def _extend(self, graph: Graph, past: str, new: str, present: str) -> str:
        return graph.node("TensorScatter", past, new, self._write_at, output=present, axis=2)

    def context(self, graph: Graph, default: int | None) -> str:
        """The buffer's size: it cannot change in mid-sequence, and the client need not know of it."""
        return _buffer_size(graph)


class Concat(_Standard):
    """A cache that grows with the sequence."""

    opset = 23
    past_dimension = "past_sequence_length"
    present_dimension = "total_sequence_length"

    def begin(self, graph: Graph) -> None:
        """attention_mask is as long as the cache will be."""
        total = graph.size("attention_mask", 1)
        past = graph.node("Sub", total, graph.size("input_ids", 1))
        self._rank(graph, "attention_mask", past, total)

    def _extend(self, graph: Graph, past: str, new: str, present: str) -> str:
        return graph.node("Concat", past, new, output=present, axis=2)

    def context(self, graph: Graph, default: int | None) -> str:
        """An input: prompt and new tokens together. A scalar where it has a default; of one dimension where
        it has none, as Triton takes no scalars.
        """
        if default is None:
            return graph.input(ROPE_CONTEXT, "INT64", [1])
        graph.input(ROPE_CONTEXT, "INT64", [])
        graph.defaulted(ROPE_CONTEXT, default)
        return graph.node("Unsqueeze", ROPE_CONTEXT, graph.constant([0]))


class GroupQuery:
    """ONNX Runtime's GroupQueryAttention over a buffer of the client's. Keys are rotated before it, by the
    same tables and the same nodes as elsewhere.
    """

    opset = 23
    past_dimension = "kv_capacity"
    present_dimension = "kv_capacity"

    def __init__(self) -> None:
        self._last = self._total = ""

    def begin(self, graph: Graph) -> None:
        """The operator wants int32: each row's last slot, and the count of past and new tokens."""
        total = graph.size("attention_mask", 1)
        counted = graph.node("Sub", total, graph.constant([1]))
        last = graph.node("Expand", counted, graph.size("input_ids", 0))
        self._last = graph.cast(last, "INT32")
        self._total = graph.cast(graph.node("Squeeze", total, graph.constant([0])), "INT32")

    def guarded(self, graph: Graph, embedded: str) -> str:
        """NaN where a row is padded, which the operator would take for text."""
        least = graph.node("ReduceMin", "attention_mask", graph.constant([1]), keepdims=1)
        padded = graph.node("Unsqueeze", graph.node("Less", least, graph.constant([1])), graph.constant([2]))
        nan = graph.node("CastLike", graph.constant(float("nan"), "float32"), embedded)
        return graph.node("Where", padded, nan, embedded)

    def attend(
        self,
        graph: Graph,
        attention: AttentionDescription,
        heads: tuple[str, str, str],
        slots: Slots,
        scale: float,
        sinks: str | None,
    ) -> str:
        """Attention of the new tokens to the whole cache, which the operator extends itself."""
        query, key, value = heads
        narrow = attention.key_value_heads * attention.head_dim
        return graph.node(
            "GroupQueryAttention",
            _joined(graph, query, attention.heads * attention.head_dim),
            _joined(graph, key, narrow),
            _joined(graph, value, narrow),
            slots.past_key,
            slots.past_value,
            self._last,
            self._total,
            *([] if sinks is None else [*[""] * 4, graph.node("CastLike", sinks, query)]),
            more_outputs=(slots.present_key, slots.present_value),
            domain="com.microsoft",
            num_heads=attention.heads,
            kv_num_heads=attention.key_value_heads,
            scale=scale,
            local_window_size=-1 if attention.window is None else attention.window,
            softcap=attention.softcap or 0.0,
        )

    def context(self, graph: Graph, default: int | None) -> str:
        """The buffer's size, as in the standard dialect."""
        return _buffer_size(graph)


OPERATORS: dict[tuple[Dialect, KvForm], type[InPlace] | type[Concat] | type[GroupQuery]] = {
    ("standard", "in-place"): InPlace,
    ("standard", "concat"): Concat,
    ("ort-cuda", "in-place"): GroupQuery,
}
