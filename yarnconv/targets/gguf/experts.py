"""A mixture of experts in llama.cpp's terms: what of it an architecture would not compute, and the keys that
say it.
"""

from collections.abc import Iterator

from yarnconv.errors import Inexpressible
from yarnconv.model.description import (
    ClampedGate,
    ExpertsDescription,
    MlpDescription,
    ModelDescription,
    Routing,
)
from yarnconv.targets.gguf.runtime import RuntimeArchitecture, RuntimeExperts

MOST_EXPERTS = 1024  # llama.cpp's LLAMA_MAX_EXPERTS
GROUP_BEST = 2  # by the sum of how many scores it chooses groups
CLAMP = ClampedGate(alpha=1.702, limit=7.0)  # the only one that it computes
GATING = {"softmax": 1, "sigmoid": 2}  # its `llama_expert_gating_func_type`


def leading_dense(model: ModelDescription) -> int:
    """How many layers before the first with experts have none."""
    mixed = [isinstance(layer.mlp, ExpertsDescription) for layer in model.layers]
    return mixed.index(True) if any(mixed) else len(mixed)


def _layers(model: ModelDescription, runtime: RuntimeArchitecture, whose: str) -> Iterator[Inexpressible]:
    mixed = [isinstance(layer.mlp, ExpertsDescription) for layer in model.layers]
    if any(mixed) and runtime.experts is None:
        yield Inexpressible(f"{whose} has no experts", where="the experts")
    if runtime.experts is None:
        return
    if not any(mixed):
        if not runtime.experts.optional:
            yield Inexpressible(f"{whose} wants experts, and no layer has any", where="the experts")
        return
    first = leading_dense(model)
    if not all(mixed[first:]):
        index = mixed.index(False, first)
        what = f"{whose} has experts in every layer behind the first that does, and layer {index} has none"
        yield Inexpressible(what, where=f"layer {index}")
    if first and not runtime.experts.leading_dense:
        yield Inexpressible(f"{whose} has experts in every layer, and layer 0 has none", where="layer 0")


def _routing(routing: Routing, count: int, runtime: RuntimeExperts, whose: str) -> Iterator[Inexpressible]:
    if runtime.scores is not None and routing.scores != runtime.scores:
        yield Inexpressible(f"{whose} takes {runtime.scores} scores only", where="the router")
    if runtime.normalised is not None and routing.normalised != runtime.normalised:
        does = "always" if runtime.normalised else "never"
        yield Inexpressible(
            f"{whose} {does} divides the scores of the chosen experts by their sum",
            where="config.json: norm_topk_prob",
        )
    if routing.scale != 1.0 and not runtime.scaled:
        what = f"{whose} does not scale what the experts give"
        yield Inexpressible(what, where="config.json: routed_scaling_factor")
    if routing.correction and runtime.correction == "never":
        yield Inexpressible(f"{whose} has no correction of scores", where="e_score_correction_bias")
    if not routing.correction and runtime.correction == "always":
        yield Inexpressible(f"{whose} wants a correction of scores", where="e_score_correction_bias")
    if routing.is_limited and routing.group_best != GROUP_BEST:
        yield Inexpressible(
            f"{whose} chooses groups by the sum of their {GROUP_BEST} best scores, this model by the best",
            where="config.json: topk_method, n_group",
        )
    if routing.is_limited and routing.groups >= count:
        yield Inexpressible(
            f"{whose} wants more experts than groups, not {count} in {routing.groups}",
            where="config.json: n_group",
        )


def _mixture(
    mlp: ExpertsDescription, runtime: RuntimeExperts, dense: MlpDescription | None, whose: str
) -> Iterator[Inexpressible]:
    if not 1 < mlp.experts <= MOST_EXPERTS:
        yield Inexpressible(
            f"llama.cpp takes 2 to {MOST_EXPERTS} experts, not {mlp.experts}",
            where="config.json: the number of experts",
        )
    yield from _routing(mlp.routing, mlp.experts, runtime, whose)
    clamped = (mlp.bias, mlp.routing.bias, mlp.clamp == CLAMP)
    if any((mlp.bias, mlp.routing.bias, mlp.clamp is not None)) and not runtime.clamped:
        yield Inexpressible(f"{whose} has no biases in experts, and no clamped gates", where="the experts")
    if runtime.clamped and not all(clamped):
        yield Inexpressible(
            f"{whose} has biases, and gates with alpha {CLAMP.alpha:g} clamped at {CLAMP.limit:g}",
            where="config.json: swiglu_alpha, swiglu_limit",
        )
    kind = None if mlp.shared is None else "gated" if mlp.shared_gate else "counted"
    if kind != runtime.shared:
        kinds = {
            None: "no shared expert",
            "gated": "a shared expert with a gate of its own",
            "counted": "shared experts without a gate",
        }
        yield Inexpressible(f"{whose} has {kinds[runtime.shared]}, not {kinds[kind]}", where="shared experts")
    if not runtime.own_size and dense is not None and dense.intermediate_size != mlp.intermediate_size:
        yield Inexpressible(f"{whose} has one size of MLPs", where="config.json: intermediate_size")


def experts_refusals(model: ModelDescription, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    """What of the model's mixtures an architecture would not compute."""
    whose = f"llama.cpp's {runtime.name} architecture"
    yield from _layers(model, runtime, whose)
    mlp = model.mixture
    if mlp is not None and runtime.experts is not None:
        yield from _mixture(mlp, runtime.experts, model.dense, whose)
