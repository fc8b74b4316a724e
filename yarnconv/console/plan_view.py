"""The plan and the result, for people and as JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yarnconv.checkpoint.hub import model_name
from yarnconv.console.messages import print_warnings, printable
from yarnconv.model.description import ExpertsDescription, ModelDescription
from yarnconv.model.family import families
from yarnconv.model.tensors import expected_tensors
from yarnconv.rope.scaling import Unscaled, Yarn, is_dynamic, method_name
from yarnconv.rope.tables import plain_inv_freq, regimes
from yarnconv.rope_plan import RopeGroup, RopePlan, layer_ranges, rope_facts
from yarnconv.sizes import readable_size
from yarnconv.targets.gguf.launch import key_shift_warning

# Colour and height both say the regime, so that the bars read without colour too.
_STYLES = {"extrapolated": "green", "blended": "yellow", "interpolated": "red"}
_HEIGHTS = "▁▂▃▄▅▆▇█"
# Quality came back in the paper after 0.1 % of the pre-training tokens: 400 steps of 64 sequences.
FINETUNE_SHARE = 0.001
PAPER_STEPS, PAPER_BATCH = 400, 64


def _tokens(count: float) -> str:
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f}"


def _bars(plan: RopePlan) -> Text:
    """One bar per pair of dimensions: how much of its original frequency it keeps, 1 down to 1/s."""
    longest = plan.main_group.buckets[-1]
    kept = longest.inv_freq / plain_inv_freq(plan.main.theta, plan.main.rotary_dim)
    lowest = 1.0 / longest.factor
    bars = Text()
    for share, regime in zip(kept, regimes(plan.main), strict=True):
        level = (float(share) - lowest) / (1.0 - lowest) if lowest < 1.0 else 1.0
        height = min(max(round(level * (len(_HEIGHTS) - 1)), 0), len(_HEIGHTS) - 1)
        bars.append(_HEIGHTS[height], style=_STYLES[regime])
    return bars


def _regime_legend(plan: RopePlan) -> Text:
    counts = rope_facts(plan, with_tables=False)["regimes"]
    legend = Text()
    for name, count in counts.items():
        legend.append(f"{count} {name}", style=_STYLES[name]).append("   ")
    return legend.append("(pairs)", style="dim")


def _temperature(plan: RopePlan) -> str:
    longest = plan.main_group.buckets[-1]
    factor = longest.attention_factor
    text = f"{factor:.6g} on cos and sin (attention logits x {factor**2:.6g})"
    if longest.softmax_multiplier != 1.0:
        text += f"; softmax scale x {longest.softmax_multiplier:.6g}"
    return text


def _group_method(group: RopeGroup) -> str:
    if group.scaling is None:
        return "no RoPE"
    plain = isinstance(group.scaling, Unscaled)
    method = "plain RoPE" if plain else f"{method_name(group.scaling)} x{group.buckets[-1].factor:g}"
    return f"{method}, theta {group.scaling.theta:g}"


def _layer_rows(plan: RopePlan, description: ModelDescription | None) -> Iterator[str]:
    """Each kind of layers with its method, its base and its window."""
    for group in plan.groups:
        method = _group_method(group)
        if description is None:
            named = "" if group.layer_type is None else f"{printable(group.layer_type)[:60]}, "
            yield f"{layer_ranges(group.layers)}: {named}{method}"
            continue
        for kind in description.kinds_of(group.layers):
            window = "" if kind.window is None else f", window {kind.window}"
            yield f"{layer_ranges(kind.layers)}: {method}{window}"


def _finetune_budget(plan: RopePlan, pretraining_tokens: float | None) -> str:
    paper = PAPER_STEPS * PAPER_BATCH * plan.target_context
    text = f"0.1 % of the pre-training tokens (the paper: {PAPER_STEPS} x {PAPER_BATCH} sequences, here "
    text += f"{_tokens(paper)} tokens)"
    if pretraining_tokens is not None:
        text = f"{_tokens(pretraining_tokens * FINETUNE_SHARE)} tokens: {text}"
    return text


def rope_table(plan: RopePlan, description: ModelDescription | None = None) -> Table:
    """The extension as a table of names and values, with the regimes as bars. description: of the model,
    where more is known of its layers than their RoPE.
    """
    scaling, longest = plan.main, plan.main_group.buckets[-1]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # a head of 256 dimensions has more bars than a line has room for
    table.add_row("method", f"{method_name(scaling)}, factor {longest.factor:g}")
    table.add_row("context", f"{plan.original_context} -> {plan.target_context} positions")
    if plan.profile:
        table.add_row("profile", f"{plan.profile.name}: {plan.profile.explanation} (--no-profile ignores it)")
    table.add_row(
        "rope",
        f"theta {scaling.theta:g}, {scaling.rotary_dim} of {plan.head_dim} dimensions rotate",
    )
    for number, row in enumerate(_layer_rows(plan, description)):
        table.add_row("" if number else "layers", row)
    if isinstance(scaling, Yarn):
        facts = rope_facts(plan, with_tables=False)
        edges = "" if scaling.truncate else ", not truncated"
        table.add_row(
            "ramp",
            f"beta_fast {scaling.beta_fast:g}, beta_slow {scaling.beta_slow:g}: pairs {facts['low']:.6g} "
            f"to {facts['high']:.6g}{edges}",
        )
    if not isinstance(scaling, Unscaled):
        table.add_row("temperature", _temperature(plan))
        if is_dynamic(scaling):
            steps = ", ".join(f"{bucket.factor:g}" for bucket in plan.main_group.buckets)
            table.add_row("buckets", f"factor {steps}, fixed per request")
        table.add_row("frequencies", _bars(plan))
        table.add_row("", _regime_legend(plan))
    return table


def _cache(plan: RopePlan, description: ModelDescription) -> str:
    per_token, target = description.key_value_bytes_per_token, plan.target_context
    text = f"{readable_size(per_token)} per token, {readable_size(per_token * target)} at {target} (16 bits)"
    seen = description.key_value_bytes_within_windows(target)
    if seen < per_token * target:
        text += f"; {readable_size(seen)} where no more is kept than the windows see"
    return text


def _experts(description: ModelDescription, mixture: ExpertsDescription) -> str:
    routing = mixture.routing
    text = f"{routing.chosen} of {mixture.experts} for each token"
    if routing.is_limited:
        text += f", out of {routing.chosen_groups} of {routing.groups} groups"
    if mixture.shared is not None:
        text += ", and shared ones"
    layers = [i for i, layer in enumerate(description.layers) if isinstance(layer.mlp, ExpertsDescription)]
    return text if len(layers) == len(description.layers) else f"{text}, in layers {layer_ranges(layers)}"


def _facts_table(
    plan: RopePlan, description: ModelDescription | None, pretraining_tokens: float | None
) -> Table:
    table = rope_table(plan, description)
    if description is not None:
        if description.mixture is not None:
            table.add_row("experts", _experts(description, description.mixture))
        table.add_row("KV cache", _cache(plan, description))
    if not isinstance(plan.main, Unscaled) and not plan.finetuned:
        table.add_row("fine-tune", _finetune_budget(plan, pretraining_tokens))
    return table


def runtime_warnings(plan: RopePlan) -> dict[str, list[str]]:
    """What to know of the plan in one runtime only, by its name."""
    found = key_shift_warning(plan)
    return {} if found is None else {"llama.cpp": [found]}


def print_runtime_warnings(console: Console, plan: RopePlan) -> None:
    """Each with its runtime's name before it."""
    for name, warnings in runtime_warnings(plan).items():
        print_warnings(console, (f"{name}: {warning}" for warning in warnings))


