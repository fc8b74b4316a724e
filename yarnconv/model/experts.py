"""From a config.json to the description of a layer's mixture of experts, by the family's data file."""

from typing import Literal, cast

from yarnconv.errors import BadInput
from yarnconv.model.config_values import counted, number, switch, whole_number
from yarnconv.model.description import ClampedGate, ExpertsDescription, MlpDescription, Routing
from yarnconv.model.family import Experts, JsonObject

MAXIMUM_EXPERTS = 2**12


def has_experts(experts: Experts | None, config: JsonObject, layers: int) -> list[bool]:
    """Per layer whether its MLP is a mixture."""
    if experts is None:
        return [False] * layers
    first = counted(config, experts.dense_first)
    listed = config.get(experts.dense_layers) if experts.dense_layers is not None else None
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(isinstance(index, int) for index in listed):
        what = f"{experts.dense_layers} is no list of layers"
        raise BadInput(what, where=f"config.json: {experts.dense_layers}")
    step = 1 if experts.step is None else whole_number(config, experts.step)
    dense = set(listed)
    return [index >= first and index not in dense and (index + 1) % step == 0 for index in range(layers)]


def _groups(experts: Experts, config: JsonObject, count: int) -> tuple[int, int]:
    """(all, those that are chosen)."""
    limited = all(config.get(key) == value for key, value in (experts.limited_by or {}).items())
    if experts.groups is None or experts.chosen_groups is None or not limited:
        return 1, 1
    groups = whole_number(config, experts.groups, MAXIMUM_EXPERTS)
    chosen = whole_number(config, experts.chosen_groups, MAXIMUM_EXPERTS)
    if count % groups or chosen > groups or count // groups < experts.group_best:
        raise BadInput(
            f"{count} experts in {groups} groups, of which {chosen} are chosen",
            where=f"config.json: {experts.groups}, {experts.chosen_groups}",
        )
    return groups, chosen


def _routing(experts: Experts, config: JsonObject, count: int) -> Routing:
    chosen = whole_number(config, experts.chosen, MAXIMUM_EXPERTS)
    groups, chosen_groups = _groups(experts, config, count)
    if chosen > count // groups * chosen_groups:
        raise BadInput(
            f"{chosen} experts are chosen of {count // groups * chosen_groups}",
            where=f"config.json: {experts.chosen}",
        )
    return Routing(
        scores=cast(Literal["softmax", "sigmoid"], experts.scores),
        chosen=chosen,
        groups=groups,
        chosen_groups=chosen_groups,
        group_best=experts.group_best,
        correction=experts.correction,
        bias=experts.router_bias,
        normalised=switch(config, experts.normalised),
        scale=1.0 if experts.scale is None else number(config, experts.scale),
    )


def _shared(
    experts: Experts, config: JsonObject, intermediate_size: int, activation: str
) -> MlpDescription | None:
    count = counted(config, experts.shared_count)
    if experts.shared_count is not None and not count:
        raise BadInput(
            f"{experts.shared_count} is {config.get(experts.shared_count)!r}, and models of this family have "
            "an expert that all tokens take",
            where=f"config.json: {experts.shared_count}",
        )
    size = count * intermediate_size
    if experts.shared_size is not None:
        size = whole_number(config, experts.shared_size)
    if not size:
        return None
    return MlpDescription(intermediate_size=size, activation=activation, bias=False, fused=False)


def read_experts(experts: Experts, config: JsonObject, activation: str) -> ExpertsDescription:
    """The mixture of a layer that has one. activation: of the family's MLPs."""
    count = whole_number(config, experts.count, MAXIMUM_EXPERTS)
    intermediate_size = whole_number(config, experts.intermediate_size)
    clamp = None
    if experts.clamp is not None:
        alpha, limit = number(config, experts.clamp.alpha), number(config, experts.clamp.limit)
        clamp = ClampedGate(alpha=alpha, limit=limit)
    return ExpertsDescription(
        experts=count,
        intermediate_size=intermediate_size,
        activation=activation,
        bias=experts.bias,
        interleaved=experts.interleaved,
        clamp=clamp,
        routing=_routing(experts, config, count),
        shared=_shared(experts, config, intermediate_size, activation),
        shared_gate=experts.shared_gate,
    )
