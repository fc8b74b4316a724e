"""What the files beside a GGUF are called, and what of an older file is still there."""

from collections.abc import Sequence
from pathlib import Path

from yarnconv.targets.beside import FileBeside, is_ours
from yarnconv.targets.gguf.output import stem_of


def script_name(stem: str) -> str:
    """The script beside a model, by its name without .gguf."""
    return f"{stem}.llama-server.sh"


def presets_name(stem: str) -> str:
    """The presets beside a model, by its name without .gguf."""
    return f"{stem}.presets.ini"


def modelfile_name(stem: str) -> str:
    """The Modelfile beside a model, by its name without .gguf."""
    return f"{stem}.Modelfile"


def card_name(stem: str) -> str:
    """The card beside a model, by its name without .gguf."""
    return f"{stem}.md"


def workflow_name(stem: str) -> str:
    """The workflow beside a model, by its name without .gguf."""
    return f"{stem}.check.yml"


def stale_notes(destination: Path, files: Sequence[FileBeside] = ()) -> tuple[str, ...]:
    """What was written beside an older file of this name, and is not written again."""
    stem, written = stem_of(destination), {file.name for file in files}
    names = (name(stem) for name in (script_name, presets_name, modelfile_name, card_name, workflow_name))
    places = (destination.with_name(name) for name in names if name not in written)
    return tuple(
        f"{path.name} beside it belongs to an older file of this name: delete it, or name it in --emit."
        for path in places
        if path.is_file() and is_ours(path)
    )
