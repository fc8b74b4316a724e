"""From a config.json to the description of its model, by the family's data file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.model.config_values import multiplier, number, softcap, switch, whole_number
from yarnconv.model.description import (
    AttentionDescription,
    ExpertsDescription,
    LatentAttention,
    LayerDescription,
    MlpDescription,
    ModelDescription,
    NormRole,
    QueryGrowth,
)
from yarnconv.model.experts import has_experts, read_experts
from yarnconv.model.family import LATENT_KEYS, Family, JsonObject, Structure, Window, WithoutRope, text_part
from yarnconv.rope.config_numbers import head_dim
from yarnconv.rope.scaling import MAXIMUM_CONTEXT
from yarnconv.rope.spelling import MAXIMUM_LAYERS

NORMS: tuple[NormRole, ...] = ("attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm")
FULL, SLIDING = "full_attention", "sliding_attention"
# transformers' own (`configuration_utils._LEGACY_LAYER_TYPE_REMAP`), of those that are described here
LEGACY_LAYER_TYPES = {"attention": FULL}


def with_defaults(family: Family, config: JsonObject) -> dict[str, Any]:
    """The config with what the family's transformers class assumes where the file is silent.

    A default of the form `{ same_as = "key" }` takes that key's value, and null counts as silent
    for it, as it does for an object; with `missing` beside it that is what nothing at all means. For the
    others null is a value (Mistral: no sliding window). What the RoPE parameters hold besides RoPE stands at
    the top level, and where the family has a RoPE for each type of its layers, that is spelled out, and so
    is `layer_types`.
    """
    filled = dict(text_part(config))
    if not family.structure.latent:  # of which RoPE is spelled otherwise; no class of theirs reads these
        filled = {key: value for key, value in filled.items() if key not in LATENT_KEYS}
    for other, key in family.synonyms.items():
        if other in filled and key not in filled:
            filled[key] = filled.pop(other)
    for key, default in family.config_defaults.items():
        if not isinstance(default, Mapping):
            filled.setdefault(key, default)
        elif "missing" in default and key not in filled:
            filled[key] = default["missing"]
        elif filled.get(key) is None:
            filled[key] = filled.get(default["same_as"]) if "same_as" in default else dict(default)
    if family.structure.query_growth is not None:
        _take_query_growth(family.structure.query_growth, filled)
    if family.structure.theta_by_layer_type is not None:
        _spell_by_layer_type(family.structure, filled)
    return filled


def _take_query_growth(key: str, filled: dict[str, Any]) -> None:
    """Move the growth of queries out of the RoPE parameters, which it is written among, to the top level,
    where nothing else of that name counts. It grows by the original context as transformers finds it.
    """
    filled[key] = None
    original = "original_max_position_embeddings"
    for place in ("rope_scaling", "rope_parameters"):
        parameters = filled.get(place)
        if parameters and isinstance(parameters, Mapping):
            own = dict(parameters)
            if (beta := own.pop(key, None)) is not None:
                contexts = (filled.get(original), own.get(original), filled.get("max_position_embeddings"))
                filled[key] = {"beta": beta, "context": next((c for c in contexts if c), None)}
            filled[place] = own
            return


def _spell_by_layer_type(structure: Structure, filled: dict[str, Any]) -> None:
    """`rope_parameters` by layer type, as the config classes of such families make them of the older spelling
    (`convert_rope_params_to_dict`): its scaling is that of the layers that see everything.
    """
    assert structure.theta_by_layer_type is not None
    layers = whole_number(filled, "num_hidden_layers", MAXIMUM_LAYERS)
    filled["layer_types"] = [kind for kind, _ in _windows(filled, structure, layers)]
    spelled, older = filled.get("rope_parameters"), filled.pop("rope_scaling", None)
    for key, value in (("rope_parameters", spelled), ("rope_scaling", older)):
        if value is not None and not isinstance(value, Mapping):
            raise BadInput(f"{key} is {value!r}, not an object", where=f"config.json: {key}")
    by_type = dict(spelled or {})
    for kind, theta in structure.theta_by_layer_type.items():
        if kind not in filled["layer_types"]:
            by_type.pop(kind, None)
            continue
        inner = by_type.get(kind)
        if inner is not None and not isinstance(inner, Mapping):
            raise BadInput(f"{inner!r} is not an object", where=f"config.json: rope_parameters.{kind}")
        # a type spelled the oldest way, `type`, is overruled by the default that the class begins with
        own = {**(inner or {"rope_type": "default"}), **(older or {} if kind == FULL else {})}
        given = filled.get(theta.key) if theta.key is not None else None
        own.setdefault("rope_theta", theta.default if given is None else given)
        by_type[kind] = own
    filled["rope_parameters"] = by_type


def _refuse_what_is_not_supposed(family: Family, config: JsonObject) -> None:
    for key, values in (family.structure.supposes or {}).items():
        found = config.get(key)
        if isinstance(found, list) and len(found) != config.get("num_hidden_layers"):
            what = f"{key} has {len(found)} entries, and num_hidden_layers is "
            raise BadInput(what + repr(config.get("num_hidden_layers")), where=f"config.json: {key}")
        entries = found if isinstance(found, list) else ["null" if found is None else found]
        if any(entry not in values for entry in entries):
            raise Inexpressible(
                f"{key} is {found!r}, which the data file of {family.model_type} does not describe",
                where=f"config.json: {key}",
                fix=f"Converted are models with {' or '.join(map(repr, values))}.",
            )


def _rotates(config: JsonObject, without: WithoutRope | None, layers: int) -> list[bool]:
    """Per layer whether it has RoPE, apart from what windows decide."""
    if without is None or without.layers is None:
        return [True] * layers
    listed = config.get(without.layers)
    if listed is None:
        assert without.every is not None
        every = whole_number(config, without.every)
        return [(index + 1) % every != 0 for index in range(layers)]
    if not isinstance(listed, list) or len(listed) < layers or not all(x in (0, 1) for x in listed):
        raise BadInput(
            f"{without.layers} does not hold a 0 or a 1 for each of {layers} layers",
            where=f"config.json: {without.layers}",
        )
    return [bool(x) for x in listed[:layers]]


def _window_size(config: JsonObject, window: Window | None) -> int | None:
    if window is None or config.get(window.size) is None:
        return None
    chosen = window.types_enable and config.get("layer_types") is not None
    if window.enabled is not None and not chosen and not switch(config, window.enabled):
        return None
    return whole_number(config, window.size, maximum=MAXIMUM_CONTEXT)


def _own_layer_types(config: JsonObject, structure: Structure, size: int | None, layers: int) -> list[str]:
    """By the family's own keys."""
    window = structure.window
    if window is None or size is None:
        return [FULL] * layers
    first = 0
    if window.from_layer is not None:
        found = config.get(window.from_layer)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise BadInput(f"{window.from_layer} is {found!r}", where=f"config.json: {window.from_layer}")
        first = found
    every = window.full_every
    if isinstance(every, str):
        every = whole_number(config, every)
    rotates = _rotates(config, structure.without_rope, layers)

    def slides(index: int) -> bool:
        if window.without_rope_only:
            return not rotates[index]
        return index >= first and (every is None or (index + 1) % every != 0)

    return [SLIDING if slides(index) else FULL for index in range(layers)]


