"""Where a directory of an artefact may be written, and what it may replace."""

from collections.abc import Sequence
from pathlib import Path

from yarnconv.checkpoint.sources import files_of
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.files import CONFIG_FILE, MODEL_FILE
from yarnconv.targets.tensorrt.files import SIDECAR

# by which a directory is known as an older artefact that may be replaced
ARTEFACT_SIGNS = frozenset({CONFIG_FILE, MODEL_FILE, SIDECAR})


def kept_places(plan: ConversionPlan) -> list[tuple[Path, str]]:
    """What of a checkpoint no artefact may replace, and what to call it."""
    files = files_of(binding.source for binding in plan.bindings)
    weights = [(file.path, "the checkpoint's weights") for file in files]
    return [(plan.checkpoint.directory, "the checkpoint"), *weights]


def refuse_inside(destination: Path, directory: Path, what: str) -> None:
    """Refuse a destination within the source's own directory. what: how a message calls that."""
    if destination.resolve().is_relative_to(directory.resolve()):
        what = f"the destination lies inside {what}"
        raise BadInput(what, where=str(destination), fix="Give another -o.")


def check_destination(destination: Path, keeps: Sequence[tuple[Path, str]], *, replace: bool) -> None:
    """Refuse a destination that replacing would cost more than an older artefact."""
    if destination.exists() and not destination.is_dir():
        raise BadInput("the destination is no directory", where=str(destination), fix="Give another -o.")
    resolved = destination.resolve()
    own = [(Path(), "the working directory"), (Path.home(), "your home directory")]
    for kept, what in (*keeps, *own):
        if kept.resolve().is_relative_to(resolved):
            raise BadInput(f"the destination holds {what}", where=str(destination), fix="Give another -o.")
    names = sorted(path.name for path in destination.iterdir()) if destination.exists() else []
    if replace and names and not ARTEFACT_SIGNS & set(names):
        what = f"the destination holds {len(names)} files that yarnconv did not write ({names[0][:40]}, ...)"
        raise BadInput(what, where=str(destination), fix="Give another -o, or empty it yourself.")
