"""The description of a model: dimensions and, per layer, attention and MLP. Says nothing of files."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDescription:
    """One layer's attention.

    layer_type: "full_attention" or "sliding_attention", which selects its RoPE group.
    window: positions a query looks back over, None for all.
    pairing: which dimensions rotate together, (i, i + D/2) or (2i, 2i + 1).
    """

    heads: int
    key_value_heads: int
    head_dim: int
    layer_type: str
    window: int | None
    pairing: Literal["half", "interleaved"]
    query_key_norm: bool
    query_key_value_bias: bool
    output_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpDescription:
    """One layer's gated MLP: down(activation(gate(x)) * up(x))."""

    intermediate_size: int
    activation: str
    bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """One decoder layer, pre-norm."""

    attention: AttentionDescription
    mlp: MlpDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A decoder-only model. norm_epsilon is the RMS norms'; max_position_embeddings the config's."""

    family: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    norm_epsilon: float
    tied_embeddings: bool
    layers: tuple[LayerDescription, ...]

    @property
    def key_value_bytes_per_token(self) -> int:
        """Bytes of KV cache per position at 16 bits per value."""
        return sum(2 * 2 * x.attention.key_value_heads * x.attention.head_dim for x in self.layers)
