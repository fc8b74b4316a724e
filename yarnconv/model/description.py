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
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads
    are made of one latent vector, and a part of each head of queries and keys rotates, the same key for all.

    query_rank: of the latent vector that queries are made of, None where they are made directly. rank: of
    that of keys and values. plain_dim, rotary_dim: dimensions of a query or key head that do not rotate, and
    that do, in this order. value_dim: of a value head. norm_epsilon: of the latent vectors' norms, which
    transformers' classes take from no config.
    """

    query_rank: int | None
    rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int
    norm_epsilon: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDescription:
    """One layer's attention, as it is computed over its cache: that of latent attention is absorbed, one key
    head of the latent vector and the rotated part behind it, which is the value head as well.

    head_dim: of what is cached.
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
    sinks: bool = False
    latent: LatentAttention | None = None

    @property
    def cached_values(self) -> int:
        """Of a position: those of keys and values, of latent attention the one vector that is both."""
        return (2 if self.latent is None else 1) * self.key_value_heads * self.head_dim

    @property
    def turning_dim(self) -> int:
        """Dimensions of a head that RoPE may turn, all of them or a part."""
        return self.head_dim if self.latent is None else self.latent.rotary_dim

    @property
    def projected_head_dim(self) -> int:
        """Dimensions of a head of queries as the model has it, before latent attention is absorbed."""
        return self.head_dim if self.latent is None else self.latent.plain_dim + self.latent.rotary_dim

    @property
    def value_dim(self) -> int:
        """Dimensions of a head of what the attention's output projection takes."""
        return self.head_dim if self.latent is None else self.latent.value_dim


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
class Routing:
    """By what a layer chooses experts for a token, and how much each counts.

    scores: of the router's logits, over all experts. chosen: how many of the best. groups, chosen_groups: of
    which groups experts are chosen only, by the sum of the best so many scores in each (`group_best`).
    correction: whether a bias counts in choosing, and not afterwards. bias: whether the router has one.
    normalised: whether the scores of the chosen ones are divided by their sum. scale: of the result.
    """

    scores: Literal["softmax", "sigmoid"]
    chosen: int
    groups: int
    chosen_groups: int
    group_best: int
    correction: bool
    bias: bool
    normalised: bool
    scale: float

    @property
    def is_limited(self) -> bool:
        """Whether not every group may be chosen from."""
        return self.chosen_groups < self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedGate:
    """gpt-oss's gating: gate sigmoid(alpha gate) (up + 1), of a gate up to `limit` and an up within it."""

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsDescription:
    """One layer's mixture of experts: gated MLPs, of which each token takes a few.

    interleaved: whether rows of gate and up alternate in the matrix that holds both; else all of gate's come
    first. clamp: the gating where it is no activation. shared: the MLP that every token takes besides;
    shared_gate: whether by a sigmoid of its own.
    """

    experts: int
    intermediate_size: int
    activation: str
    bias: bool
    interleaved: bool
    clamp: ClampedGate | None
    routing: Routing
    shared: MlpDescription | None
    shared_gate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """One decoder layer. mlp: dense, or a mixture. norms: those that it has. residual_multiplier: of what the
    attention and the MLP add to the residual.
    """

    attention: AttentionDescription
    mlp: MlpDescription | ExpertsDescription
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
    def mixture(self) -> ExpertsDescription | None:
        """What the layers with experts have, all alike; None where no layer has any."""
        mixtures = (layer.mlp for layer in self.layers if isinstance(layer.mlp, ExpertsDescription))
        return next(mixtures, None)

    @property
    def dense(self) -> MlpDescription | None:
        """What the layers without experts have, all alike; None where every layer has some."""
        return next((layer.mlp for layer in self.layers if isinstance(layer.mlp, MlpDescription)), None)

    @property
    def key_value_bytes_per_token(self) -> int:
        """Bytes of KV cache per position at 16 bits per value."""
        return sum(2 * layer.attention.cached_values for layer in self.layers)

    def key_value_bytes_within_windows(self, positions: int) -> int:
        """Bytes of KV cache of so many positions at 16 bits per value, if layers keep what they can see."""
        seen = ((x.attention, min(x.attention.window or positions, positions)) for x in self.layers)
        return sum(2 * attention.cached_values * kept for attention, kept in seen)

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
