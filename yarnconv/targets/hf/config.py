"""config.json of an extended checkpoint: the original's, with the plan in both spellings.

`rope_scaling` is what transformers 4, vLLM and SGLang read, and transformers 5 reads it before
`rope_parameters`, so that both must say everything.
"""

from typing import Any

from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import DynamicNtk, Linear, LongRope, Scaling, Unscaled
from yarnconv.rope.tables import buckets
from yarnconv.rope.writing import as_transformers, write_rope
from yarnconv.rope_plan import RopePlan

# Other names for max_position_embeddings, that some configs carry beside it and some engines read first.
LENGTH_SYNONYMS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length")


def position_limit(rope: RopePlan) -> int:
    """What `max_position_embeddings` must be, in positions.

    The target context, by which transformers 4 works out YaRN's factor (as the quotient with the original)
    and engines the longest request. But the original one for types whose dict has no place for it:
    transformers' dynamic type takes it for that, and engines multiply it by the factor.
    """
    if isinstance(rope.main, Linear | DynamicNtk):
        return rope.original_context
    return rope.target_context


def spell(scaling: Scaling) -> dict[str, Any]:
    """The object under `rope_parameters`, with no key in it that a reader of its type would not expect."""
    spelled = write_rope(as_transformers(scaling))
    if isinstance(scaling, Linear | DynamicNtk):
        del spelled["original_max_position_embeddings"]
    if spelled.get("truncate"):
        del spelled["truncate"]  # the default, and unknown to most of transformers 4
    if isinstance(scaling, LongRope):  # transformers 4 would make another one of the lengths
        spelled["attention_factor"] = buckets(scaling)[-1].attention_factor
    return spelled


def _finetuned(plan: ConversionPlan) -> dict[str, bool]:
    """What to say of fine-tuning, so that who extends the result hears of it as well."""
    own = plan.config.get("rope_scaling") or plan.config.get("rope_parameters") or {}
    if not plan.rope.finetuned:
        return {"finetuned": False}
    said = own.get("finetuned")
    return {"finetuned": said} if isinstance(said, bool) else {}


def _keep_where_equal(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, unless it says the same already: 10000 stays 10000 and does not become 10000.0."""
    if config.get(key) != value:
        config[key] = value


def extended_config(plan: ConversionPlan) -> dict[str, Any]:
    """The document, in the order of the original's keys. Raises nothing: the plan was checked before."""
    config, main = dict(plan.checkpoint.config), as_transformers(plan.rope.main)
    spelled = spell(plan.rope.main)
    theta = spelled.pop("rope_theta")
    if main.rotary_dim != plan.rope.head_dim:
        spelled["partial_rotary_factor"] = config["partial_rotary_factor"] = (
            main.rotary_dim / plan.rope.head_dim
        )
    if isinstance(main, Unscaled):
        config["rope_scaling"] = None
    else:
        spelled |= _finetuned(plan)
        config["rope_scaling"] = {"type": spelled["rope_type"], **spelled}
    config["rope_parameters"] = {**spelled, "rope_theta": theta}
    _keep_where_equal(config, "rope_theta", theta)
    for key in ("max_position_embeddings", *(name for name in LENGTH_SYNONYMS if name in config)):
        config[key] = position_limit(plan.rope)
    # beats the one inside; and of longrope transformers 4 reads no other
    if "original_max_position_embeddings" in config or isinstance(main, LongRope):
        config["original_max_position_embeddings"] = plan.rope.original_context
    if "head_dim" in config and config["head_dim"] is None:
        config["head_dim"] = plan.rope.head_dim  # transformers' YaRN stumbles over null
    config.pop("auto_map", None)
    return config


def extended_tokenizer_config(document: dict[str, Any], rope: RopePlan) -> dict[str, Any]:
    """tokenizer_config.json with the new maximum length; nothing else of it changes."""
    return {**document, "model_max_length": rope.target_context}
