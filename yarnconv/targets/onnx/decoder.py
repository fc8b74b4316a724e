"""The decoder graph of a described model: one block builder for every family.

Inputs and outputs carry the ecosystem's names: input_ids, attention_mask, position_ids, past_key_values.N.key
and .value to logits, present.N.key and .value. Shapes: B batch, S new tokens, H heads, D head_dim.
"""

from dataclasses import dataclass
from typing import Any

from yarnconv.model.description import (
    AttentionDescription,
    ExpertsDescription,
    LayerDescription,
    MlpDescription,
    NormRole,
    QueryGrowth,
)
from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import Scaling
from yarnconv.rope_plan import RopeGroup
from yarnconv.targets.onnx.activations import ACTIVATIONS
from yarnconv.targets.onnx.experts import mixture
from yarnconv.targets.onnx.graph import Dimension, Graph
from yarnconv.targets.onnx.latent import LATENT_NORMS, Latent
from yarnconv.targets.onnx.operators import OPERATORS, Operators, Slots
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.onnx.parameters import Parameters
from yarnconv.targets.onnx.rope import (
    is_dynamic,
    lay_out_tables,
    request_bucket,
    rotation,
    softmax_multiplier,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turning:
    """By what a layer rotates. cos, sin: the rows of the positions asked for. rotary_dim: dimensions of a
    head. softmax_multiplier: of the scores' scale. by_request: what queries are multiplied by besides, which
    depends on the request's context.
    """

    cos: str
    sin: str
    rotary_dim: int
    softmax_multiplier: float
    by_request: str | None


class _Decoder:
    """Builds one graph."""

    def __init__(self, plan: ConversionPlan, options: GraphOptions) -> None:
        self._plan = plan
        self._options = options
        self._element = options.element
        self._is_narrow = options.element.name != "FLOAT"
        self._operators: Operators = OPERATORS[options.dialect, options.kv]()
        self._graph = Graph(self._operators.opset)
        self._parameters = Parameters(self._graph, plan, options)
        self._growths: dict[QueryGrowth, str] = {}

    def _times(self, x: str, factor: float) -> str:
        """A value times a number, which is rounded to the value's type."""
        if factor == 1.0:
            return x
        constant = self._graph.constant(factor, "float32")
        return self._graph.node("Mul", x, self._graph.node("CastLike", constant, x))

    def _norm(self, x: str, role: str, layer: int | None = None) -> str:
        graph, model = self._graph, self._plan.description
        epsilon, latent = model.norm_epsilon, model.layers[0].attention.latent
        if latent is not None and role in LATENT_NORMS:
            epsilon = latent.norm_epsilon
        attributes: dict[str, Any] = {"axis": -1, "epsilon": epsilon}
        if not model.norms_add_one:
            return graph.node("RMSNormalization", x, self._parameters.value(role, layer), **attributes)
        # As transformers does it: the weight, the one and their product in float32, rounded once at the end.
        wide = graph.cast(x, "FLOAT") if self._is_narrow else x
        weight = self._parameters.float32(role, layer)
        normed = graph.node(
            "RMSNormalization",
            wide,
            graph.node("Add", weight, graph.constant(1.0, "float32")),
            **attributes,
        )
        return graph.cast(normed, self._element.name) if self._is_narrow else normed

    # attention

    def _growth(self, growth: QueryGrowth) -> str:
        """float32[B, 1, S, 1]: 1 + beta ln(1 + floor(position / context)); of whole numbers, which a position
        in no float type need be. One of no row in the tables is NaN by its rotation.
        """
        if growth not in self._growths:
            graph, one = self._graph, self._graph.constant(1.0, "float32")
            passed = graph.node("Div", "position_ids", graph.constant([growth.context]))
            logarithm = graph.node("Log", graph.node("Add", graph.cast(passed, "FLOAT"), one))
            grown = graph.node("Mul", logarithm, graph.constant(growth.beta, "float32"))
            grown = graph.node("Add", grown, one)
            self._growths[growth] = graph.node("Unsqueeze", grown, graph.constant([1, 3]))
        return self._growths[growth]

    def _rotated(
        self,
        x: str,
        turning: _Turning | None,
        attention: AttentionDescription,
        growth: QueryGrowth | None = None,
    ) -> str:
        """[B, H, S, D], rotated and grown in float32 whatever the graph's dtype."""
        if turning is None and growth is None:
            return x
        graph = self._graph
        if self._is_narrow:
            x = graph.cast(x, "FLOAT")
        if turning is not None:
            whole = turning.rotary_dim == attention.turning_dim
            x = graph.node(
                "RotaryEmbedding",
                x,
                turning.cos,
                turning.sin,
                interleaved=int(attention.pairing == "interleaved"),
                rotary_embedding_dim=0 if whole else turning.rotary_dim,  # 0: all
            )
        if growth is not None:
            x = graph.node("Mul", x, self._growth(growth))
        return graph.cast(x, self._element.name) if self._is_narrow else x

    def _by_head(self, x: str, heads: int, head_dim: int) -> str:
        """[B, S, H D] as [B, H, S, D]."""
        heads_last = self._graph.node("Reshape", x, self._graph.constant([0, 0, heads, head_dim]))
        return self._graph.node("Transpose", heads_last, perm=[0, 2, 1, 3])

    def _projected(self, x: str, index: int, attention: AttentionDescription) -> list[str]:
        """Query, key and value, each [B, heads, S, D], normed; or query and key in one, and value, where both
        are to be rotated alike.
        """
        graph, few, width = self._graph, attention.key_value_heads, attention.head_dim
        roles = ("query_key_value",) if attention.fused else ("query", "key", "value")
        joined, sizes = self._parameters.joined(x, roles, index), [attention.heads, few, few]
        if attention.query_key_norm == "projection":
            query, key, value = graph.split(joined, 2, [heads * width for heads in sizes])
            query, key = self._norm(query, "query_norm", index), self._norm(key, "key_norm", index)
            return [
                self._by_head(part, heads, width)
                for part, heads in zip((query, key, value), sizes, strict=True)
            ]
        together = self._by_head(joined, sum(sizes), width)
        if attention.query_key_norm is None and attention.query_growth is None:
            return graph.split(together, 1, [attention.heads + few, few])
        query, key, value = graph.split(together, 1, sizes)
        if attention.query_key_norm is not None:
            query, key = self._norm(query, "query_norm", index), self._norm(key, "key_norm", index)
        return [query, key, value]

    def _heads(
        self, x: str, index: int, attention: AttentionDescription, turning: _Turning | None
    ) -> tuple[str, str, str]:
        """Query, key and value, each [B, heads, S, D], the first two rotated."""
        *turned, value = self._projected(x, index, attention)
        if len(turned) == 1:  # both in one
            sizes = [attention.heads, attention.key_value_heads]
            query, key = self._graph.split(self._rotated(turned[0], turning, attention), 1, sizes)
            return query, key, value
        query = self._rotated(turned[0], turning, attention, attention.query_growth)
        return query, self._rotated(turned[1], turning, attention), value

    def _attention(self, x: str, index: int, layer: LayerDescription, turning: _Turning | None) -> str:
        attention, latent = layer.attention, None
        if attention.latent is None:
            heads = self._heads(x, index, attention, turning)
        else:
            latent = Latent(self._graph, self._parameters, attention, attention.latent, index)
            heads = latent.heads(x, self._norm, lambda part: self._rotated(part, turning, attention))
        if turning is not None and turning.by_request is not None:
            query, *others = heads
            factor = self._graph.node("CastLike", turning.by_request, query)
            heads = self._graph.node("Mul", query, factor), others[0], others[1]
        scale = attention.scale * (1.0 if turning is None else turning.softmax_multiplier)
        slots = Slots(
            past_key=self._slot(f"past_key_values.{index}.key", attention, past=True),
            past_value=self._slot(f"past_key_values.{index}.value", attention, past=True),
            present_key=self._slot(f"present.{index}.key", attention, past=False),
            present_value=self._slot(f"present.{index}.value", attention, past=False),
        )
        sinks = self._parameters.float32("sinks", index) if attention.sinks else None
        attended = self._operators.attend(self._graph, attention, heads, slots, scale, sinks)
        if latent is not None:
            attended = latent.values(attended)
        return self._parameters.linear(attended, "attention_output", index)

    def _slot(self, name: str, attention: AttentionDescription, *, past: bool) -> str:
        slots = self._operators.past_dimension if past else self._operators.present_dimension
        declare = self._graph.input if past else self._graph.output
        shape: list[Dimension] = ["batch_size", attention.key_value_heads, slots, attention.head_dim]
        declare(name, self._element.name, shape)
        return name

    # the whole

    def _dense(self, x: str, index: int, mlp: MlpDescription, prefix: str = "") -> str:
        graph, linear = self._graph, self._parameters.linear
        if mlp.fused:
            gate, up = graph.split(linear(x, f"{prefix}gate_up", index), 2, 2 * [mlp.intermediate_size])
            activated = ACTIVATIONS[mlp.activation](graph, gate)
        else:
            activated = ACTIVATIONS[mlp.activation](graph, linear(x, f"{prefix}gate", index))
            up = linear(x, f"{prefix}up", index)
        return linear(graph.node("Mul", activated, up), f"{prefix}down", index)

    def _mlp(self, x: str, index: int, mlp: MlpDescription | ExpertsDescription) -> str:
        if isinstance(mlp, MlpDescription):
            return self._dense(x, index, mlp)

        def shared(x: str) -> str:
            assert mlp.shared is not None
            return self._dense(x, index, mlp.shared, "shared_")

        return mixture(self._graph, self._parameters, x, index, mlp, shared)

    def _turning(self, group: RopeGroup, scaling: Scaling, context: str | None, suffix: str) -> _Turning:
        layout = lay_out_tables(group, self._plan.rope.original_context, self._options.max_context)
        bucket = request_bucket(self._graph, layout, context)
        cos, sin = rotation(self._graph, layout, bucket, suffix)
        by_request = softmax_multiplier(self._graph, layout, bucket)
        return _Turning(
            cos=cos,
            sin=sin,
            rotary_dim=scaling.rotary_dim,
            softmax_multiplier=layout.buckets[-1].softmax_multiplier if by_request is None else 1.0,
            by_request=by_request,
        )

    def _turnings(self) -> list[_Turning | None]:
        """By what each layer rotates; None where it has no RoPE. Groups of one scaling share their tables;
        those of the extended layers have the plain names.
        """
        plan, graph, options = self._plan.rope, self._graph, self._options
        found: list[_Turning | None] = [None] * len(self._plan.description.layers)
        made: dict[Scaling, _Turning] = {}
        context = None
        for number, group in enumerate(plan.groups):
            if group.scaling is None:
                continue
            if is_dynamic(group, plan.original_context, options.max_context) and context is None:
                default = None if options.requires_context else options.max_context
                context = self._operators.context(graph, default)
            if group.scaling not in made:
                suffix = "" if group.scaling == plan.main else f".{number}"
                made[group.scaling] = self._turning(group, group.scaling, context, suffix)
            for layer in group.layers:
                found[layer] = made[group.scaling]
        return found

    def _normed(self, x: str, role: NormRole, index: int) -> str:
        """Normed where the layer has that norm."""
        return self._norm(x, role, index) if role in self._plan.description.layers[index].norms else x

    def _layer(self, x: str, index: int, layer: LayerDescription, turning: _Turning | None) -> str:
        graph, multiplier = self._graph, layer.residual_multiplier
        attended = self._attention(self._normed(x, "attention_norm", index), index, layer, turning)
        attended = self._normed(attended, "attention_output_norm", index)
        x = graph.node("Add", x, self._times(attended, multiplier))
        made = self._mlp(self._normed(x, "mlp_norm", index), index, layer.mlp)
        return graph.node("Add", x, self._times(self._normed(made, "mlp_output_norm", index), multiplier))

    def _put_out(self, logits: str) -> None:
        """The output head's logits in float32, multiplied and capped."""
        graph, model = self._graph, self._plan.description
        if model.logit_multiplier == 1.0 and model.logit_softcap is None:
            graph.cast(logits, "FLOAT", output="logits")
            return
        steps: list[tuple[str, float | None]] = []
        if model.logit_multiplier != 1.0:
            steps += [("Mul", model.logit_multiplier)]
        if model.logit_softcap is not None:
            steps += [("Div", model.logit_softcap), ("Tanh", None), ("Mul", model.logit_softcap)]
        value = graph.cast(logits, "FLOAT")
        for number, (operator, constant) in enumerate(steps):
            more = [] if constant is None else [graph.constant(constant, "float32")]
            last = number == len(steps) - 1
            value = graph.node(operator, value, *more, output="logits" if last else None)

    def build(self) -> Graph:
        graph, model = self._graph, self._plan.description
        graph.input("input_ids", "INT64", ["batch_size", "sequence_length"])
        graph.input("attention_mask", "INT64", ["batch_size", "past_and_new_length"])
        graph.input("position_ids", "INT64", ["batch_size", "sequence_length"])
        tokens = "last_token" if self._options.last_token_only else "sequence_length"
        graph.output("logits", "FLOAT", ["batch_size", tokens, model.vocab_size])
        self._operators.begin(graph)
        turnings = self._turnings()
        x = self._times(self._parameters.embedded("input_ids"), model.embedding_multiplier)
        x = self._operators.guarded(graph, x)
        for index, layer in enumerate(model.layers):
            x = self._layer(x, index, layer, turnings[index])
        x = self._norm(x, "final_norm")
        if self._options.last_token_only:
            last = graph.constant([-1]), graph.constant([2**31 - 1]), graph.constant([1])
            x = graph.node("Slice", x, *last)
        self._put_out(self._parameters.logits(x))
        return graph


def build_decoder(plan: ConversionPlan, options: GraphOptions) -> Graph:
    """The graph of a plan."""
    return _Decoder(plan, options).build()
