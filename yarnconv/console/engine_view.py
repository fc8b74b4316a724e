"""What was built and proved of an engine, for people and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from yarnconv.sizes import readable_size
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.tensorrt.target import Engine


def engine_document(engine: Engine) -> dict[str, Any]:
    """What `trt --json` says beside what every conversion says."""
    return {"engine": dict(engine.sidecar), "read_back": [asdict(fact) for fact in engine.facts]}


def _range(numbers: list[int]) -> str:
    least, usual, most = numbers
    return str(most) if least == most else f"{least} to {most} (mostly {usual})"


def _cache_room(sidecar: Mapping[str, Any]) -> str:
    """What keys and values take at most by the profiles, two sets of them."""
    graph, profiles = sidecar["graph"], sidecar["profiles"]
    values = 2 * graph["layers"] * graph["key_value_heads"] * graph["head_dim"]
    token_bytes = values * FLOAT_TYPES[graph["cache_type"]].bits // 8
    most = max(p["batch"][2] * min(p["past_tokens"][2] + 1, graph["max_context"]) for p in profiles)
    return f"{token_bytes} bytes a token, {readable_size(most * token_bytes)} for all that the profiles take"


def print_engine(engine: Engine) -> None:
    """For whom it was built, its profiles, and what was proved of it."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    sidecar = engine.sidecar
    runtime, build = sidecar["runtime"], sidecar["build"]
    gpus = ", ".join(sidecar["compute_capabilities"]) or "of this machine"
    console.print(f"  {runtime['name']} {runtime['version']}, GPUs of compute capability {gpus}")
    memory = readable_size(build["peak_memory_bytes"])
    console.print(f"  built in {build['seconds']:.1f} s with {memory} of this machine's memory")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("  profile", "sequences", "new tokens", "past tokens"):
        table.add_column(title)
    for profile in sidecar["profiles"]:
        ranges = (_range(profile[key]) for key in ("batch", "new_tokens", "past_tokens"))
        table.add_row(f"  {profile['name']}", *ranges)
    console.print(table)
    console.print(
        f"  read back from the parsed network: {len(engine.facts)} facts agree with the plan (inputs, "
        "attention, rotations, every row of every table)"
    )
    console.print(f"  keys and values on the GPU: {_cache_room(sidecar)}")
    tables = ", ".join(f"{table['name']} {len(table['offsets'])}x" for table in sidecar["tables"])
    weights = sidecar["weights"]
    found = f"; {weights['found']} of {weights['tensors']} weight tensors (sampled rows)" if weights else ""
    console.print(f"  found in the engine's own bytes: {tables}{found}")
    console.print("  the engine itself was not executed: run `yarnconv check` on a machine with such a GPU")
