"""The model card: what the directory holds, how to run it, and how to check it."""

from typing import Any

from yarnconv import __version__
from yarnconv.checkpoint.hub import model_name
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.genai import default_length
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.plan_card import command_line, plan_values
from yarnconv.targets.templates import render

BY_BUFFER = "It is declared by the length of the KV buffer that the client allocates."
BY_INPUT = "It is declared by the input `rope_context`, without which the largest factor holds."


def check_options(plan: ConversionPlan, options: GraphOptions) -> str:
    """What `check` is to expect: the same request, and tables as long as these."""
    words = [command_line(plan.request.given)]
    if options.max_context != plan.rope.target_context:
        words.append(f"--max-context {options.max_context}")
    return " ".join(filter(None, words))


def model_card(plan: ConversionPlan, options: GraphOptions) -> str:
    """The card in Markdown."""
    model, in_place = plan.description, options.kv == "in-place"
    values: dict[str, Any] = {
        **plan_values(plan.rope, options.max_context, BY_BUFFER if in_place else BY_INPUT),
        "version": __version__,
        "name": model_name(plan.checkpoint.directory),
        "family": model.family,
        "layers": len(model.layers),
        "attention": model.layers[0].attention,
        "vocab_size": model.vocab_size,
        "dtype": options.dtype,
        "cache_type": options.element.name.lower(),
        "padding": options.dialect == "standard",
        "in_place": in_place,
        "last_token_only": options.last_token_only,
        "default_length": default_length(plan, options),
        "rope_options": check_options(plan, options),
    }
    return render("onnx/README.md", values)