def _windows(config: JsonObject, structure: Structure, layers: int) -> list[tuple[str, int | None]]:
    """Per layer its type and window, from `layer_types` or from the family's own keys."""
    window = structure.window
    size = _window_size(config, window)
    types: object = config.get("layer_types") if window is not None and window.by_layer_types else None
    if types is None:
        types = _own_layer_types(config, structure, size, layers)
    elif isinstance(types, list):
        types = [LEGACY_LAYER_TYPES.get(kind, kind) if isinstance(kind, str) else kind for kind in types]
    known = {FULL, SLIDING}
    if not isinstance(types, list) or len(types) != layers or not set(map(str, types)) <= known:
        raise BadInput(
            f"layer_types does not name {layers} layers of type {' or '.join(sorted(known))}",
            where="config.json: layer_types",
        )
    return [(kind, size if kind == SLIDING else None) for kind in types]


def _query_growth(config: JsonObject, key: str | None) -> QueryGrowth | None:
    """As `with_defaults` spells it; none where beta is 0."""
    found = None if key is None else config.get(key)
    if not found:
        return None
    beta = number(found, "beta", smallest=0.0)
    return QueryGrowth(beta=beta, context=whole_number(found, "context", MAXIMUM_CONTEXT)) if beta else None


def _attention_scale(config: JsonObject, structure: Structure, head_size: int) -> float:
    if structure.attention_scale is not None:
        return number(config, structure.attention_scale)
    return 1.0 / math.sqrt(
        head_size if structure.query_scalar is None else number(config, structure.query_scalar)
    )


