"""From a config.json to the scalings: every spelling in use, legacy and transformers 5.

Source of the rules: transformers' `modeling_rope_utils.py` (`convert_rope_params_to_dict`,
`standardize_rope_params`, the `_validate_*` functions). A non-empty `rope_scaling` replaces
`rope_parameters`; a theta inside the dict beats the one at the top level; `rope_type` beats `type`;
a top-level `original_max_position_embeddings` beats the dict's. A key or a type that is not known
here is an error that names it: what cannot be read cannot be carried.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.rope.config_numbers import (
    JsonObject,
    head_dim,
    misread,
    optional_number,
    optional_whole_number,
)
from yarnconv.rope.scaling import (
    DynamicNtk,
    DynamicYarn,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    Scaling,
    Unscaled,
    Yarn,
)

MAXIMUM_LAYERS = 4096  # far above any model there is
# transformers reads none of these for a scaling, so neither does the reference. `attn_factor` looks
# like a temperature and is not one: whoever wrote it is told.
IGNORED_KEYS = frozenset({"attn_factor", "finetuned", "max_position_embeddings"})
COMMON_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"}) | IGNORED_KEYS
YARN_KEYS = frozenset(
    {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    }
)
KEYS_BY_TYPE: dict[str, frozenset[str]] = {
    "default": frozenset({"original_max_position_embeddings"}),
    "linear": frozenset({"factor", "original_max_position_embeddings"}),
    "ntk": frozenset({"factor", "original_max_position_embeddings"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "yarn": YARN_KEYS,
    "dynamic-yarn": YARN_KEYS,
    "llama3": frozenset(
        {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
    ),
    "longrope": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "short_factor",
            "long_factor",
        }
    ),
}
TYPE_SYNONYMS = {"none": "default", "su": "longrope", "dynamic-ntk": "dynamic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRope:
    """The RoPE a config.json carries.

    groups: per layer type its scaling (the single key None where one scaling serves all layers;
        a scaling of None means layers without RoPE).
    finetuned: what the config says of itself, None where it says nothing.
    notes: what a reader should know of how the config was understood.
    original_notes: those of them which say that the original context is not stated where a scaling counts
        from it, and max_position_embeddings was taken for it.
    """

    groups: Mapping[str | None, Scaling | None]
    finetuned: bool | None = None
    notes: tuple[str, ...] = ()
    original_notes: tuple[str, ...] = ()


def _rotary_dim(config: JsonObject, parameters: JsonObject, where: str) -> int:
    """Dimensions of a head that rotate: MLA's own rope dimensions, or a share of head_dim."""
    share = optional_number(parameters, "partial_rotary_factor", where)
    if share is None:
        share = optional_number(config, "partial_rotary_factor", "")
    decoupled = optional_whole_number(config, "qk_rope_head_dim", "")
    if decoupled is not None:
        if share not in {None, 1.0}:
            what = f"partial_rotary_factor is {share!r}, and qk_rope_head_dim says how many dimensions rotate"
            raise misread("partial_rotary_factor", what)
        return decoupled
    if share is not None and not 0.0 <= share <= 1.0:
        raise misread("partial_rotary_factor", f"partial_rotary_factor is {share!r}, not a share from 0 to 1")
    return int(head_dim(config) * (1.0 if share is None else share))


def _rope_type(parameters: JsonObject, where: str) -> str:
    spelled = parameters.get("rope_type", parameters.get("type", "default"))
    if spelled is None:
        return "default"
    if not isinstance(spelled, str):
        raise misread(f"{where}.rope_type", f"the type of the scaling is {spelled!r}, not a name")
    rope_type = TYPE_SYNONYMS.get(spelled, spelled)
    if rope_type not in KEYS_BY_TYPE:
        known = ", ".join(sorted(KEYS_BY_TYPE | dict.fromkeys(TYPE_SYNONYMS)))
        raise misread(f"{where}.rope_type", f"unknown RoPE scaling type {spelled!r}", f"Known: {known}.")
    unknown = sorted(set(parameters) - COMMON_KEYS - KEYS_BY_TYPE[rope_type])
    if unknown:
        known = ", ".join(sorted(KEYS_BY_TYPE[rope_type]))
        raise misread(
            f"{where}.{unknown[0]}",
            f"unknown key {unknown[0]!r} for RoPE scaling type {spelled!r}",
            f"Known: {known}. What is not understood cannot be carried into an artefact; "
            "remove the key if it has no effect.",
        )
    return rope_type


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One scaling's dict with what surrounds it, and the numbers every builder needs."""

    parameters: JsonObject
    where: str
    theta: float
    rotary_dim: int
    original_context: int
    maximum_context: int
    is_latent_attention: bool

    def number(self, key: str) -> float | None:
        return optional_number(self.parameters, key, self.where)

    def required(self, key: str) -> float:
        value = self.number(key)
        if value is None:
            raise misread(
                f"{self.where}.{key}",
                f"{key} is missing",
                "Add it, or give the scaling on the command line.",
            )
        return value

    def factor_or_ratio(self) -> float:
        """`factor`, where null (not missing) stands for max / original as in transformers."""
        if "factor" in self.parameters and self.parameters["factor"] is None:
            return self.maximum_context / self.original_context
        return self.required("factor")

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self.parameters.get(key)
        if not isinstance(values, list) or not all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        ):
            raise misread(f"{self.where}.{key}", f"{key} is not a list of numbers")
        try:
            return tuple(float(v) for v in values)
        except OverflowError:
            raise misread(f"{self.where}.{key}", f"{key} holds too large a number") from None


