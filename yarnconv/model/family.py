"""A family is one data file, `families/<model_type>.toml`. This module reads it.

The file names the tensors, says how the block is built where families differ, which defaults the
family's transformers config class fills in, and the facts the GGUF target needs.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from yarnconv.errors import BadInput, Inexpressible

JsonObject = Mapping[str, Any]
# of a model of several parts they stand with the whole, which is what generates
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a family's config says which layers have a sliding window.

    size, enabled, from_layer: config keys; enabled and from_layer are optional.
    by_layer_types: whether its transformers class lets `layer_types` decide.
    types_enable: whether they do so whatever `enabled` says.
    full_every: every how many layers one sees everything, where `layer_types` does not decide: a number, or
        the config key that has it.
    without_rope_only: whether the layers that rotate have none.
    """

    size: str
    enabled: str | None = None
    from_layer: str | None = None
    by_layer_types: bool = False
    types_enable: bool = False
    full_every: int | str | None = None
    without_rope_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutRope:
    """Which layers do not rotate.

    layers, every: config keys, of a list with a 0 for each of them, and of the interval in which they come
        where there is no list. beside_windows: those that see everything, where the config has a window.
    """

    layers: str | None = None
    every: str | None = None
    beside_windows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Theta:
    """A layer type's RoPE base in a config that does not spell RoPE by layer type: a config key, or else the
    family's own.
    """

    default: float
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """The config keys of gpt-oss's gating (`ClampedGate`)."""

    alpha: str
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How a family's mixture of experts is built. Facts and keys as in `Structure`.

    count, chosen, intermediate_size: keys. scores, group_best: as in `Routing`.
    groups, chosen_groups: keys of a choice limited to groups; limited_by: another key and the value with
        which it is, where it is not always.
    dense_first: the key of how many layers come first that have none. dense_layers: of a list of others.
    step: of the interval in which layers have experts.
    shared_count: the key of how many experts every token takes besides, in one MLP; or shared_size: of that
        MLP's size. shared_gate: whether it counts by a sigmoid of its own.
    turned: whether transformers holds an expert's matrices [in, out].
    """

    count: str
    chosen: str
    intermediate_size: str
    scores: str
    normalised: bool | str
    scale: str | None = None
    groups: str | None = None
    chosen_groups: str | None = None
    group_best: int = 1
    limited_by: Mapping[str, str] | None = None
    correction: bool = False
    router_bias: bool = False
    bias: bool = False
    interleaved: bool = False
    turned: bool = False
    clamp: Clamp | None = None
    dense_first: str | None = None
    dense_layers: str | None = None
    step: str | None = None
    shared_count: str | None = None
    shared_size: str | None = None
    shared_gate: bool = False

    @property
    def config_keys(self) -> frozenset[str]:
        """Those that it names."""
        keys = {
            *(self.count, self.chosen, self.intermediate_size, self.normalised, self.scale, self.groups),
            *(self.chosen_groups, self.dense_first, self.dense_layers, self.step, self.shared_count),
            *(self.shared_size, *(self.limited_by or ())),
        }
        if self.clamp is not None:
            keys |= {self.clamp.alpha, self.clamp.limit}
        return frozenset(key for key in keys if isinstance(key, str))


# of multi-head latent attention, everywhere the same
LATENT_KEYS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """How the block is built. A `bool | str` is a fact, or the config key that decides it; any other `str` of
    a number is the config key that has it.

    partial_rotary: whether its transformers class rotates less than whole heads where the config says so.
    query_key_norm: "head", "projection" or false. query_key_norm_if: the key that decides whether it is so.
    theta_by_layer_type: by layer type, where its layers have a RoPE of their own each.
    attention_scale: of the scores. query_scalar: of which the inverse square root is. Neither: head_dim is.
    embedding_root: whether embeddings are multiplied by the root of the hidden size.
    logit_divisor: of the logits.
    query_growth: the beta of `QueryGrowth`, a key of the RoPE parameters.
    interleaved_by: the key that decides whether pairs are interleaved.
    latent: whether its attention is multi-head latent attention.
    sinks: whether its attention has sinks.
    extra_layers: the key of how many layers stand behind those that are the model's, for predicting several
        tokens at once.
    supposes: by config key, the values that this data file describes, of a list those of its entries; any
        other is refused. "null" stands for null and for nothing at all.
    rope_types: that the transformers config class takes; None for all that transformers has.
    yarn_is_longrope: whether that class takes a RoPE type of yarn for longrope.
    """

    pairing: str
    query_key_norm: bool | str
    query_key_value_bias: bool | str
    output_bias: bool | str
    mlp_bias: bool | str
    activation: str = "hidden_act"
    intermediate_size: str = "intermediate_size"
    partial_rotary: bool = False
    window: Window | None = None
    without_rope: WithoutRope | None = None
    theta_by_layer_type: Mapping[str, Theta] | None = None
    norms_add_one: bool = False
    attention_scale: str | None = None
    query_scalar: str | None = None
    attention_softcap: str | None = None
    query_growth: str | None = None
    interleaved_by: str | None = None
    query_key_norm_if: str | None = None
    latent: bool = False
    sinks: bool = False
    experts: Experts | None = None
    extra_layers: str | None = None
    embedding_multiplier: str | None = None
    embedding_root: bool = False
    residual_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    supposes: Mapping[str, Sequence[Any]] | None = None
    rope_types: Sequence[str] | None = None
    yarn_is_longrope: bool = False

    @property
    def config_keys(self) -> frozenset[str]:
        """The config keys that it names, apart from RoPE's."""
        keys = {
            *(self.query_key_value_bias, self.output_bias, self.mlp_bias, self.activation),
            *(self.intermediate_size, self.attention_scale, self.query_scalar, self.attention_softcap),
            *(self.embedding_multiplier, self.residual_multiplier, self.logit_divisor, self.logit_softcap),
            *(self.supposes or ()),
            *(self.interleaved_by, self.query_key_norm_if),
            *(LATENT_KEYS if self.latent else ()),
            *(self.experts.config_keys if self.experts is not None else ()),
        }
        if self.window is not None:
            keys |= {self.window.size, self.window.enabled, self.window.from_layer, self.window.full_every}
            keys |= {"layer_types"} if self.window.by_layer_types else set()
        if self.without_rope is not None:
            keys |= {self.without_rope.layers, self.without_rope.every}
        return frozenset(key for key in keys if isinstance(key, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """What the GGUF target must know of a family.

    architectures: llama.cpp's names for what may compute it, the one that its converter takes first.
    vocab_size_key, rope_dimension_count_key: whether llama.cpp's converter writes those keys.
    head_length_keys: whether it writes the head size even where config.json is silent on it.
    add_space_prefix_key: whether `add_prefix_space` of the tokenizer becomes a key.
    """

    architectures: tuple[str, ...]
    vocab_size_key: bool = False
    rope_dimension_count_key: bool = False
    head_length_keys: bool = True
    add_space_prefix_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One data file. `tensors` maps a role to its name; names with `{layer}` occur once a layer. In `tiny`
    "null" is spelled null, which TOML does not know.

    synonyms: other names of config keys, and what they are called here.
    also: other names in model_type of the same models.
    stored: by role, the names under which checkpoints may hold a tensor instead, whole or in parts: one name,
        or of parts that stand one below the other, for each `{expert}` in turn.
    wrapped_by: by model_type the architectures of models that hold one of this family beside other parts, its
        config under `text_config`.
    """

    model_type: str
    also: tuple[str, ...]
    architectures: tuple[str, ...]
    wrapped_by: Mapping[str, str]
    example_models: tuple[str, ...]
    synonyms: Mapping[str, str]
    config_defaults: JsonObject
    structure: Structure
    tensors: Mapping[str, str]
    stored: Mapping[str, Sequence[str]]
    leftovers: tuple[str, ...]
    gguf: GgufFacts
    tiny: JsonObject


def _structure(data: dict[str, Any]) -> Structure:
    parts = {"window": Window, "without_rope": WithoutRope}
    made: dict[str, Any] = {n: kind(**data.pop(n)) for n, kind in parts.items() if n in data}
    if "theta_by_layer_type" in data:
        by_type = data.pop("theta_by_layer_type")
        made["theta_by_layer_type"] = {name: Theta(**theta) for name, theta in by_type.items()}
    if "experts" in data:
        experts = data.pop("experts")
        clamp = Clamp(**experts.pop("clamp")) if "clamp" in experts else None
        made["experts"] = Experts(**experts, clamp=clamp)
    return Structure(**data, **made)


@cache
def families() -> Mapping[str, Family]:
    """Every family there is a data file for, by model_type."""
    found: dict[str, Family] = {}
    for entry in sorted(resources.files("yarnconv.model.families").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".toml"):
            continue
        data = tomllib.loads(entry.read_text(encoding="utf-8"))
        gguf = data["gguf"]
        family = Family(
            model_type=data["model_type"],
            also=tuple(data.get("also", ())),
            architectures=tuple(data["architectures"]),
            wrapped_by=data.get("wrapped_by", {}),
            example_models=tuple(data["example_models"]),
            synonyms=data.get("synonyms", {}),
            config_defaults=data["config_defaults"],
            structure=_structure(data["structure"]),
            tensors=data["tensors"],
            stored=data.get("stored", {}),
            leftovers=tuple(data.get("leftovers", ())),
            gguf=GgufFacts(**{**gguf, "architectures": tuple(gguf["architectures"])}),
            tiny={key: None if value == "null" else value for key, value in data["tiny"].items()},
        )
        found[family.model_type] = family
    return found


def text_part(config: JsonObject) -> JsonObject:
    """The config of the text model within one that has other parts too; any other config as it is.

    The wrapping classes tie the embeddings unless they say otherwise.
    """
    inner = config.get("text_config")
    wrappers = [name for family in families().values() for name in family.wrapped_by]
    if config.get("model_type") not in wrappers or not isinstance(inner, Mapping):
        return config
    tied = config.get("tie_word_embeddings", True)
    outside = {key: config[key] for key in SPECIAL_IDS if config.get(key) is not None}
    return {**inner, **outside, "architectures": None, "tie_word_embeddings": tied}


def find_family(config: JsonObject) -> Family:
    """The family of a config.json, by model_type and, where that is missing, by architecture; of one with a
    text model among its parts, that one's.

    Raises Inexpressible for one without a data file, BadInput where the config does not say which it is.
    """
    config = text_part(config)
    model_type, architectures = config.get("model_type"), config.get("architectures")
    names = [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    for family in families().values():
        known = set(family.architectures)
        own = [family.model_type, *family.also]  # of anything, which need not be hashable
        if model_type in own if model_type is not None else known & set(names):
            if names and not known & set(names):
                break
            return family
    known_list = "; ".join(
        f"{family.model_type} ({', '.join((*family.architectures, *family.wrapped_by.values()))})"
        for family in families().values()
    )
    described = f"model_type {model_type!r}" + (f", architecture {names[0]!r}" if names else "")
    named = isinstance(model_type, str) or (model_type is None and names)
    refused = Inexpressible if named else BadInput
    raise refused(
        f"unknown architecture: {described}",
        where="config.json: model_type, architectures",
        fix="There is no data file of its family: `yarnconv plan` and `inspect` take it nevertheless. "
        f"Converted are: {known_list}.",
    )