def _norm_kind(structure: Structure, config: JsonObject) -> Literal["head", "projection"] | None:
    fact, decided_by = structure.query_key_norm, structure.query_key_norm_if
    if fact is False or (decided_by is not None and not switch(config, decided_by)):
        return None
    return cast(Literal["head", "projection"], fact)


def _latent(config: JsonObject, heads: int) -> LatentAttention:
    if whole_number(config, "num_key_value_heads", 2**16) != heads:
        raise BadInput(
            f"num_key_value_heads is {config.get('num_key_value_heads')!r}, and latent attention has as many "
            f"as query heads, {heads}",
            where="config.json: num_key_value_heads",
        )
    direct = config.get("q_lora_rank") is None
    return LatentAttention(
        query_rank=None if direct else whole_number(config, "q_lora_rank", 2**16),
        rank=whole_number(config, "kv_lora_rank", 2**16),
        plain_dim=whole_number(config, "qk_nope_head_dim", 2**16),
        rotary_dim=whole_number(config, "qk_rope_head_dim", 2**16),
        value_dim=whole_number(config, "v_head_dim", 2**16),
    )


def _cached_heads(
    structure: Structure, config: JsonObject, heads: int
) -> tuple[int, int, LatentAttention | None]:
    """(heads of keys, their dimensions, what they are absorbed from if they are). heads: of queries."""
    if structure.latent:
        latent = _latent(config, heads)
        return 1, latent.rank + latent.rotary_dim, latent
    key_value_heads = whole_number(config, "num_key_value_heads", 2**16)
    given = config.get("head_dim") is not None
    head_size = whole_number(config, "head_dim", 2**16) if given else head_dim(config)
    if heads % key_value_heads:
        raise BadInput(
            f"{heads} query heads do not divide among {key_value_heads} key/value heads",
            where="config.json: num_key_value_heads",
        )
    return key_value_heads, head_size, None


def _heads(family: Family, config: JsonObject) -> AttentionDescription:
    """The attention of a layer that sees everything and rotates."""
    structure = family.structure
    heads = whole_number(config, "num_attention_heads", 2**16)
    key_value_heads, head_size, latent = _cached_heads(structure, config, heads)
    projected = head_size if latent is None else latent.plain_dim + latent.rotary_dim
    interleaved = structure.pairing == "interleaved"
    if structure.interleaved_by is not None:
        interleaved = switch(config, structure.interleaved_by)
    return AttentionDescription(
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_size,
        layer_type=FULL,
        window=None,
        rotates=True,
        pairing="interleaved" if interleaved else "half",
        query_key_norm=_norm_kind(structure, config),
        query_key_value_bias=switch(config, structure.query_key_value_bias),
        output_bias=switch(config, structure.output_bias),
        fused="query_key_value" in family.tensors,
        scale=_attention_scale(config, structure, projected),
        softcap=softcap(config, structure.attention_softcap),
        query_growth=_query_growth(config, structure.query_growth),
        sinks=structure.sinks,
        latent=latent,
    )


