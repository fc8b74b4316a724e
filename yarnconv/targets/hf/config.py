"""config.json of an extended checkpoint: the original's, with the plan in both spellings.

`rope_scaling` is what transformers 4, vLLM and SGLang read, and transformers 5 reads it before
`rope_parameters`, so that both must say everything. Where layers of each type have a RoPE of their own,
`rope_parameters` holds one for each type, and `rope_scaling` is that of the layers that see everything, which
transformers 5 lays over theirs; the bases stand at the top level as well.
"""

from typing import Any

from yarnconv.plan import ConversionPlan
from yarnconv.rope.resolve import EXTENDED_LAYER_TYPE
from yarnconv.rope.scaling import DynamicNtk, Linear, LongRope, Scaling, Unscaled
from yarnconv.rope.spelling import read_rope
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
    if not plan.rope.finetuned:
        return {"finetuned": False}
    said = read_rope(plan.config).finetuned
    return {} if said is None else {"finetuned": said}


def _partial(scaling: Scaling, plan: ConversionPlan) -> dict[str, float]:
    share = scaling.rotary_dim / plan.description.layers[0].attention.turning_dim
    return {} if share == 1.0 else {"partial_rotary_factor": share}


def _query_growth(plan: ConversionPlan) -> dict[str, Any]:
    """The growth of queries, in families that write it among the RoPE parameters. Their class always reads
    it, and takes the original context there for the one that they grow by.
    """
    key = plan.family.structure.query_growth
    if key is None:
        return {}
    growth = plan.description.layers[0].attention.query_growth
    beta, context = (growth.beta, growth.context) if growth else (0.0, plan.rope.original_context)
    return {"original_max_position_embeddings": context, key: beta}


def _main_parameters(plan: ConversionPlan) -> dict[str, Any]:
    """`rope_parameters` of the layers that are extended."""
    main = as_transformers(plan.rope.main)
    said = {} if isinstance(main, Unscaled) else _finetuned(plan)
    return {**spell(plan.rope.main), **_partial(main, plan), **said, **_query_growth(plan)}


def scaling_by_type(plan: ConversionPlan) -> dict[str, Scaling]:
    """By layer type its scaling, as transformers computes it, in families where types have one each."""
    scalings = ((group.layer_type, group.scaling) for group in plan.rope.groups)
    return {kind: as_transformers(s) for kind, s in scalings if kind is not None and s is not None}


def older_spelling_says(plan: ConversionPlan) -> bool:
    """Whether the spelling before transformers 5 can say the plan: where layer types have a RoPE each, it has
    a scaling for those that see everything only, and a base for the others where there is a key of it.
    """
    thetas = plan.family.structure.theta_by_layer_type
    if thetas is None:
        return True
    by_type = scaling_by_type(plan)
    base = by_type[EXTENDED_LAYER_TYPE].theta
    return all(
        isinstance(scaling, Unscaled) and (thetas[kind].key is not None or scaling.theta == base)
        for kind, scaling in by_type.items()
        if kind != EXTENDED_LAYER_TYPE
    )


def _parameters_by_type(plan: ConversionPlan) -> dict[str, Any]:
    """`rope_parameters` with one object for each layer type; `truncate` stands beside them, which is where
    transformers reads it.
    """
    spelled: dict[str, Any] = {}
    beside = {}
    for kind, scaling in scaling_by_type(plan).items():
        extended = kind == EXTENDED_LAYER_TYPE
        own = _main_parameters(plan) if extended else {**spell(scaling), **_partial(scaling, plan)}
        if "truncate" in own:
            beside["truncate"] = own.pop("truncate")
        spelled[kind] = own
    return {**spelled, **beside}


def _keep_where_equal(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, unless it says the same already: 10000 stays 10000 and does not become 10000.0."""
    if config.get(key) != value:
        config[key] = value


def _set_bases(config: dict[str, Any], plan: ConversionPlan, theta: float) -> None:
    """`rope_theta`, and the keys of other layers' bases. theta: of the layers that are extended."""
    thetas, by_type = plan.family.structure.theta_by_layer_type or {}, scaling_by_type(plan)
    for kind, base in thetas.items():
        if base.key is not None and kind in by_type:
            _keep_where_equal(config, base.key, by_type[kind].theta)
    _keep_where_equal(config, "rope_theta", theta)


def _set_rope(config: dict[str, Any], plan: ConversionPlan) -> None:
    """Both spellings."""
    structure, main = plan.family.structure, as_transformers(plan.rope.main)
    spelled = _main_parameters(plan)
    flat = structure.theta_by_layer_type is None
    config["rope_parameters"] = spelled if flat else _parameters_by_type(plan)
    older = {key: value for key, value in spelled.items() if key != "rope_theta"}
    if not older_spelling_says(plan) or (isinstance(main, Unscaled) and structure.query_growth is None):
        config["rope_scaling"] = None
    else:
        config["rope_scaling"] = {"type": older["rope_type"], **older}
    if older_spelling_says(plan):
        _set_bases(config, plan, main.theta)
    config |= _partial(main, plan)


def extended_config(plan: ConversionPlan) -> dict[str, Any]:
    """The document, in the order of the original's keys. Raises nothing: the plan was checked before."""
    config, main = dict(plan.checkpoint.config), as_transformers(plan.rope.main)
    _set_rope(config, plan)
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
