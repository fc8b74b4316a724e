"""The fewest experts that show how a mixture is computed.

A small copy of an artefact keeps as many as a token takes, so that none is chosen and none left out: rounding
then cannot tip the balance between two experts, which would look like an error of the artefact's. Where only
some groups are chosen, every group keeps the fewest that still fill the choice.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import Rows
from yarnconv.checkpoint.sources import TensorSource, load, row_count, take
from yarnconv.model.description import ExpertsDescription
from yarnconv.model.tensors import expected_tensors
from yarnconv.plan import ConversionPlan


def rows_of(source: TensorSource, kept: NDArray[np.intp]) -> Rows:
    """What a tensor holds of these experts, in its own shape."""
    if len(source.shape) == 1:
        return load(source)[kept]
    size = row_count(source.shape[1:]) if len(source.shape) > 2 else 1
    rows = (kept[:, None] * size + np.arange(size)).reshape(-1)
    return take(source, rows).reshape(len(kept), *source.shape[1:])


def kept_experts(plan: ConversionPlan, used: int = 0) -> NDArray[np.intp] | None:
    """Which experts a small copy keeps, in order; None where it keeps all. used: how many an artefact takes,
    which may be more than the plan's.
    """
    mixture = plan.description.mixture
    if mixture is None:
        return None
    routing, count = mixture.routing, mixture.experts
    groups, chosen = (routing.groups, routing.chosen_groups) if routing.is_limited else (1, 1)
    own = -(-max(routing.chosen, used) // chosen)
    if groups > 1:
        own = max(own, routing.group_best)
    size = count // groups
    if own >= size or groups * own < 2:
        return None
    return np.concatenate([np.arange(own) + group * size for group in range(groups)]).astype(np.intp)


def with_experts(plan: ConversionPlan, kept: NDArray[np.intp] | None) -> ConversionPlan:
    """The plan of a model with these experts only. Its tensors' sources are the whole model's still."""
    experts = plan.family.structure.experts
    if kept is None or experts is None:
        return plan
    layers = tuple(
        replace(layer, mlp=replace(layer.mlp, experts=len(kept)))
        if isinstance(layer.mlp, ExpertsDescription)
        else layer
        for layer in plan.description.layers
    )
    description = replace(plan.description, layers=layers)
    shapes = {(one.role, one.layer): one for one in expected_tensors(plan.family, description)}
    bindings = tuple(
        replace(one, expected=shapes.get((one.expected.role, one.expected.layer), one.expected))
        for one in plan.bindings
    )
    config = {**plan.config, experts.count: len(kept)}
    return replace(plan, description=description, bindings=bindings, config=config)
