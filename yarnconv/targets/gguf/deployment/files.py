"""Which files are written beside a GGUF, by what `--emit` names."""

import re
from collections.abc import Sequence

from yarnconv.errors import BadInput
from yarnconv.rope.scaling import method_name
from yarnconv.targets.beside import Beside, FileBeside
from yarnconv.targets.check_workflow import UNKNOWN_REFERENCE, check_workflow, unknown_reference_note
from yarnconv.targets.gguf.deployment.card import model_card
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.modelfile import modelfile
from yarnconv.targets.gguf.deployment.names import presets_name, stale_notes, workflow_name
from yarnconv.targets.gguf.deployment.server import (
    dynamic_files,
    static_script,
)
from yarnconv.targets.gguf.launch import key_shift_warning, needs_flags

_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{1,80}")  # of those that llama.cpp has


def _check_names(deployment: Deployment, files: Sequence[FileBeside]) -> None:
    model, architecture = deployment.model, deployment.keys.name
    if not model.isprintable() or "\\" in model or model.startswith("-") or model != model.strip():
        what = f"{model!r} holds letters with which the files beside it cannot name it"
        raise BadInput(what, where="-o", fix="Give another name.")
    if not _ARCHITECTURE.fullmatch(architecture):
        what = f"{architecture[:80]!r} holds letters with which the files beside it cannot name it"
        raise BadInput(what, where="general.architecture", fix="Leave out --emit.")
    if taken := {file.name for file in files} & {path.name for path in deployment.paths}:
        fix = "Give the model a name that ends in .gguf."
        raise BadInput("would be the model and a file beside it", where=taken.pop(), fix=fix)


def _served_notes(deployment: Deployment) -> list[str]:
    """What the file itself does not say."""
    rope = deployment.served
    method, factor = method_name(rope.main), rope.main_group.buckets[-1].factor
    carries = f"{presets_name(deployment.stem)} carries {method} x{factor:g}"
    warning = key_shift_warning(rope)
    return [
        f"The GGUF itself is plain; {carries}, a preset for each factor.",
        *([warning] if warning else []),
    ]


def _workflow(deployment: Deployment) -> FileBeside:
    return check_workflow(
        workflow_name(deployment.stem),
        artefact=deployment.model,
        reference=deployment.reference,
        extras="check,llama",
        options=deployment.check_options,
    )


def _reference_notes(deployment: Deployment) -> list[str]:
    if deployment.reference != UNKNOWN_REFERENCE:
        return []
    return [unknown_reference_note("the GGUF", workflow_name(deployment.stem))]


def files_beside(deployment: Deployment) -> Beside:
    """What to write beside a GGUF.

    Raises BadInput where the destination's name cannot be written in one of them.
    """
    wanted = deployment.wanted
    files: list[FileBeside] = []
    notes: list[str] = []
    if needs_flags(deployment.served):
        files += dynamic_files(deployment)
        notes += _served_notes(deployment)
    elif "llama-server" in wanted:
        files.append(static_script(deployment))
    if "ollama" in wanted:
        made = modelfile(deployment)
        files += made.files
        notes += made.notes
    if "card" in wanted:
        files.append(model_card(deployment))
    if "ci" in wanted:
        files.append(_workflow(deployment))
        notes += _reference_notes(deployment)
    _check_names(deployment, files)
    return Beside(files=tuple(files), notes=(*notes, *stale_notes(deployment.destination, files)))
