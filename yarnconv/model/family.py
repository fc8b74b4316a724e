"""A family is one data file, `families/<model_type>.toml`. This module reads it and applies it.

The file names the tensors, says how the block is built where families differ, which defaults the
family's transformers config class fills in, and the facts the GGUF target needs.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.model.description import (
    AttentionDescription,
    LayerDescription,
    MlpDescription,
    ModelDescription,
)
from yarnconv.rope.spelling import head_dim

# Far above any model there is, far below what would hurt: dimensions come from strangers.
MAXIMUM_DIMENSION = 2**24
MAXIMUM_LAYERS = 4096

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a family's config says which layers have a sliding window.

    size, enabled, from_layer: config keys; enabled and from_layer are optional.
    by_layer_types: whether its transformers class lets `layer_types` decide.
    """

    size: str
    enabled: str | None = None
    from_layer: str | None = None
    by_layer_types: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """How the block is built. A `bool | str` is a fact, or the config key that decides it."""

    pairing: str
    query_key_norm: bool
    query_key_value_bias: bool | str
    output_bias: bool | str
    mlp_bias: bool | str
    window: Window | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """What the GGUF target must know of a family.

    architecture: llama.cpp's name for it.
    permute_query_key: whether llama.cpp rotates adjacent pairs, so that q/k rows move.
    vocab_size_key, rope_dimension_count_key: whether llama.cpp's converter writes those keys.
    head_length_keys: whether it writes the head size even where config.json is silent on it.
    add_space_prefix_key: whether `add_prefix_space` of the tokenizer becomes a key.
    """

    architecture: str
    permute_query_key: bool
    vocab_size_key: bool
    rope_dimension_count_key: bool
    head_length_keys: bool
    add_space_prefix_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One data file. `tensors` maps a role to its name; names with `{layer}` occur once a layer."""

    model_type: str
    architectures: tuple[str, ...]
    example_models: tuple[str, ...]
    config_defaults: JsonObject
    structure: Structure
    tensors: Mapping[str, str]
    leftovers: tuple[str, ...]
    gguf: GgufFacts
    tiny: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """A tensor the description calls for: its role, layer (None outside the block), name, shape."""

    role: str
    layer: int | None
    name: str
    shape: tuple[int, ...]


@cache
def families() -> Mapping[str, Family]:
    """Every family there is a data file for, by model_type."""
    found: dict[str, Family] = {}
    for entry in sorted(resources.files("yarnconv.model.families").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".toml"):
            continue
        data = tomllib.loads(entry.read_text(encoding="utf-8"))
        window = data["structure"].pop("window", None)
        family = Family(
            model_type=data["model_type"],
            architectures=tuple(data["architectures"]),
            example_models=tuple(data["example_models"]),
            config_defaults=data["config_defaults"],
            structure=Structure(**data["structure"], window=Window(**window) if window else None),
            tensors=data["tensors"],
            leftovers=tuple(data["leftovers"]),
            gguf=GgufFacts(**data["gguf"]),
            tiny=data["tiny"],
        )
        found[family.model_type] = family
    return found


def find_family(config: JsonObject) -> Family:
    """The family of a config.json, by model_type and, where that is missing, by architecture."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    names = [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    for family in families().values():
        known = set(family.architectures)
        if family.model_type == model_type if model_type is not None else known & set(names):
            if names and not known & set(names):
                break
            return family
    known_list = "; ".join(
        f"{family.model_type} ({', '.join(family.architectures)})" for family in families().values()
    )
    described = f"model_type {model_type!r}" + (f", architecture {names[0]!r}" if names else "")
    raise BadInput(
        f"unknown architecture: {described}",
        where="config.json: model_type, architectures",
        fix=f"Known: {known_list}.",
    )


def with_defaults(family: Family, config: JsonObject) -> dict[str, Any]:
    """The config with what the family's transformers class assumes where the file is silent.

    A default of the form `{ same_as = "key" }` takes that key's value, and null counts as silent
    for it; for the others null is a value (Mistral: no sliding window).
    """
    filled = dict(config)
    for key, default in family.config_defaults.items():
        if isinstance(default, Mapping):
            if filled.get(key) is None:
                filled[key] = filled.get(default["same_as"])
        else:
            filled.setdefault(key, default)
    return filled


def _dimension(config: JsonObject, key: str, maximum: int = MAXIMUM_DIMENSION) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= maximum:
        raise BadInput(
            f"{key} is {value!r}" if key in config else f"{key} is missing",
            where=f"config.json: {key}",
            fix=f"It must be a whole number between 1 and {maximum}.",
        )
    return value


def _switch(config: JsonObject, fact: bool | str) -> bool:
    if isinstance(fact, bool):
        return fact
    value = config.get(fact)
    if not isinstance(value, bool):
        raise BadInput(f"{fact} is {value!r}, not true or false", where=f"config.json: {fact}")
    return value


