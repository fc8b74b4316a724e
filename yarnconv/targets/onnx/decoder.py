"""The decoder graph of a described model: one block builder for every family.

Inputs and outputs carry the ecosystem's names: input_ids, attention_mask, position_ids, past_key_values.N.key
and .value to logits, present.N.key and .value. Shapes: B batch, S new tokens, H heads, D head_dim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.model.description import AttentionDescription, LayerDescription
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.graph import Dimension, Graph
from yarnconv.targets.onnx.operators import OPERATORS, Cache, KvForm, Operators
from yarnconv.targets.onnx.rope import lay_out_tables, rotation
from yarnconv.targets.onnx.weights import (
    FLOAT_TYPES,
    INT4_BLOCK,
    ElementType,
    as_it_lies,
    quantised,
    quantises,
    transposed,
)

Role = tuple[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """dtype: fp32, fp16, bf16, or int4 (4-bit matrices, the rest fp32). max_context: positions of the tables.
    last_token_only: logits of the last token instead of all.
    """

    dtype: str
    kv: KvForm
    max_context: int
    last_token_only: bool = False

    @property
    def element(self) -> ElementType:
        """What the graph computes in."""
        return FLOAT_TYPES["fp32" if self.dtype == "int4" else self.dtype]


class _Decoder:
    """Builds one graph."""

    def __init__(self, plan: ConversionPlan, options: GraphOptions) -> None:
        self._plan = plan
        self._options = options
        self._element = options.element
        self._operators: Operators = OPERATORS[options.kv]()
        self._graph = Graph(self._operators.opset)
        self._sources: Mapping[Role, tuple[str, TensorRef]] = {
            (b.expected.role, b.expected.layer): (b.expected.name, b.source) for b in plan.bindings
        }
        self._stored: dict[Role, str] = {}

    # tensors

    def _as_it_lies(self, role: str, layer: int | None = None) -> str:
        if (role, layer) not in self._stored:
            name, source = self._sources[role, layer]
            self._stored[role, layer] = self._graph.tensor(as_it_lies(name, source, self._element))
        return self._stored[role, layer]

    def _linear(self, x: str, role: str, layer: int | None) -> str:
        """X times a matrix, and its bias where the model has one."""
        graph, (name, source) = self._graph, self._sources[role, layer]
        if self._options.dtype == "int4" and layer is not None and quantises(source.shape):
            codes, scales = (graph.tensor(tensor) for tensor in quantised(name, source))
            matrix = graph.node("DequantizeLinear", codes, scales, axis=0, block_size=INT4_BLOCK)
        else:
            matrix = graph.tensor(transposed(name, source, self._element))
        y = graph.node("MatMul", x, matrix)
        bias = f"{role}_bias"
        return graph.node("Add", y, self._as_it_lies(bias, layer)) if (bias, layer) in self._sources else y

    def _norm(self, x: str, role: str, layer: int | None = None) -> str:
        epsilon = self._plan.description.norm_epsilon
        return self._graph.node(
            "RMSNormalization", x, self._as_it_lies(role, layer), axis=-1, epsilon=epsilon
        )

    # attention

    def _heads(self, x: str, heads: int, head_dim: int) -> str:
        return self._graph.node("Reshape", x, self._graph.constant([0, 0, heads, head_dim]))

    def _heads_first(self, x: str) -> str:
        return self._graph.node("Transpose", x, perm=[0, 2, 1, 3])

    def _rotated(self, x: str, cos_sin: tuple[str, str] | None, attention: AttentionDescription) -> str:
        """[B, H, S, D], rotated in float32 whatever the graph's dtype."""
        if cos_sin is None:
            return x
        graph, narrow = self._graph, self._element.name != "FLOAT"
        if narrow:
            x = graph.cast(x, "FLOAT")
        rotary_dim = self._plan.rope.main.rotary_dim
        x = graph.node(
            "RotaryEmbedding",
            x,
            *cos_sin,
            interleaved=int(attention.pairing == "interleaved"),
            rotary_embedding_dim=0 if rotary_dim == attention.head_dim else rotary_dim,  # 0: all
        )
        return graph.cast(x, self._element.name) if narrow else x

    def _mask(self, cache: Cache, window: int | None) -> str:
        """bool[B, 1, S, C]: real slots up to the query's own rank, and within its window."""
        graph = self._graph
        ranks = graph.node("Unsqueeze", cache.ranks, graph.constant([1, 2]))
        seen = graph.node("And", graph.node("LessOrEqual", ranks, cache.query_ranks), cache.real)
        if window is None:
            return seen
        reach = graph.node("Add", ranks, graph.constant([window]))
        return graph.node("And", seen, graph.node("Greater", reach, cache.query_ranks))

    def _attention(
        self, x: str, index: int, layer: LayerDescription, mask: str, cos_sin: tuple[str, str] | None
    ) -> str:
        graph, attention = self._graph, layer.attention
        query = self._heads(self._linear(x, "query", index), attention.heads, attention.head_dim)
        key = self._heads(self._linear(x, "key", index), attention.key_value_heads, attention.head_dim)
        value = self._heads(self._linear(x, "value", index), attention.key_value_heads, attention.head_dim)
        if attention.query_key_norm:
            query, key = self._norm(query, "query_norm", index), self._norm(key, "key_norm", index)
        query = self._rotated(self._heads_first(query), cos_sin, attention)
        key = self._rotated(self._heads_first(key), cos_sin, attention)
        present = []
        for kind, new in (("key", key), ("value", self._heads_first(value))):
            past = self._cache_slot(f"past_key_values.{index}.{kind}", attention, past=True)
            output = self._cache_slot(f"present.{index}.{kind}", attention, past=False)
            present.append(self._operators.extend(graph, past, new, output))
        multiplier = self._plan.rope.main_group.buckets[-1].softmax_multiplier
        scale = multiplier / math.sqrt(attention.head_dim)
        attended = graph.node("Attention", query, *present, mask, scale=scale)
        width = attention.heads * attention.head_dim
        joined = graph.node("Reshape", self._heads_first(attended), graph.constant([0, 0, width]))
        return self._linear(joined, "attention_output", index)

    def _cache_slot(self, name: str, attention: AttentionDescription, *, past: bool) -> str:
        slots = self._operators.past_dimension if past else self._operators.present_dimension
        declare = self._graph.input if past else self._graph.output
        shape: list[Dimension] = ["batch_size", attention.key_value_heads, slots, attention.head_dim]
        declare(name, self._element.name, shape)
        return name

    # the whole

    def _mlp(self, x: str, index: int) -> str:
        graph = self._graph
        gate = self._linear(x, "gate", index)
        activated = graph.node("Mul", gate, graph.node("Sigmoid", gate))  # silu
        return self._linear(graph.node("Mul", activated, self._linear(x, "up", index)), "down", index)

    def _rotations(self) -> list[tuple[str, str] | None]:
        """Cos and sin for each layer; None where it has no RoPE."""
        plan, graph = self._plan.rope, self._graph
        found: list[tuple[str, str] | None] = [None] * len(self._plan.description.layers)
        context = None
        for number, group in enumerate(plan.groups):
            if group.scaling is None:
                continue
            layout = lay_out_tables(group, plan.original_context, self._options.max_context)
            if len(layout.buckets) > 1 and context is None:
                context = self._operators.context(graph, self._options.max_context)
            suffix = "" if len(plan.groups) == 1 else f".{number}"
            cos_sin = rotation(graph, layout, context, suffix)
            for layer in group.layers:
                found[layer] = cos_sin
        return found

    def _head(self, x: str) -> str:
        if self._plan.description.tied_embeddings:
            matrix = self._graph.node("Transpose", self._as_it_lies("token_embedding"), perm=[1, 0])
            return self._graph.node("MatMul", x, matrix)
        return self._linear(x, "output_head", None)

    def build(self) -> Graph:
        graph, model = self._graph, self._plan.description
        graph.input("input_ids", "INT64", ["batch_size", "sequence_length"])
        graph.input("attention_mask", "INT64", ["batch_size", "past_and_new_length"])
        graph.input("position_ids", "INT64", ["batch_size", "sequence_length"])
        tokens = "last_token" if self._options.last_token_only else "sequence_length"
        graph.output("logits", "FLOAT", ["batch_size", tokens, model.vocab_size])
        cache = self._operators.begin(graph)
        rotations = self._rotations()
        masks = {window: self._mask(cache, window) for window in {x.attention.window for x in model.layers}}
        x = graph.node("Gather", self._as_it_lies("token_embedding"), "input_ids", axis=0)
        for index, layer in enumerate(model.layers):
            normed = self._norm(x, "attention_norm", index)
            attended = self._attention(normed, index, layer, masks[layer.attention.window], rotations[index])
            x = graph.node("Add", x, attended)
            x = graph.node("Add", x, self._mlp(self._norm(x, "mlp_norm", index), index))
        if self._options.last_token_only:
            last = graph.constant([-1]), graph.constant([2**31 - 1]), graph.constant([1])
            x = graph.node("Slice", x, *last)
        logits = self._head(self._norm(x, "final_norm"))
        graph.cast(logits, "FLOAT", output="logits")
        return graph


def build_decoder(plan: ConversionPlan, options: GraphOptions) -> Graph:
    """The graph of a plan."""
    return _Decoder(plan, options).build()
