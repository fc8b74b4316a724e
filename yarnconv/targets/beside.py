"""Files beside an artefact that runtimes, or people, start from: written with it or not at all."""

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from yarnconv.errors import BadInput

MARK = "Written by yarnconv"  # in one of a file's first two lines: by it an older one is known as ours


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBeside:
    """name: within the artefact's directory. executable: a script that is started by its name."""

    name: str
    text: str
    executable: bool = False

    def write(self, path: Path) -> None:
        """Write it whole."""
        with path.open("x", encoding="utf-8", newline="") as file:  # never through a link to something else
            file.write(self.text)
        if self.executable:
            mode = path.stat().st_mode
            path.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is written beside an artefact, and what to say of it."""

    files: tuple[FileBeside, ...] = ()
    notes: tuple[str, ...] = ()


def is_ours(path: Path) -> bool:
    """Whether a file was written here before."""
    with path.open("rb") as file:
        return MARK.encode() in b"\n".join(file.read(400).splitlines()[:2])


def check_beside(paths: Sequence[Path], sources: Set[Path] = frozenset()) -> None:
    """Refuse to replace anything but what was written here before. sources: resolved; whatever stands in
    them, they stay.
    """
    for path in paths:
        if path.resolve() in sources:
            raise BadInput("would be written over the source", where=str(path), fix="Give another -o.")
        if path.is_symlink() or (path.exists() and (not path.is_file() or not is_ours(path))):
            raise BadInput(
                "the file exists and yarnconv did not write it",
                where=str(path),
                fix="Move it away, give another -o, or leave its name out of --emit.",
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise BadInput("the file cannot be written to", where=str(path))


# what --emit names, by target; the files that an artefact brings anyway are named too
EMISSIONS: dict[str, tuple[str, ...]] = {
    "gguf": ("ollama", "llama-server", "ci", "card"),
    "onnx": ("ci", "card"),
    "trt": ("ci", "card", "triton"),
}
_WHY_NOT = {
    ("onnx", "triton"): "Triton's ONNX Runtime backend is not among what this writes and proves",
    ("gguf", "triton"): "Triton has no backend for GGUF",
}


def parse_emission(text: str | None, target: str) -> frozenset[str]:
    """The names of an `--emit` option. target: the command, such as gguf."""
    if text is None:
        return frozenset()
    known = EMISSIONS[target]
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return frozenset(known)
    for name in names:
        if name not in known:
            why = _WHY_NOT.get((target, name), f"{name[:40]!r} is nothing that this command can write")
            fix = f"Choose among {', '.join(known)}, separated by commas, or all."
            raise BadInput(why, where="--emit", fix=fix)
    return frozenset(names)
