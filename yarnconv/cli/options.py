"""The rope options, the same on every command, declared once."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import typer

from yarnconv.rope.request import METHODS, RopeRequest

PANEL = "Rope options"
Method = StrEnum("Method", {name.replace("-", "_"): name for name in METHODS})  # type: ignore[misc]


def _option(name: str, kind: Any, text: str, *spellings: str, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(*spellings, help=text, rich_help_panel=PANEL)],
    )


ROPE_OPTIONS = (
    _option(
        "method",
        Method,
        "auto: yarn when a factor is given, else what the checkpoint says.",
        "--method",
        default=Method("auto"),
    ),
    _option(
        "factor",
        float | None,
        "Context extension ratio, target / original; of an artefact that is extended already, on top.",
        "--factor",
    ),
    _option("target_context", int | None, "Positions to reach, instead of --factor.", "--target-context"),
    _option("original_context", int | None, "Positions seen in pre-training.", "--original-context"),
    _option(
        "beta_fast",
        float | None,
        "YaRN: rotations above which nothing changes [32].",
        "--beta-fast",
    ),
    _option("beta_slow", float | None, "YaRN: rotations below which all is divided [1].", "--beta-slow"),
    _option(
        "attention_factor",
        float | None,
        "YaRN: constant on cos and sin [0.1 ln s + 1].",
        "--attention-factor",
    ),
    _option(
        "truncate",
        bool | None,
        "YaRN: round the correction range outwards.",
        "--truncate/--no-truncate",
    ),
    _option(
        "use_profile",
        bool,
        "Use what is known of a checkpoint beyond its config.json.",
        "--profile/--no-profile",
        default=True,
    ),
)


def takes_rope_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the rope options to a command, which receives them as one `request: RopeRequest`."""
    names = [option.name for option in ROPE_OPTIONS]

    @wraps(command)
    def collecting(**given: Any) -> None:
        rope = {name: given.pop(name) for name in names}
        command(**given, request=RopeRequest(**{**rope, "method": rope["method"].value}))

    signature = inspect.signature(command)
    own = [p for name, p in signature.parameters.items() if name != "request"]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + list(ROPE_OPTIONS)
    collecting.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    collecting.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    del collecting.__wrapped__  # or its signature would be read instead
    return collecting
