"""The RoPE half of a plan: all that editing an existing artefact needs, from a config.json or from what an
artefact carries.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yarnconv import __version__
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.model.config_values import whole_number
from yarnconv.model.describe import describe, with_defaults
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import Family, find_family, text_part
from yarnconv.rope.config_numbers import head_dim
from yarnconv.rope.profiles import Profile, recognise
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import ResolvedRope, on_top_of, resolve
from yarnconv.rope.scaling import MAXIMUM_CONTEXT, MAXIMUM_ROTARY_DIM, Scaling, Unscaled, Yarn, method_name
from yarnconv.rope.spelling import MAXIMUM_LAYERS, ConfigRope, read_rope
from yarnconv.rope.tables import RopeTables, buckets, correction_range, count_regimes
from yarnconv.rope.writing import write_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeGroup:
    """Layers that share a scaling. `scaling` None: these layers have no RoPE, and no buckets. layer_type: by
    which RoPE is spelled, None where it is spelled for all at once.
    """

    layers: tuple[int, ...]
    scaling: Scaling | None
    buckets: tuple[RopeTables, ...]
    layer_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RopePlan:
    """The context extension. `main` is the scaling of the layers that are extended."""

    groups: tuple[RopeGroup, ...]
    main: Scaling
    head_dim: int
    original_context: int
    target_context: int
    finetuned: bool
    profile: Profile | None
    warnings: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """What an artefact's name says of the extension, such as -yarn-x16; nothing where there is none."""
        factor = self.main_group.buckets[-1].factor
        return "" if factor == 1.0 else f"-{method_name(self.main)}-x{factor:g}"

    @property
    def main_group(self) -> RopeGroup:
        """The group that carries `main`."""
        return next(group for group in self.groups if group.scaling == self.main)


def layer_ranges(layers: Iterable[int]) -> str:
    """Their numbers for people, such as 0-2, 4. layers: in ascending order."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _group(layers: tuple[int, ...], scaling: Scaling | None, layer_type: str | None = None) -> RopeGroup:
    tables = () if scaling is None else buckets(scaling)
    return RopeGroup(layers=layers, scaling=scaling, buckets=tables, layer_type=layer_type)


def _layer_groups(
    groups: Mapping[str | None, Scaling | None], description: ModelDescription
) -> tuple[RopeGroup, ...]:
    """The layers of each scaling, and last those that have no RoPE. groups: as `resolve` has them."""
    by_type: dict[str | None, list[int]] = {layer_type: [] for layer_type in groups}
    still: list[int] = []
    for index, layer in enumerate(description.layers):
        layer_type = None if None in by_type else layer.attention.layer_type
        if layer_type not in by_type:
            raise BadInput(
                f"layer {index} is of type {layer_type!r}, for which there are no RoPE parameters",
                where="config.json: rope_parameters",
            )
        (by_type[layer_type] if layer.attention.rotates else still).append(index)
    made = [_group(tuple(layers), groups[kind], kind) for kind, layers in by_type.items() if layers]
    return (*made, *([_group(tuple(still), None)] if still else []))


def _reach_warnings(description: ModelDescription, original_context: int) -> tuple[str, ...]:
    """That an extension is of no use where no layer that rotates looks further back than before."""
    attentions = [layer.attention for layer in description.layers if layer.attention.rotates]
    widest = max((a.window or MAXIMUM_CONTEXT for a in attentions), default=MAXIMUM_CONTEXT)
    if widest >= original_context:
        return ()
    return (
        f"Every layer that has RoPE looks back over {widest} positions only, within the original context of "
        f"{original_context}: scaling it extends nothing.",
    )


def _part_warnings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """That a model's other parts are not in the plan."""
    if text_part(config) is config:
        return ()
    kind = config.get("model_type")
    return (f"Of this {kind} checkpoint the text model is taken, and not the parts that see or hear.",)


