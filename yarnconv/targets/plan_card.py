"""What every model card says of the plan: values of the template `shared/plan.md`, and the options that make
the same plan again.
"""

from collections.abc import Mapping
from typing import Any

from yarnconv.rope.scaling import Unscaled, Yarn
from yarnconv.rope_plan import RopePlan, rope_facts
from yarnconv.targets.onnx.rope import lay_out_tables


def command_line(given: Mapping[str, Any]) -> str:
    """The rope options that make the same request again; numbers, and names out of a fixed list.

    given: what a request was given, by the names of its fields.
    """
    words = []
    for name, value in given.items():
        if isinstance(value, bool):
            option = name.removeprefix("use_")
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def check_options(given: Mapping[str, Any], max_context: int, target_context: int) -> str:
    """The options that have `check` expect an artefact: the same request, and tables as long as these."""
    words = [command_line(given)]
    if max_context != target_context:
        words.append(f"--max-context {max_context}")
    return " ".join(filter(None, words))


def plan_values(
    rope: RopePlan,
    max_context: int,
    how_declared: str,
    *,
    table_type: str = "float32",
    guarded: bool = True,
) -> dict[str, Any]:
    """What the template needs. how_declared: how a client says which context it wants, one sentence.
    table_type: of cos and sin. guarded: whether a position without a row gives NaN.
    """
    layout = lay_out_tables(rope.main_group, rope.original_context, max_context)
    return {
        "max_context": max_context,
        "how_declared": how_declared,
        "table_type": table_type,
        "guarded": guarded,
        "facts": rope_facts(rope, with_tables=False),
        "extended": not isinstance(rope.main, Unscaled),
        "is_yarn": isinstance(rope.main, Yarn),
        "buckets": [
            {"factor": tables.factor, "reach": reach, "attention_factor": tables.attention_factor}
            for tables, reach in zip(layout.buckets, layout.positions, strict=True)
        ],
        "warnings": rope.warnings,
    }
