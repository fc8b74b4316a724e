"""Where a GGUF goes: its files' names, and what they may replace."""

from collections.abc import Set
from pathlib import Path

from yarnconv.errors import BadInput
from yarnconv.targets.gguf.file_format import MAGIC


def output_paths(destination: Path, count: int) -> list[Path]:
    """One path, or llama.cpp's split names; a link is followed to the file it stands for, not replaced."""
    paths = [destination]
    if count > 1:
        paths = [
            destination.with_name(f"{destination.stem}-{number:05d}-of-{count:05d}.gguf")
            for number in range(1, count + 1)
        ]
    return [path.resolve() if path.is_symlink() else path for path in paths]


def check_destination(sources: Set[Path], paths: list[Path], what: str) -> None:
    """Refuse to replace a source, or what is no GGUF. sources: resolved. what: how a message calls them."""
    for path in paths:
        if path.resolve() in sources:
            raise BadInput(f"the destination is {what}", where=str(path), fix="Give another -o.")
        if path.exists() and not path.is_file():
            raise BadInput("the destination exists and is no regular file", where=str(path))
        if path.exists():
            with path.open("rb") as file:
                if file.read(len(MAGIC)) not in {MAGIC, b""}:
                    raise BadInput(
                        "the destination exists and is no GGUF",
                        where=str(path),
                        fix="Delete it first if it is not needed.",
                    )
