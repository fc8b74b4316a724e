"""Where a GGUF goes: its files' names, what they may replace, and their publication with what lies beside."""

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yarnconv.artifact import staged
from yarnconv.errors import BadInput
from yarnconv.targets.beside import FileBeside, check_beside
from yarnconv.targets.gguf.file_format import MAGIC
from yarnconv.targets.gguf.reader import is_shard


def stem_of(path: Path) -> str:
    """A GGUF's name without .gguf; another suffix is a part of it."""
    return path.name.removesuffix(".gguf")


def destination_of(output: Path | None, default_name: str) -> Path:
    """The file that `-o` means: in a directory one of that name; a link is followed to the file that it
    stands for, not replaced.
    """
    place = output or Path()
    if place.is_dir():
        place = place / default_name
    return place.resolve() if place.is_symlink() else place


def output_paths(destination: Path, count: int) -> list[Path]:
    """One path, or llama.cpp's split names."""
    if count == 1:
        return [destination]
    stem = stem_of(destination)
    names = (f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
    paths = [destination.with_name(name) for name in names]
    return [path.resolve() if path.is_symlink() else path for path in paths]


def _check_paths(paths: Sequence[Path], sources: Set[Path], what: str, *, is_whole: bool) -> None:
    for path in paths:
        if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
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
        if is_whole and is_shard(path):
            raise BadInput(
                "the name is that of a part of a split model, and this is a whole one",
                where=str(path),
                fix="Give another -o.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """temporary: where to write the GGUF's files. files: all that will appear, the one to open first."""

    temporary: list[Path]
    files: list[Path]


@contextmanager
def published(
    destination: Path,
    count: int,
    sources: Set[Path],
    what: str,
    beside: Sequence[FileBeside],
    only: int | None = None,
) -> Iterator[Publication]:
    """Places for a GGUF of `count` files; they and what lies beside them appear at the end, all or none.

    sources: what must stay, and what a message calls them. only: the number of the one file that is written,
    counted from 1; the others are left as they are. Raises BadInput for a destination that is one of the
    sources or no GGUF, and for files beside it that others wrote.
    """
    paths = output_paths(destination, count)
    if only is not None:
        paths = [paths[only - 1]]
    others = [destination.with_name(file.name) for file in beside]
    _check_paths(paths, sources, what, is_whole=count == 1)
    check_beside(others, sources)
    with staged([*paths, *others]) as temporary:
        yield Publication(temporary=temporary[: len(paths)], files=[*paths, *others])
        for path, text in zip(temporary[len(paths) :], beside, strict=True):
            text.write(path)