def _build_yarn(source: _Source, kind: type[Yarn]) -> Yarn:
    truncate = source.parameters.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise misread(f"{source.where}.truncate", f"truncate is {truncate!r}, not true or false")
    return kind(
        theta=source.theta,
        rotary_dim=source.rotary_dim,
        original_context=source.original_context,
        factor=source.factor_or_ratio(),
        # transformers reads `or 32` / `or 1`: null and 0 mean the default
        beta_fast=source.number("beta_fast") or 32.0,
        beta_slow=source.number("beta_slow") or 1.0,
        truncate=True if truncate is None else truncate,
        attention_factor=source.number("attention_factor"),
        mscale=source.number("mscale"),
        mscale_all_dim=source.number("mscale_all_dim"),
        softmax_mscale=source.is_latent_attention,
    )


def _build_longrope(source: _Source) -> LongRope:
    factor = source.number("factor")
    if factor is None:
        factor = source.maximum_context / source.original_context
    return LongRope(
        theta=source.theta,
        rotary_dim=source.rotary_dim,
        original_context=source.original_context,
        factor=factor,
        short_factor=source.numbers("short_factor"),
        long_factor=source.numbers("long_factor"),
        attention_factor=source.number("attention_factor"),
    )


def _build_llama3(source: _Source) -> Llama3:
    return Llama3(
        theta=source.theta,
        rotary_dim=source.rotary_dim,
        original_context=source.original_context,
        factor=source.required("factor"),
        low_freq_factor=source.required("low_freq_factor"),
        high_freq_factor=source.required("high_freq_factor"),
    )


def _build_extended(source: _Source, kind: type[Linear | NtkAware | DynamicNtk]) -> Scaling:
    return kind(
        theta=source.theta,
        rotary_dim=source.rotary_dim,
        original_context=source.original_context,
        factor=source.required("factor"),
    )


_BUILDERS: dict[str, Callable[[_Source], Scaling]] = {
    "default": lambda source: Unscaled(theta=source.theta, rotary_dim=source.rotary_dim),
    "linear": lambda source: _build_extended(source, Linear),
    "ntk": lambda source: _build_extended(source, NtkAware),
    "dynamic": lambda source: _build_extended(source, DynamicNtk),
    "yarn": lambda source: _build_yarn(source, Yarn),
    "dynamic-yarn": lambda source: _build_yarn(source, DynamicYarn),
    "llama3": _build_llama3,
    "longrope": _build_longrope,
}


def _original_context(
    config: JsonObject, parameters: JsonObject, where: str, rope_type: str, maximum: int
) -> int:
    if rope_type == "dynamic":
        return maximum  # the only length transformers' dynamic NTK knows
    top_level = optional_whole_number(config, "original_max_position_embeddings", "")
    inside = optional_whole_number(parameters, "original_max_position_embeddings", where)
    return top_level or inside or maximum


def _original_notes(config: JsonObject, parameters: JsonObject) -> list[str]:
    """What to say of a scaling that counts from the original context and does not state it."""
    counts = _rope_type(parameters, "") in {"linear", "ntk", "yarn", "dynamic-yarn"}
    if not counts or "original_max_position_embeddings" in {*config, *parameters}:
        return []
    maximum = optional_whole_number(config, "max_position_embeddings", "")
    return [
        "config.json does not say which context the model was trained with: "
        f"max_position_embeddings = {maximum} is taken for the original one. "
        "If it is the extended one, give --original-context."
    ]