def _attentions(family: Family, config: JsonObject, layers: int) -> Iterator[AttentionDescription]:
    """Of every layer."""
    structure, heads = family.structure, _heads(family, config)
    without = structure.without_rope
    still = without is not None and without.beside_windows
    still = still and _window_size(config, structure.window) is not None
    rotates = _rotates(config, without, layers)
    for (kind, window), turns in zip(_windows(config, structure, layers), rotates, strict=True):
        turns = turns and not (still and kind == FULL)
        yield replace(heads, layer_type=kind, window=window, rotates=turns)


def _activation(structure: Structure, config: JsonObject) -> str:
    activation = config.get(structure.activation)
    if not isinstance(activation, str):
        raise BadInput(
            f"{structure.activation} is {activation!r}, not a name",
            where=f"config.json: {structure.activation}",
        )
    return activation


def _dense_mlp(family: Family, config: JsonObject) -> MlpDescription:
    structure = family.structure
    return MlpDescription(
        intermediate_size=whole_number(config, structure.intermediate_size),
        activation=_activation(structure, config),
        bias=switch(config, structure.mlp_bias),
        fused="gate_up" in family.tensors,
    )


def _mlps(family: Family, config: JsonObject, layers: int) -> list[MlpDescription | ExpertsDescription]:
    """Of every layer."""
    experts = family.structure.experts
    mixed = has_experts(experts, config, layers)
    dense = None if all(mixed) else _dense_mlp(family, config)
    mixture = None
    if experts is not None and any(mixed):
        mixture = read_experts(experts, config, _activation(family.structure, config))
    found = [mixture if one else dense for one in mixed]
    return [one for one in found if one is not None]


def _epsilon(config: JsonObject) -> float:
    epsilon = config.get("rms_norm_eps")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 1e-12 <= epsilon < 1:
        raise BadInput(
            f"rms_norm_eps is {epsilon!r}, not between 1e-12 and 1", where="config.json: rms_norm_eps"
        )
    return float(epsilon)


def describe(family: Family, config: JsonObject) -> ModelDescription:
    """The model that a config.json (defaults filled in) describes; its dimensions are checked.

    Raises Inexpressible for what the family's data file does not describe.
    """
    _refuse_what_is_not_supposed(family, config)
    structure, hidden = family.structure, whole_number(config, "hidden_size")
    norms = frozenset(role for role in NORMS if role in family.tensors)
    residual_multiplier = multiplier(config, structure.residual_multiplier)
    layers = whole_number(config, "num_hidden_layers", MAXIMUM_LAYERS)
    embedding = multiplier(config, structure.embedding_multiplier)
    return ModelDescription(
        family=family.model_type,
        vocab_size=whole_number(config, "vocab_size"),
        hidden_size=hidden,
        max_position_embeddings=whole_number(config, "max_position_embeddings", MAXIMUM_CONTEXT),
        norm_epsilon=_epsilon(config),
        norms_add_one=structure.norms_add_one,
        embedding_multiplier=embedding * (math.sqrt(hidden) if structure.embedding_root else 1.0),
        logit_multiplier=1.0 / multiplier(config, structure.logit_divisor),
        logit_softcap=softcap(config, structure.logit_softcap),
        tied_embeddings=switch(config, "tie_word_embeddings"),
        layers=tuple(
            LayerDescription(
                attention=attention, mlp=mlp, norms=norms, residual_multiplier=residual_multiplier
            )
            for attention, mlp in zip(
                _attentions(family, config, layers), _mlps(family, config, layers), strict=True
            )
        ),
    )