def _windows(config: JsonObject, window: Window | None, layers: int) -> list[tuple[str, int | None]]:
    """Per layer its type and window, from `layer_types` or from the family's own keys."""
    size: int | None = None
    if (
        window is not None
        and config.get(window.size) is not None
        and (window.enabled is None or _switch(config, window.enabled))
    ):
        size = _dimension(config, window.size, maximum=2**31 - 1)
    first = 0
    if window is not None and window.from_layer is not None and size is not None:
        first_layer = config.get(window.from_layer)
        if isinstance(first_layer, bool) or not isinstance(first_layer, int) or first_layer < 0:
            raise BadInput(
                f"{window.from_layer} is {first_layer!r}", where=f"config.json: {window.from_layer}"
            )
        first = first_layer
    types = config.get("layer_types") if window is not None and window.by_layer_types else None
    if types is None:
        types = [
            "full_attention" if size is None or i < first else "sliding_attention" for i in range(layers)
        ]
    known = {"full_attention", "sliding_attention"}
    if not isinstance(types, list) or len(types) != layers or not set(map(str, types)) <= known:
        raise BadInput(
            f"layer_types does not name {layers} layers of type {' or '.join(sorted(known))}",
            where="config.json: layer_types",
        )
    return [(t, size if t == "sliding_attention" else None) for t in types]


def describe(family: Family, config: JsonObject) -> ModelDescription:
    """The model that a config.json (defaults filled in) describes; its dimensions are checked."""
    hidden = _dimension(config, "hidden_size")
    heads = _dimension(config, "num_attention_heads", 2**16)
    key_value_heads = _dimension(config, "num_key_value_heads", 2**16)
    layer_count = _dimension(config, "num_hidden_layers", MAXIMUM_LAYERS)
    given = config.get("head_dim") is not None
    head_size = _dimension(config, "head_dim", 2**16) if given else head_dim(config)
    if heads % key_value_heads:
        raise BadInput(
            f"{heads} query heads do not divide among {key_value_heads} key/value heads",
            where="config.json: num_key_value_heads",
        )
    activation = config.get("hidden_act")
    if not isinstance(activation, str):
        raise BadInput(f"hidden_act is {activation!r}, not a name", where="config.json: hidden_act")
    epsilon = config.get("rms_norm_eps")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 1e-12 <= epsilon < 1:
        raise BadInput(
            f"rms_norm_eps is {epsilon!r}, not between 1e-12 and 1", where="config.json: rms_norm_eps"
        )
    structure = family.structure
    mlp = MlpDescription(
        intermediate_size=_dimension(config, "intermediate_size"),
        activation=activation,
        bias=_switch(config, structure.mlp_bias),
    )
    layers = tuple(
        LayerDescription(
            attention=AttentionDescription(
                heads=heads,
                key_value_heads=key_value_heads,
                head_dim=head_size,
                layer_type=layer_type,
                window=window,
                pairing="interleaved" if structure.pairing == "interleaved" else "half",
                query_key_norm=structure.query_key_norm,
                query_key_value_bias=_switch(config, structure.query_key_value_bias),
                output_bias=_switch(config, structure.output_bias),
            ),
            mlp=mlp,
        )
        for layer_type, window in _windows(config, structure.window, layer_count)
    )
    return ModelDescription(
        family=family.model_type,
        vocab_size=_dimension(config, "vocab_size"),
        hidden_size=hidden,
        max_position_embeddings=_dimension(config, "max_position_embeddings", 2**31 - 1),
        norm_epsilon=float(epsilon),
        tied_embeddings=_switch(config, "tie_word_embeddings"),
        layers=layers,
    )


def _layer_shapes(model: ModelDescription, layer: LayerDescription) -> dict[str, tuple[int, ...]]:
    attention, mlp, hidden = layer.attention, layer.mlp, model.hidden_size
    query = attention.heads * attention.head_dim
    key_value = attention.key_value_heads * attention.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "query": (query, hidden),
        "key": (key_value, hidden),
        "value": (key_value, hidden),
        "attention_output": (hidden, query),
        "mlp_norm": (hidden,),
        "gate": (mlp.intermediate_size, hidden),
        "up": (mlp.intermediate_size, hidden),
        "down": (hidden, mlp.intermediate_size),
    }
    if attention.query_key_value_bias:
        shapes |= {"query_bias": (query,), "key_bias": (key_value,), "value_bias": (key_value,)}
    if attention.output_bias:
        shapes["attention_output_bias"] = (hidden,)
    if attention.query_key_norm:
        shapes |= {"query_norm": (attention.head_dim,), "key_norm": (attention.head_dim,)}
    if mlp.bias:
        shapes |= {
            "gate_bias": (mlp.intermediate_size,),
            "up_bias": (mlp.intermediate_size,),
            "down_bias": (hidden,),
        }
    return shapes


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
