"""The decoder graph of a described model: one block builder for every family.

Inputs and outputs carry the ecosystem's names: input_ids, attention_mask, position_ids, past_key_values.N.key
and .value to logits, present.N.key and .value. Shapes: B batch, S new tokens, H heads, D head_dim.
"""

import math

from yarnconv.model.description import AttentionDescription, LayerDescription
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.graph import Dimension, Graph
from yarnconv.targets.onnx.operators import OPERATORS, Operators, Slots
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.onnx.parameters import Parameters
from yarnconv.targets.onnx.rope import lay_out_tables, rotation


class _Decoder:
    """Builds one graph."""

    def __init__(self, plan: ConversionPlan, options: GraphOptions) -> None:
        self._plan = plan
        self._options = options
        self._element = options.element
        self._operators: Operators = OPERATORS[options.dialect, options.kv]()
        self._graph = Graph(self._operators.opset)
        self._parameters = Parameters(self._graph, plan, options)

    def _norm(self, x: str, role: str, layer: int | None = None) -> str:
        epsilon = self._plan.description.norm_epsilon
        weight = self._parameters.value(role, layer)
        return self._graph.node("RMSNormalization", x, weight, axis=-1, epsilon=epsilon)

    # attention

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

    def _heads(
        self, x: str, index: int, attention: AttentionDescription, cos_sin: tuple[str, str] | None
    ) -> tuple[str, str, str]:
        """Query, key and value, each [B, heads, S, D], the first two rotated."""
        graph, few = self._graph, attention.key_value_heads
        sizes = [attention.heads, few, few]
        joined = self._parameters.joined(x, ("query", "key", "value"), index)
        heads = graph.node("Reshape", joined, graph.constant([0, 0, sum(sizes), attention.head_dim]))
        heads = graph.node("Transpose", heads, perm=[0, 2, 1, 3])
        if attention.query_key_norm is not None:
            query, key, value = graph.split(heads, 1, sizes)
            query, key = self._norm(query, "query_norm", index), self._norm(key, "key_norm", index)
            return self._rotated(query, cos_sin, attention), self._rotated(key, cos_sin, attention), value
        rotating, value = graph.split(heads, 1, [attention.heads + few, few])
        query, key = graph.split(self._rotated(rotating, cos_sin, attention), 1, sizes[:2])
        return query, key, value

    def _attention(self, x: str, index: int, layer: LayerDescription, cos_sin: tuple[str, str] | None) -> str:
        attention = layer.attention
        heads = self._heads(x, index, attention, cos_sin)
        multiplier = self._plan.rope.main_group.buckets[-1].softmax_multiplier
        scale = multiplier / math.sqrt(attention.head_dim)
        slots = Slots(
            past_key=self._slot(f"past_key_values.{index}.key", attention, past=True),
            past_value=self._slot(f"past_key_values.{index}.value", attention, past=True),
            present_key=self._slot(f"present.{index}.key", attention, past=False),
            present_value=self._slot(f"present.{index}.value", attention, past=False),
        )
        attended = self._operators.attend(self._graph, attention, heads, slots, scale)
        return self._parameters.linear(attended, "attention_output", index)

    def _slot(self, name: str, attention: AttentionDescription, *, past: bool) -> str:
        slots = self._operators.past_dimension if past else self._operators.present_dimension
        declare = self._graph.input if past else self._graph.output
        shape: list[Dimension] = ["batch_size", attention.key_value_heads, slots, attention.head_dim]
        declare(name, self._element.name, shape)
        return name

    # the whole

    def _mlp(self, x: str, index: int) -> str:
        graph, linear = self._graph, self._parameters.linear
        gate = linear(x, "gate", index)
        activated = graph.node("Mul", gate, graph.node("Sigmoid", gate))  # silu
        return linear(graph.node("Mul", activated, linear(x, "up", index)), "down", index)

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
                default = None if self._options.requires_context else self._options.max_context
                context = self._operators.context(graph, default)
            suffix = "" if len(plan.groups) == 1 else f".{number}"
            cos_sin = rotation(graph, layout, context, suffix)
            for layer in group.layers:
                found[layer] = cos_sin
        return found

    def build(self) -> Graph:
        graph, model = self._graph, self._plan.description
        graph.input("input_ids", "INT64", ["batch_size", "sequence_length"])
        graph.input("attention_mask", "INT64", ["batch_size", "past_and_new_length"])
        graph.input("position_ids", "INT64", ["batch_size", "sequence_length"])
        tokens = "last_token" if self._options.last_token_only else "sequence_length"
        graph.output("logits", "FLOAT", ["batch_size", tokens, model.vocab_size])
        self._operators.begin(graph)
        rotations = self._rotations()
        x = self._operators.guarded(graph, self._parameters.embedded("input_ids"))
        for index, layer in enumerate(model.layers):
            normed = self._norm(x, "attention_norm", index)
            x = graph.node("Add", x, self._attention(normed, index, layer, rotations[index]))
            x = graph.node("Add", x, self._mlp(self._norm(x, "mlp_norm", index), index))
        x = self._norm(x, "final_norm")
        if self._options.last_token_only:
            last = graph.constant([-1]), graph.constant([2**31 - 1]), graph.constant([1])
            x = graph.node("Slice", x, *last)
        logits = self._parameters.logits(x)
        graph.cast(logits, "FLOAT", output="logits")
        return graph


def build_decoder(plan: ConversionPlan, options: GraphOptions) -> Graph:
    """The graph of a plan."""
    return _Decoder(plan, options).build()
