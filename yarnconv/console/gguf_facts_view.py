"""What a GGUF says of its RoPE, for people and as JSON."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yarnconv.console.messages import print_findings, print_warnings, printable
from yarnconv.console.plan_view import print_runtime_warnings, rope_table, runtime_warnings
from yarnconv.plan import rope_facts
from yarnconv.targets.gguf.inspection import GgufFacts


def _in_json(value: object) -> object:
    """JSON has no infinity: a number that is none is its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def gguf_facts_document(path: Path, facts: GgufFacts) -> dict[str, Any]:
    """`inspect --json`: what the file carries as the plan that would make it, and its keys."""
    return {
        "artifact": str(path),
        "target": "gguf",
        "architecture": facts.architecture,
        "outtype": facts.weight_type.lower(),
        **rope_facts(facts.plan),
        "runtime_warnings": runtime_warnings(facts.plan),
        "keys": {key: _in_json(value) for key, value in facts.keys.items()},
        "findings": list(facts.findings),
    }


def _shown(value: object) -> str:
    return printable(f"{value:.7g}" if isinstance(value, float) else str(value))[:100]


def print_gguf_facts(path: Path, facts: GgufFacts) -> None:
    """What its keys come to, the keys, and what does not agree."""
    console = Console(highlight=False, markup=False)
    parts = f", {facts.parts} files" if facts.parts > 1 else ""
    title = f"{path} ({facts.architecture}, {facts.weight_type.lower()}{parts})"
    console.print(Text(printable(title), style="bold"))
    console.print(rope_table(facts.plan))
    keys = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for key, value in facts.keys.items():
        keys.add_row(Text(printable(key), style="dim"), Text(_shown(value)))
    console.print(keys)
    print_warnings(console, facts.plan.warnings)
    print_runtime_warnings(console, facts.plan)
    print_findings(console, facts.findings)
    if not facts.findings:
        console.print("llama.cpp reads of these keys what stands above them.")