def _check_rotation(family: Family, rope: ConfigRope, description: ModelDescription) -> None:
    """Refuse what no model of the family does with it, and transformers stumbles over."""
    head_dim = description.layers[0].attention.turning_dim
    for scaling in rope.groups.values():
        if scaling is not None and scaling.rotary_dim != head_dim and not family.structure.partial_rotary:
            raise Inexpressible(
                f"transformers' {family.model_type} rotates whole heads of {head_dim}, not "
                f"{scaling.rotary_dim} dimensions of them",
                where="config.json: partial_rotary_factor",
                fix="Remove the key if the model does without it.",
            )


def resolve_config(
    filled: Mapping[str, Any], rope: ConfigRope, request: RopeRequest, maximum: int
) -> ResolvedRope:
    """What the request makes of a config's RoPE, its profile counted in unless that is refused.

    filled: with its family's defaults. maximum: its max_position_embeddings.
    """
    profile = recognise(filled, rope) if request.use_profile else None
    return resolve(rope, request, profile, maximum)


def _planned(
    resolved: ResolvedRope, groups: tuple[RopeGroup, ...], head_dim: int, warnings: tuple[str, ...]
) -> RopePlan:
    return RopePlan(
        groups=groups,
        main=resolved.main,
        head_dim=head_dim,
        original_context=resolved.original_context,
        target_context=resolved.target_context,
        finetuned=resolved.finetuned,
        profile=resolved.profile,
        warnings=warnings,
    )


def plan_rope(config: Mapping[str, Any], request: RopeRequest) -> tuple[RopePlan, ModelDescription, Family]:
    """The RoPE half of the plan, from a config.json alone."""
    family = find_family(config)
    filled = with_defaults(family, config)
    description = describe(family, filled)
    rope = read_rope(filled)
    _check_rotation(family, rope, description)
    resolved = resolve_config(filled, rope, request, description.max_position_embeddings)
    notes = _part_warnings(config)
    if not isinstance(resolved.main, Unscaled):
        notes += _reach_warnings(description, resolved.original_context)
    groups = _layer_groups(resolved.groups, description)
    head = description.layers[0].attention.projected_head_dim
    return _planned(resolved, groups, head, (*resolved.warnings, *notes)), description, family


def plan_of_any(config: Mapping[str, Any], request: RopeRequest) -> tuple[RopePlan, ModelDescription | None]:
    """The RoPE half of the plan of any config.json, and what is known of its model: nothing where there is no
    data file of its family, or that file does not describe it. Its layers are then told apart by
    `layer_types` alone, and the plan's first warning says why.
    """
    try:
        plan, description, _ = plan_rope(config, request)
    except Inexpressible as refusal:
        return _plan_unknown(config, request, refusal), None
    return plan, description


