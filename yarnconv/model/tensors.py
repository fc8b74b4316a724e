"""Every tensor that a description calls for, by its family's names."""

from collections.abc import Iterator
from dataclasses import dataclass

from yarnconv.model.description import LayerDescription, ModelDescription, NormRole
from yarnconv.model.family import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """A tensor the description calls for: its role, layer (None outside the block), name, shape."""

    role: str
    layer: int | None
    name: str
    shape: tuple[int, ...]


def _projection_shapes(model: ModelDescription, layer: LayerDescription) -> dict[str, tuple[int, ...]]:
    attention, hidden = layer.attention, model.hidden_size
    query = attention.heads * attention.head_dim
    key_value = attention.key_value_heads * attention.head_dim
    rows = {"query": query, "key": key_value, "value": key_value}
    if attention.fused:
        rows = {"query_key_value": query + 2 * key_value}
    shapes: dict[str, tuple[int, ...]] = {role: (count, hidden) for role, count in rows.items()}
    if attention.query_key_value_bias:
        shapes |= {f"{role}_bias": (count,) for role, count in rows.items()}
    shapes["attention_output"] = (hidden, query)
    if attention.output_bias:
        shapes["attention_output_bias"] = (hidden,)
    if attention.query_key_norm == "head":
        shapes |= {"query_norm": (attention.head_dim,), "key_norm": (attention.head_dim,)}
    elif attention.query_key_norm == "projection":
        shapes |= {"query_norm": (query,), "key_norm": (key_value,)}
    return shapes


def _mlp_shapes(model: ModelDescription, layer: LayerDescription) -> dict[str, tuple[int, ...]]:
    mlp, hidden = layer.mlp, model.hidden_size
    rows = {"gate": mlp.intermediate_size, "up": mlp.intermediate_size}
    if mlp.fused:
        rows = {"gate_up": 2 * mlp.intermediate_size}
    shapes: dict[str, tuple[int, ...]] = {role: (count, hidden) for role, count in rows.items()}
    shapes["down"] = (hidden, mlp.intermediate_size)
    if mlp.bias:
        shapes |= {f"{role}_bias": (count,) for role, count in rows.items()} | {"down_bias": (hidden,)}
    return shapes


def _layer_shapes(model: ModelDescription, layer: LayerDescription) -> dict[str, tuple[int, ...]]:
    """In the order in which they are computed with."""

    def norms(*roles: NormRole) -> dict[str, tuple[int, ...]]:
        return {role: (model.hidden_size,) for role in roles if role in layer.norms}

    return {
        **norms("attention_norm"),
        **_projection_shapes(model, layer),
        **norms("attention_output_norm", "mlp_norm"),
        **_mlp_shapes(model, layer),
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
