"""Telling an existing artefact from a checkpoint, and the options that have no meaning with one."""

from collections.abc import Mapping
from pathlib import Path

from yarnconv.errors import BadInput


def is_gguf(model: str) -> bool:
    """Whether MODEL is a file: a checkpoint is a directory, and no Hub id ends so."""
    path = Path(model)
    return path.is_file() or (path.suffix == ".gguf" and not path.is_dir())


def refuse_with_existing(what: str, given: Mapping[str, object]) -> None:
    """Raise BadInput for the first option that was given. what: the artefact."""
    for option, value in given.items():
        if value:
            raise BadInput(
                f"has no meaning with {what} that exists",
                where=option,
                fix="Leave it out, or give the checkpoint: an artefact keeps its weights and vocabulary.",
            )
