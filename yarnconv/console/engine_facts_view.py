"""What an engine's directory says of itself, and which of it the engine's own bytes say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yarnconv.console.messages import print_findings, printable
from yarnconv.targets.tensorrt.inspection import EngineFacts

ENGINE, SIDECAR = "engine", "sidecar"
PLAN_FACTS = (
    *("method", "factor", "original_context", "target_context", "rope_theta", "rotary_dim", "head_dim"),
    *("beta_fast", "beta_slow", "truncate", "attention_factor", "softmax_scale_multiplier"),
    *("low", "high", "regimes", "finetuned", "warnings"),
)


def engine_facts_document(directory: Path, facts: EngineFacts) -> dict[str, Any]:
    """`inspect --json`. sources: from where each fact comes."""
    document = {key: facts.sidecar["plan"].get(key) for key in PLAN_FACTS}
    sources = dict.fromkeys(document, SIDECAR)
    if facts.tables:
        longest = facts.tables[-1]
        document |= {"attention_factor": longest.attention_factor, "inv_freq": longest.inv_freq.tolist()}
        sources |= {"attention_factor": ENGINE, "inv_freq": ENGINE, "buckets": ENGINE}
        document["buckets"] = [
            {"reach": t.reach, "attention_factor": t.attention_factor, "inv_freq": t.inv_freq.tolist()}
            for t in facts.tables
        ]
    header, graph = facts.header, facts.sidecar["graph"]
    document |= {
        "runtime_version": header.version if header else facts.sidecar["runtime"].get("version"),
        "compute_capabilities": list(
            header.compute_capabilities if header else facts.sidecar["compute_capabilities"]
        ),
        "profiles": facts.sidecar["profiles"],
        "profile_count": facts.profiles,
        "dtype": graph.get("dtype"),
        "max_context": graph.get("max_context"),
    }
    by_header = ENGINE if header else SIDECAR
    sources |= {"runtime_version": by_header, "compute_capabilities": by_header, "profile_count": ENGINE}
    sources |= dict.fromkeys(("profiles", "dtype", "max_context"), SIDECAR)
    return {
        "artifact": str(directory),
        "target": "tensorrt",
        **document,
        "sources": sources,
        "findings": list(facts.findings),
    }


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and source of what is shown."""
    shown = (*PLAN_FACTS[:12], "dtype", "max_context", "runtime_version", "compute_capabilities")
    for key in (*shown, "profile_count"):
        value = document[key]
        if value is None:
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if isinstance(value, list):
            text = ", ".join(map(str, value))
        yield key.replace("_", " "), printable(text[:200]), document["sources"][key]
    for bucket in document.get("buckets", []):
        low, high = min(bucket["inv_freq"]), max(bucket["inv_freq"])
        said = f"{bucket['attention_factor']:.6g} on cos and sin, frequencies {high:.6g} to {low:.6g}"
        yield f"table up to {bucket['reach']}", said, ENGINE


def print_engine_facts(directory: Path, facts: EngineFacts) -> None:
    """A table, and what does not agree."""
    console = Console(highlight=False)
    console.print(Text(printable(str(directory)), style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "value", "from"):
        table.add_column(title)
    for name, value, source in _rows(engine_facts_document(directory, facts)):
        said = "the engine's bytes" if source == ENGINE else "the sidecar"
        table.add_row(
            Text(name, style="dim"), Text(value), Text(said, style="" if source == ENGINE else "dim")
        )
    console.print(table)
    print_findings(console, facts.findings)
    if not facts.findings:
        console.print("Sidecar and engine agree where both speak.")