def _read_group(config: JsonObject, parameters: JsonObject, where: str) -> tuple[Scaling, list[str]]:
    """One scaling and the notes on it; `where` names its dict within config.json."""
    rope_type = _rope_type(parameters, where)
    notes = _original_notes(config, parameters)
    theta = optional_number(parameters, "rope_theta", where)
    if theta is None:
        theta = optional_number(config, "rope_theta", "")
    maximum = optional_whole_number(config, "max_position_embeddings", "")
    if theta is None or maximum is None:
        missing = "rope_theta" if theta is None else "max_position_embeddings"
        raise misread(missing, f"{missing} is missing")
    original = _original_context(config, parameters, where, rope_type, maximum)
    if parameters.get("attn_factor") is not None:
        notes.append(
            f"config.json: {where}.attn_factor is not read by transformers and has no effect here "
            f"either. The temperature's key is attention_factor."
        )
    source = _Source(
        parameters=parameters,
        where=where,
        theta=theta,
        rotary_dim=_rotary_dim(config, parameters, where),
        original_context=original,
        maximum_context=maximum,
        is_latent_attention=config.get("kv_lora_rank") is not None,
    )
    try:
        return _BUILDERS[rope_type](source), notes
    except BadInput as error:
        if error.where is None or error.where.startswith("config.json"):
            raise
        inside = error.where in parameters
        location = f"{where}.{error.where}" if inside and where else error.where
        raise BadInput(error.what, where=f"config.json: {location}", fix=error.fix) from None


def _layer_types(config: JsonObject) -> frozenset[str]:
    types = config.get("layer_types") or []
    named = isinstance(types, list) and all(isinstance(kind, str) for kind in types)
    if not named or len(types) > MAXIMUM_LAYERS:
        raise misread("layer_types", f"layer_types is no list of at most {MAXIMUM_LAYERS} names")
    return frozenset(types)


def _said_finetuned(*parameters: Any) -> bool | None:
    """What a config says of itself, in any of its scalings."""
    said = (own.get("finetuned") for own in parameters if isinstance(own, Mapping))
    return next((value for value in said if isinstance(value, bool)), None)


def read_rope(config: JsonObject) -> ConfigRope:
    """The scaling, or the scalings by layer type, that a config.json asks for.

    `config` must hold rope_theta and max_position_embeddings (a family's defaults filled in), and
    what the rotary dimension follows from.
    """
    where, parameters = "rope_scaling", config.get("rope_scaling")
    if not parameters:
        where, parameters = "rope_parameters", config.get("rope_parameters")
    if parameters is None:
        where, parameters = "", {}
    if not isinstance(parameters, Mapping):
        raise misread(where, f"{where} is {parameters!r}, not an object")
    layer_types = _layer_types(config)
    nested = [key for key in parameters if key in layer_types]
    if not nested:
        scaling, notes = _read_group(config, parameters, where)
        return ConfigRope(
            groups={None: scaling},
            finetuned=_said_finetuned(parameters),
            notes=tuple(notes),
            original_notes=tuple(_original_notes(config, parameters)),
        )
    strays = sorted(set(parameters) - set(nested) - {"truncate"})
    if strays:
        raise misread(f"{where}.{strays[0]}", f"unknown key {strays[0]!r} beside the layer types")
    # beside the layer types is where transformers reads `truncate`, and the only place
    truncate = {"truncate": parameters["truncate"]} if "truncate" in parameters else {}
    groups: dict[str | None, Scaling | None] = {}
    notes, original_notes = [], list[str]()
    for layer_type in nested:
        inner = parameters[layer_type]
        if inner is None:
            groups[layer_type] = None
            continue
        if not isinstance(inner, Mapping):
            raise misread(f"{where}.{layer_type}", f"{inner!r} is not an object")
        if inner.get("truncate") is False and parameters.get("truncate") is not False:
            notes.append(
                f"config.json: {where}.{layer_type}.truncate = false has no effect in transformers, "
                "which reads the key beside the layer types only; it has none here."
            )
        if inner.get("rope_type", inner.get("type")) == "yarn":
            inner = {k: v for k, v in inner.items() if k != "truncate"} | truncate
        outside = {k: v for k, v in config.items() if k != "original_max_position_embeddings"}
        groups[layer_type], group_notes = _read_group(outside, inner, f"{where}.{layer_type}")
        notes += group_notes
        original_notes += _original_notes(outside, inner)
    missing = sorted(layer_types - set(nested))
    if missing:
        raise misread(where, f"no RoPE parameters for layers of type {missing[0]!r}")
    finetuned = _said_finetuned(*parameters.values())
    originals = tuple(original_notes)
    return ConfigRope(groups=groups, finetuned=finetuned, notes=tuple(notes), original_notes=originals)
