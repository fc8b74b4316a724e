"""Every tensor that a description calls for, by its family's names."""

from collections.abc import Iterator
from dataclasses import dataclass

from yarnconv.model.description import (
    AttentionDescription,
    ExpertsDescription,
    LatentAttention,
    LayerDescription,
    MlpDescription,
    ModelDescription,
    NormRole,
)
from yarnconv.model.family import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """A tensor the description calls for: its role, layer (None outside the block), name, shape; of experts
    with their matrices [out, in], however a checkpoint holds them.
    """

    role: str
    layer: int | None
    name: str
    shape: tuple[int, ...]


# those with a matrix, a row or a value per expert, which comes first
EXPERT_ROLES = frozenset(
    {"router", "router_bias", "router_correction"}
    | {f"experts_{name}" for name in ("gate_up", "down", "gate_up_bias", "down_bias")}
)

Shapes = dict[str, tuple[int, ...]]


def _output_shapes(hidden: int, attention: AttentionDescription) -> Shapes:
    shapes: Shapes = {"attention_output": (hidden, attention.heads * attention.value_dim)}
    if attention.output_bias:
        shapes["attention_output_bias"] = (hidden,)
    return shapes


def _latent_shapes(hidden: int, attention: AttentionDescription, latent: LatentAttention) -> Shapes:
    """Of multi-head latent attention: down to the latent vectors, their norms, and up to the heads."""
    queries = attention.heads * (latent.plain_dim + latent.rotary_dim)
    shapes: Shapes = {}
    if latent.query_rank is None:
        shapes["query"] = (queries, hidden)
    else:
        shapes["query_down"] = (latent.query_rank, hidden)
        if attention.query_key_value_bias:
            shapes["query_down_bias"] = (latent.query_rank,)
        shapes |= {"query_latent_norm": (latent.query_rank,), "query_up": (queries, latent.query_rank)}
    shapes["key_value_down"] = (attention.head_dim, hidden)
    if attention.query_key_value_bias:
        shapes["key_value_down_bias"] = (attention.head_dim,)
    rows = attention.heads * (latent.plain_dim + latent.value_dim)
    shapes |= {"key_value_latent_norm": (latent.rank,), "key_value_up": (rows, latent.rank)}
    return shapes | _output_shapes(hidden, attention)


def _projection_shapes(hidden: int, attention: AttentionDescription) -> Shapes:
    query = attention.heads * attention.head_dim
    key_value = attention.key_value_heads * attention.head_dim
    rows = {"query": query, "key": key_value, "value": key_value}
    if attention.fused:
        rows = {"query_key_value": query + 2 * key_value}
    shapes: Shapes = {role: (count, hidden) for role, count in rows.items()}
    if attention.query_key_value_bias:
        shapes |= {f"{role}_bias": (count,) for role, count in rows.items()}
    shapes |= _output_shapes(hidden, attention)
    if attention.query_key_norm == "head":
        shapes |= {"query_norm": (attention.head_dim,), "key_norm": (attention.head_dim,)}
    elif attention.query_key_norm == "projection":
        shapes |= {"query_norm": (query,), "key_norm": (key_value,)}
    if attention.sinks:
        shapes["sinks"] = (attention.heads,)
    return shapes


def _attention_shapes(hidden: int, attention: AttentionDescription) -> Shapes:
    if attention.latent is not None:
        return _latent_shapes(hidden, attention, attention.latent)
    return _projection_shapes(hidden, attention)


def _dense_shapes(hidden: int, mlp: MlpDescription, prefix: str = "") -> Shapes:
    rows = {f"{prefix}gate": mlp.intermediate_size, f"{prefix}up": mlp.intermediate_size}
    if mlp.fused:
        rows = {f"{prefix}gate_up": 2 * mlp.intermediate_size}
    shapes: Shapes = {role: (count, hidden) for role, count in rows.items()}
    shapes[f"{prefix}down"] = (hidden, mlp.intermediate_size)
    if mlp.bias:
        shapes |= {f"{role}_bias": (count,) for role, count in rows.items()}
        shapes[f"{prefix}down_bias"] = (hidden,)
    return shapes


def _experts_shapes(hidden: int, mlp: ExpertsDescription) -> Shapes:
    """Every expert's matrices [out, in] in one tensor, one behind the other."""
    count, width, routing = mlp.experts, mlp.intermediate_size, mlp.routing
    shapes: Shapes = {"router": (count, hidden)}
    if routing.bias:
        shapes["router_bias"] = (count,)
    if routing.correction:
        shapes["router_correction"] = (count,)
    shapes |= {"experts_gate_up": (count, 2 * width, hidden), "experts_down": (count, hidden, width)}
    if mlp.bias:
        shapes |= {"experts_gate_up_bias": (count, 2 * width), "experts_down_bias": (count, hidden)}
    if mlp.shared is not None:
        shapes |= _dense_shapes(hidden, mlp.shared, "shared_")
    if mlp.shared_gate:
        shapes["shared_router"] = (1, hidden)
    return shapes


def _mlp_shapes(hidden: int, mlp: MlpDescription | ExpertsDescription) -> Shapes:
    if isinstance(mlp, ExpertsDescription):
        return _experts_shapes(hidden, mlp)
    return _dense_shapes(hidden, mlp)


def _layer_shapes(model: ModelDescription, layer: LayerDescription) -> Shapes:
    """In the order in which they are computed with."""

    def norms(*roles: NormRole) -> Shapes:
        return {role: (model.hidden_size,) for role in roles if role in layer.norms}

    return {
        **norms("attention_norm"),
        **_attention_shapes(model.hidden_size, layer.attention),
        **norms("attention_output_norm", "mlp_norm"),
        **_mlp_shapes(model.hidden_size, layer.mlp),
        **norms("mlp_output_norm"),
    }


def expected_tensors(family: Family, model: ModelDescription) -> Iterator[ExpectedTensor]:
    """Every tensor the checkpoint must hold, by the family's names."""

    def expected(role: str, layer: int | None, shape: tuple[int, ...]) -> ExpectedTensor:
        name = family.tensors[role].replace("{layer}", str(layer))
        return ExpectedTensor(role=role, layer=layer, name=name, shape=shape)

    yield expected("token_embedding", None, (model.vocab_size, model.hidden_size))
    for index, layer in enumerate(model.layers):
        for role, shape in _layer_shapes(model, layer).items():
            yield expected(role, index, shape)
    yield expected("final_norm", None, (model.hidden_size,))
    if not model.tied_embeddings:
        yield expected("output_head", None, (model.vocab_size, model.hidden_size))