def filled_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With what the family's class assumes, where the family is known; of a text model among other parts that
    one's. Raises BadInput where the config does not say what it is of, or cannot be read.
    """
    try:
        return with_defaults(find_family(config), config)
    except Inexpressible:
        return text_part(config)


def _unknown_head_dim(config: Mapping[str, Any]) -> int:
    """Of latent attention (DeepSeek's) the dimensions of a query/key head that rotate and that do not."""
    if config.get("qk_rope_head_dim") is None or config.get("qk_nope_head_dim") is None:
        return head_dim(config)
    return sum(
        whole_number(config, key, MAXIMUM_ROTARY_DIM) for key in ("qk_rope_head_dim", "qk_nope_head_dim")
    )


def _unknown_groups(
    config: Mapping[str, Any], scalings: Mapping[str | None, Scaling | None]
) -> tuple[RopeGroup, ...]:
    """By `layer_types`, which `read_rope` has checked."""
    count = whole_number(config, "num_hidden_layers", MAXIMUM_LAYERS)
    types: list[str | None] = list(config.get("layer_types") or [None] * count)
    if len(types) != count:
        what = f"layer_types names {len(types)} layers, and num_hidden_layers is {count}"
        raise BadInput(what, where="config.json: layer_types")
    return tuple(
        _group(tuple(i for i, name in enumerate(types) if kind in {None, name}), scaling, kind)
        for kind, scaling in scalings.items()
    )


def _plan_unknown(config: Mapping[str, Any], request: RopeRequest, refusal: Inexpressible) -> RopePlan:
    filled = filled_config(config)
    try:
        rope = read_rope(filled)
        maximum = whole_number(filled, "max_position_embeddings", MAXIMUM_CONTEXT)
        resolved = resolve_config(filled, rope, request, maximum)
        groups = _unknown_groups(filled, resolved.groups)
        size = _unknown_head_dim(filled)
    except BadInput as error:
        if error.where is None or not error.where.startswith("config.json"):
            raise
        fix = "What config.json leaves out is known of families with a data file only: write it there."
        if isinstance(config.get("text_config"), Mapping):
            fix = "It has a text_config, which is the language model's: give that one as a config.json."
        raise BadInput(f"{refusal.what}, and {error.what}", where=error.where, fix=error.fix or fix) from None
    return _planned(
        resolved, groups, size, (f"Not converted: {refusal.what}. {refusal.fix}", *resolved.warnings)
    )


def plan_artefact(
    own: ConfigRope,
    request: RopeRequest,
    profile: Profile | None,
    *,
    maximum: int,
    layers: int,
    head_dim: int,
) -> RopePlan:
    """The plan of an existing artefact's extension, whose layers share one RoPE.

    own: what it carries. profile: what is known of the model beyond that, if anything. maximum: the context
    of an artefact that carries no scaling. A factor counts on top of the artefact's own (`on_top_of`).
    """
    carried = own.groups[None]
    assert carried is not None, "an artefact whose layers have no RoPE has no plan"
    request, notes = on_top_of(carried, request)
    resolved = resolve(own, request, profile, maximum)
    groups = (_group(tuple(range(layers)), resolved.main),)
    return _planned(resolved, groups, head_dim, (*notes, *resolved.warnings))


def _bucket_facts(tables: RopeTables) -> dict[str, Any]:
    return {
        "factor": tables.factor,
        "attention_factor": tables.attention_factor,
        "softmax_scale_multiplier": tables.softmax_multiplier,
        "inv_freq": tables.inv_freq.tolist(),
    }


def rope_facts(plan: RopePlan, *, with_tables: bool = True) -> dict[str, Any]:
    """The facts that `plan --json` and `inspect --json` share; they are those of the scaled group."""
    scaling, longest = plan.main, plan.main_group.buckets[-1]
    yarn = scaling if isinstance(scaling, Yarn) else None
    low, high = correction_range(yarn) if yarn else (None, None)
    facts: dict[str, Any] = {
        "method": method_name(scaling),
        "factor": longest.factor,
        "original_context": plan.original_context,
        "target_context": plan.target_context,
        "rope_theta": scaling.theta,
        "rotary_dim": scaling.rotary_dim,
        "head_dim": plan.head_dim,
        "beta_fast": yarn.beta_fast if yarn else None,
        "beta_slow": yarn.beta_slow if yarn else None,
        "truncate": yarn.truncate if yarn else None,
        "attention_factor": longest.attention_factor,
        "softmax_scale_multiplier": longest.softmax_multiplier,
        "low": low,
        "high": high,
        "regimes": count_regimes(scaling),
        "finetuned": plan.finetuned,
        "profile": plan.profile.name if plan.profile else None,
        "warnings": list(plan.warnings),
    }
    if with_tables:
        facts["inv_freq"] = longest.inv_freq.tolist()
        facts["groups"] = [
            {
                "layers": list(group.layers),
                "layer_type": group.layer_type,
                "method": method_name(group.scaling) if group.scaling else None,
                "rope_theta": group.scaling.theta if group.scaling else None,
                "factor": group.buckets[-1].factor if group.buckets else None,
                "buckets": [_bucket_facts(tables) for tables in group.buckets],
            }
            for group in plan.groups
        ]
    return facts


def provenance(request: RopeRequest, rope: RopePlan) -> dict[str, Any]:
    """What an artefact records of how it was made. It is never evidence for the artefact."""
    return {
        "yarnconv_version": __version__,
        "rope_options": request.given,
        "rope_parameters": write_rope(rope.main),
        **rope_facts(rope, with_tables=False),
    }
