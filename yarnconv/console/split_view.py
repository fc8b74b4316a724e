"""The files that a split model will have, for people and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from yarnconv.console.messages import one_line, print_json
from yarnconv.sizes import readable_size


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSplit:
    """kind: the type of its weights. files: what was written, path and bytes. parts: the model's, which were
    not.
    """

    kind: str
    files: Sequence[tuple[Path, int]]
    parts: Sequence[tuple[Path, int]]
    notes: Sequence[str]


def _print_split(planned: PlannedSplit) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for path, _ in planned.files:
        console.print(Text("wrote ", style="green").append(one_line(str(path)), style="bold"))
    count, sizes = len(planned.parts), [readable_size(size) for _, size in planned.parts]
    width = max(map(len, sizes))
    for number, ((path, _), size) in enumerate(zip(planned.parts, sizes, strict=True), start=1):
        console.print(
            f"  {f'{number}/{count}':>{2 * len(str(count)) + 1}}  {size:>{width}}  {one_line(str(path))}"
        )
    for note in planned.notes:
        console.print(f"  note: {one_line(note)}")


def show_split(planned: PlannedSplit, *, as_json: bool) -> None:
    """A line for each of the model's files, in the words of `--only-split`."""
    if not as_json:
        _print_split(planned)
        return
    count = len(planned.parts)
    print_json(
        {
            "target": "gguf",
            "files": [{"path": str(path), "bytes": size} for path, size in planned.files],
            "outtype": planned.kind,
            "parts": [
                {"only_split": f"{number}/{count}", "path": str(path), "bytes": size}
                for number, (path, size) in enumerate(planned.parts, start=1)
            ],
            "notes": list(planned.notes),
        }
    )
