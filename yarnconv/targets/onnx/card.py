"""The model card: what the directory holds, how to run it, and how to check it."""

from typing import Any

from yarnconv import __version__
from yarnconv.checkpoint.hub import model_name
from yarnconv.plan import ConversionPlan, rope_facts
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import Unscaled, Yarn
from yarnconv.targets.onnx.genai import default_length
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.templates import render


def _command_line(request: RopeRequest) -> str:
    """The rope options that make the same request again; numbers, and names out of a fixed list."""
    words = []
    for name, value in request.given.items():
        if isinstance(value, bool):
            option = name.removeprefix("use_")
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def _check_options(plan: ConversionPlan, options: GraphOptions) -> str:
    """What `check` is to expect: the same request, and tables as long as these."""
    words = [_command_line(plan.request)]
    if options.max_context != plan.rope.target_context:
        words.append(f"--max-context {options.max_context}")
    return " ".join(filter(None, words))


def model_card(plan: ConversionPlan, options: GraphOptions) -> str:
    """The card in Markdown."""
    rope, model = plan.rope, plan.description
    layout = lay_out_tables(rope.main_group, rope.original_context, options.max_context)
    buckets = [
        {"factor": tables.factor, "reach": reach, "attention_factor": tables.attention_factor}
        for tables, reach in zip(layout.buckets, layout.positions, strict=True)
    ]
    values: dict[str, Any] = {
        "version": __version__,
        "name": model_name(plan.checkpoint.directory),
        "family": model.family,
        "layers": len(model.layers),
        "attention": model.layers[0].attention,
        "vocab_size": model.vocab_size,
        "dtype": options.dtype,
        "cache_type": options.element.name.lower(),
        "padding": options.dialect == "standard",
        "in_place": options.kv == "in-place",
        "max_context": options.max_context,
        "last_token_only": options.last_token_only,
        "facts": rope_facts(rope, with_tables=False),
        "extended": not isinstance(rope.main, Unscaled),
        "is_yarn": isinstance(rope.main, Yarn),
        "buckets": buckets,
        "default_length": default_length(plan, options),
        "rope_options": _check_options(plan, options),
        "warnings": rope.warnings,
    }
    return render("onnx/README.md", values)
