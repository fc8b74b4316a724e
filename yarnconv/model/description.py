"""The description of a model: dimensions and, per layer, attention and MLP. Says nothing of files."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# The norms of a layer, by the roles of their weights: what enters the attention and the MLP, and what leaves
# them on its way to the residual.
NormRole = Literal["attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGrowth:
    """Queries grow with their position: times 1 + beta ln(1 + floor(position / context)), after the rotation
    (Llama 4's attention temperature, which Ministral 3 took over).
    """

    beta: float
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDescription:
    """One layer's attention.

    layer_type: "full_attention" or "sliding_attention", which selects its RoPE group.
    window: positions a query looks back over, None for all.
    rotates: whether the layer has RoPE.
    pairing: which dimensions rotate together, (i, i + D/2) or (2i, 2i + 1).
    query_key_norm: over each head, or over all heads of the projection together; None for none.
    fused: whether the checkpoint holds query, key and value as one matrix, in this order.
    scale: of the scores, before what RoPE multiplies it by.
    softcap: c of c tanh(score / c), None for none.
    """

    heads: int
    key_value_heads: int
    head_dim: int
    layer_type: str
    window: int | None
    rotates: bool
    pairing: Literal["half", "interleaved"]
    query_key_norm: Literal["head", "projection"] | None
    query_key_value_bias: bool
    output_bias: bool
    fused: bool
    scale: float
    softcap: float | None
    query_growth: QueryGrowth | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpDescription:
    """One layer's gated MLP: down(activation(gate(x)) * up(x)). fused: whether the checkpoint holds gate and
    up as one matrix, in this order.
    """

    intermediate_size: int
    activation: str
    bias: bool
    fused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """One decoder layer. norms: those that it has. residual_multiplier: of what the attention and the MLP add
    to the residual.
    """

    attention: AttentionDescription
    mlp: MlpDescription
    norms: frozenset[NormRole]
    residual_multiplier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """Layers whose attention is of one type and looks equally far back. window: None for all positions."""

    layers: tuple[int, ...]
    layer_type: str
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A decoder-only model.

    max_position_embeddings: the config's. norm_epsilon: the RMS norms'. norms_add_one: whether they multiply
    by 1 + weight. embedding_multiplier: of the embedded tokens. logit_multiplier, logit_softcap: of the
    output head's logits, in this order; c of c tanh(logit / c), None for none.
    """

    family: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    norm_epsilon: float
    norms_add_one: bool
    embedding_multiplier: float
    logit_multiplier: float
    logit_softcap: float | None
    tied_embeddings: bool
    layers: tuple[LayerDescription, ...]

    @property
    def key_value_bytes_per_token(self) -> int:
        """Bytes of KV cache per position at 16 bits per value."""
        return sum(2 * 2 * x.attention.key_value_heads * x.attention.head_dim for x in self.layers)

    def key_value_bytes_within_windows(self, positions: int) -> int:
        """Bytes of KV cache of so many positions at 16 bits per value, if layers keep what they can see."""
        seen = ((x.attention, min(x.attention.window or positions, positions)) for x in self.layers)
        return sum(2 * 2 * a.key_value_heads * a.head_dim * kept for a, kept in seen)

    def kinds_of(self, layers: Iterable[int]) -> tuple[LayerKind, ...]:
        """Some of its layers, by their attention. layers: their numbers."""
        found: dict[tuple[str, int | None], list[int]] = {}
        for index in layers:
            attention = self.layers[index].attention
            found.setdefault((attention.layer_type, attention.window), []).append(index)
        return tuple(
            LayerKind(layers=tuple(own), layer_type=kind, window=window)
            for (kind, window), own in found.items()
        )
