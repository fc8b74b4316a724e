"""What a conversion wrote, for people and as JSON; the same for every target."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from yarnconv.console.messages import print_json, print_warnings, printable
from yarnconv.rope.scaling import Unscaled, is_dynamic, method_name
from yarnconv.rope_plan import RopePlan, rope_facts
from yarnconv.sizes import readable_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """target: gguf, onnx, tensorrt or hf. kind: the type of its weights. files: path and bytes, the one to
    open first. shows_rate: whether bytes by seconds mean anything. how_chosen: what chooses among the factors
    of a dynamic scaling.
    """

    target: str
    kind: str
    files: Sequence[tuple[Path, int]]
    notes: Sequence[str]
    seconds: float
    shows_rate: bool = True
    how_chosen: str = "the context that a request declares"

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)


def written_document(plan: RopePlan, written: Written) -> dict[str, Any]:
    """`gguf --json` and `onnx --json`."""
    return {
        "target": written.target,
        "files": [{"path": str(path), "bytes": size} for path, size in written.files],
        "outtype": written.kind,
        "seconds": round(written.seconds, 3),
        "notes": list(written.notes),
        "plan": rope_facts(plan),
    }


def print_written(plan: RopePlan, written: Written) -> None:
    """What was written, how large, how fast, and what to know of it."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    longest, method = plan.main_group.buckets[-1], method_name(plan.main)
    extension = "plain RoPE" if isinstance(plan.main, Unscaled) else f"{method} x{longest.factor:g}"
    line = Text("wrote ", style="green").append(printable(str(written.files[0][0])), style="bold")
    if len(written.files) > 1:
        line.append(f" and {len(written.files) - 1} more", style="not bold")
    console.print(line)
    rate = f" ({readable_size(written.nbytes / written.seconds)}/s)" if written.shows_rate else ""
    console.print(f"  {written.kind}, {readable_size(written.nbytes)} in {written.seconds:.2f} s{rate}")
    console.print(
        f"  {extension}, context {plan.original_context} -> {plan.target_context}, attention factor "
        f"{longest.attention_factor:.6g}"
    )
    if is_dynamic(plan.main):
        factors = ", ".join(f"{tables.factor:g}" for tables in plan.main_group.buckets)
        console.print(f"  factors {factors}: {written.how_chosen} chooses one")
    for note in written.notes:
        console.print(f"  note: {printable(note)}")
    print_warnings(console, plan.warnings)


def show_written(plan: RopePlan, written: Written, *, served: RopePlan | None = None, as_json: bool) -> None:
    """plan: what the artefact carries. served: what flags make of it, where runtimes need them."""
    shown = plan if served is None else replace(plan, warnings=served.warnings)
    if not as_json:
        print_written(shown, written)
        return
    document = written_document(shown, written)
    if served is not None and served is not plan:
        document["served"] = rope_facts(served)
    print_json(document)