def print_rope_plan(plan: RopePlan, title: str) -> None:
    """The plan of an artefact, of which nothing but its RoPE is known."""
    console = Console(highlight=False, markup=False)
    console.print(Text(printable(title), style="bold"))
    console.print(rope_table(plan))
    print_warnings(console, plan.warnings)
    print_runtime_warnings(console, plan)


def print_plan(
    plan: RopePlan,
    description: ModelDescription | None,
    directory: Path,
    model_type: object,
    pretraining_tokens: float | None,
) -> None:
    """The plan as a table with the regimes as bars. description: None of a family without a data file.
    model_type: the config's.
    """
    console = Console(highlight=False, markup=False)
    count = (
        sum(len(group.layers) for group in plan.groups) if description is None else len(description.layers)
    )
    family = f"{model_type!s:.60}, no data file" if description is None else description.family
    title = printable(f"{model_name(directory)} ({family}, {count} layers)")
    console.print(Text(title, style="bold"))
    console.print(_facts_table(plan, description, pretraining_tokens))
    print_warnings(console, plan.warnings)
    print_runtime_warnings(console, plan)


def _attention_facts(group: RopeGroup, description: ModelDescription) -> list[dict[str, Any]]:
    return [
        {"layers": list(kind.layers), "layer_type": kind.layer_type, "window": kind.window}
        for kind in description.kinds_of(group.layers)
    ]


def plan_document(
    plan: RopePlan,
    description: ModelDescription | None,
    directory: Path,
    model_type: object,
    pretraining_tokens: float | None,
) -> dict[str, Any]:
    """`plan --json`. Of a family without a data file the memory and each group's attention are null, and
    there are no tensors.
    """
    facts = rope_facts(plan)
    for group, document in zip(plan.groups, facts["groups"], strict=True):
        document["attention"] = None if description is None else _attention_facts(group, description)
    tensors = [] if description is None else expected_tensors(families()[description.family], description)
    return {
        "model": str(directory),
        "family": description.family if description else model_type if isinstance(model_type, str) else None,
        **facts,
        "runtime_warnings": runtime_warnings(plan),
        "finetune_tokens": pretraining_tokens * FINETUNE_SHARE if pretraining_tokens else None,
        "kv_cache_bytes_per_token": description.key_value_bytes_per_token if description else None,
        "tensors": [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in tensors],
    }
