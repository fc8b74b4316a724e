"""Checkpoints whose config.json does not tell the whole truth, recognised from its own facts.

A profile is named, shown in the plan and can be turned off (`--no-profile`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from yarnconv.rope.scaling import Linear, Scaling, Unscaled, Yarn
from yarnconv.rope.spelling import ConfigRope

GEMMA3_FACTOR, GEMMA3_CONTEXT = 8.0, 131072


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of a checkpoint beyond its config.json.

    explanation: one sentence for the plan.
    original_context: the context seen in pre-training, where the config states another.
    scaling: the scaling its weights were trained with, where the config states part of it.
    """

    name: str
    explanation: str
    original_context: int | None = None
    scaling: Scaling | None = None


def _yarn_mistral(config: Mapping[str, Any], rope: ConfigRope) -> Profile | None:
    """NousResearch/Yarn-Mistral-7b-64k and -128k: betas and temperature stand in remote code only
    (its `modeling_mistral_yarn.py`), which transformers' own Mistral class does not run.
    """
    own = rope.groups.get(None)
    if not (
        config.get("model_type") == "mistral"
        and isinstance(own, Yarn)
        and rope.finetuned
        and own.original_context == 8192
        and own.attention_factor is None
        and (own.beta_fast, own.beta_slow) == (32.0, 1.0)
    ):
        return None
    return Profile(
        name="yarn-mistral",
        explanation=(
            "trained with beta_fast 128, beta_slow 2 and a temperature of 0.07 ln s + 1, which its "
            "config.json leaves out"
        ),
        scaling=replace(own, beta_fast=128.0, beta_slow=2.0, temperature_coefficient=0.07),
    )


def _qwen3(config: Mapping[str, Any], rope: ConfigRope) -> Profile | None:
    """Qwen3: 32768 positions of pre-training and room for 8192 of output make 40960."""
    if not (
        config.get("model_type") in {"qwen3", "qwen3_moe"}
        and config.get("max_position_embeddings") == 40960
        and isinstance(rope.groups.get(None), Unscaled)
    ):
        return None
    return Profile(
        name="qwen3",
        explanation=("trained at 32768 positions; max_position_embeddings = 40960 adds room for output"),
        original_context=32768,
    )


def _gemma3(config: Mapping[str, Any], rope: ConfigRope) -> Profile | None:
    """Gemma 3 from 4 B on: trained on with positions divided by 8, up to the 131072 that
    `max_position_embeddings` states (its technical report, section 2).
    """
    own = rope.groups.get("full_attention")
    if not (
        config.get("model_type") == "gemma3_text"
        and isinstance(own, Linear)
        and own.factor == GEMMA3_FACTOR
        and own.original_context == GEMMA3_CONTEXT
    ):
        return None
    return Profile(
        name="gemma3",
        explanation=(
            f"its linear scaling by {GEMMA3_FACTOR:g} is in the {GEMMA3_CONTEXT} positions that "
            "max_position_embeddings states, and does not come on top"
        ),
        scaling=replace(own, original_context=round(GEMMA3_CONTEXT / GEMMA3_FACTOR)),
    )


def recognise(config: Mapping[str, Any], rope: ConfigRope) -> Profile | None:
    """The profile that a config's own facts point to, if any."""
    for profile in (_yarn_mistral, _qwen3, _gemma3):
        if (found := profile(config, rope)) is not None:
            return found
    return None
