"""The model card: what the directory holds, how to run it, and how to check it."""

from collections.abc import Mapping, Sequence
from typing import Any

from yarnconv import __version__
from yarnconv.model.description import ModelDescription
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.plan_card import check_options, plan_values
from yarnconv.targets.templates import render
from yarnconv.targets.tensorrt.builder import EXTRAS
from yarnconv.targets.tensorrt.triton import hindrances

NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
DECLARED = "It is declared by the input `rope_context`, which has no default in an engine."


def _ends(numbers: Sequence[int]) -> str:
    """Least, usual and most, once where they are the same."""
    return ", ".join(map(str, numbers)) if len(set(numbers)) > 1 else str(numbers[0])


def _reach(profiles: Sequence[Mapping[str, Any]]) -> int:
    """Tokens that can be run if they come one at a time, as generate.py has them."""
    reached = 0
    while further := [
        profile["past_tokens"][2] + 1
        for profile in profiles
        if profile["new_tokens"][0] <= 1 and profile["past_tokens"][0] <= reached <= profile["past_tokens"][2]
    ]:
        reached = max(further)
    return reached


def model_card(rope: RopePlan, model: ModelDescription, sidecar: Mapping[str, Any], *, name: str) -> str:
    """The card in Markdown.

    sidecar: what yarnconv.json will say; the rope options are those of its plan. name: the model's.
    """
    graph, runtime, profiles = sidecar["graph"], sidecar["runtime"], sidecar["profiles"]
    max_context = graph["max_context"]
    values: dict[str, Any] = {
        **plan_values(rope, max_context, DECLARED),
        "version": __version__,
        "name": name,
        "family": model.family,
        "graph": graph,
        "runtime_name": NAMES[runtime["name"]],
        "runtime_version": runtime["version"],
        "package": runtime["name"],
        "extra": EXTRAS[runtime["name"]],
        "engine_file": sidecar["engine"]["file"],
        "capabilities": " and ".join(sidecar["compute_capabilities"]),
        "profiles": [
            {
                "name": profile["name"],
                **{key: _ends(profile[key]) for key in ("batch", "new_tokens", "past_tokens")},
            }
            for profile in profiles
        ],
        "longest": _reach(profiles),
        "hindrances": hindrances(sidecar),
        "rope_options": check_options(sidecar["plan"]["rope_options"], max_context, rope.target_context),
    }
    return render("tensorrt/README.md", values)
