"""The plan and the result, for people and as JSON."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yarnconv.checkpoint.hub import model_name
from yarnconv.console.messages import print_warnings, printable
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import families
from yarnconv.model.tensors import expected_tensors
from yarnconv.rope.scaling import Unscaled, Yarn, is_dynamic, method_name
from yarnconv.rope.tables import plain_inv_freq, regimes
from yarnconv.rope_plan import RopePlan, rope_facts
from yarnconv.targets.gguf.launch import key_shift_warning

# Colour and height both say the regime, so that the bars read without colour too.
_STYLES = {"extrapolated": "green", "blended": "yellow", "interpolated": "red"}
_HEIGHTS = "▁▂▃▄▅▆▇█"
# Quality came back in the paper after 0.1 % of the pre-training tokens: 400 steps of 64 sequences.
FINETUNE_SHARE = 0.001
PAPER_STEPS, PAPER_BATCH = 400, 64


def gigabytes(size: float) -> str:
    """A size in bytes, for people."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"


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


def _layer_groups(plan: RopePlan) -> str:
    parts = []
    for group in plan.groups:
        name = method_name(group.scaling) if group.scaling else "no RoPE"
        parts.append(f"{len(group.layers)} layers {name}")
    return ", ".join(parts)


def _finetune_budget(plan: RopePlan, pretraining_tokens: float | None) -> str:
    paper = PAPER_STEPS * PAPER_BATCH * plan.target_context
    text = f"0.1 % of the pre-training tokens (the paper: {PAPER_STEPS} x {PAPER_BATCH} sequences, here "
    text += f"{_tokens(paper)} tokens)"
    if pretraining_tokens is not None:
        text = f"{_tokens(pretraining_tokens * FINETUNE_SHARE)} tokens: {text}"
    return text


def rope_table(plan: RopePlan) -> Table:
    """The extension as a table of names and values, with the regimes as bars."""
    scaling, longest = plan.main, plan.main_group.buckets[-1]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("method", f"{method_name(scaling)}, factor {longest.factor:g}")
    table.add_row("context", f"{plan.original_context} -> {plan.target_context} positions")
    if plan.profile:
        table.add_row("profile", f"{plan.profile.name}: {plan.profile.explanation} (--no-profile ignores it)")
    table.add_row(
        "rope",
        f"theta {scaling.theta:g}, {scaling.rotary_dim} of {plan.head_dim} dimensions rotate",
    )
    table.add_row("layers", _layer_groups(plan))
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


def _facts_table(plan: RopePlan, description: ModelDescription, pretraining_tokens: float | None) -> Table:
    table, per_token = rope_table(plan), description.key_value_bytes_per_token
    table.add_row(
        "KV cache",
        f"{gigabytes(per_token)} per token, {gigabytes(per_token * plan.target_context)} at "
        f"{plan.target_context} (16 bits)",
    )
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
    description: ModelDescription,
    directory: Path,
    pretraining_tokens: float | None,
) -> None:
    """The plan as a table with the regimes as bars."""
    console = Console(highlight=False, markup=False)
    title = f"{model_name(directory)} ({description.family}, {len(description.layers)} layers)"
    console.print(Text(title, style="bold"))
    console.print(_facts_table(plan, description, pretraining_tokens))
    print_warnings(console, plan.warnings)
    print_runtime_warnings(console, plan)


def plan_document(
    plan: RopePlan, description: ModelDescription, directory: Path, pretraining_tokens: float | None
) -> dict[str, Any]:
    """`plan --json`."""
    family = families()[description.family]
    return {
        "model": str(directory),
        "family": description.family,
        **rope_facts(plan),
        "runtime_warnings": runtime_warnings(plan),
        "finetune_tokens": pretraining_tokens * FINETUNE_SHARE if pretraining_tokens else None,
        "kv_cache_bytes_per_token": description.key_value_bytes_per_token,
        "tensors": [
            {"name": tensor.name, "shape": list(tensor.shape)}
            for tensor in expected_tensors(family, description)
        ],
    }
