"""Which files are written beside a GGUF, by what `--emit` names."""

from collections.abc import Collection
from pathlib import Path

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import method_name
from yarnconv.targets.beside import Beside, FileBeside, is_ours
from yarnconv.targets.check_workflow import Reference, check_workflow
from yarnconv.targets.gguf.deployment.card import card_name, model_card
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.modelfile import modelfile, modelfile_name
from yarnconv.targets.gguf.deployment.server import (
    carrier,
    dynamic_files,
    needs_flags,
    presets_name,
    script_name,
    static_script,
)
from yarnconv.targets.gguf.launch import key_shift_warning
from yarnconv.targets.gguf.output import output_paths
from yarnconv.targets.gguf.target import GgufJob
from yarnconv.targets.plan_card import command_line


def carried_plan(plan: ConversionPlan, wanted: Collection[str]) -> ConversionPlan:
    """The plan that the GGUF itself is to carry: a plain one where presets beside it carry a dynamic one.

    Raises Inexpressible where they cannot.
    """
    if not needs_flags(plan.rope) or "llama-server" not in wanted:
        return plan
    if "ollama" in wanted:
        raise Inexpressible(
            "a Modelfile has no parameters for YaRN or a RoPE base",
            where=f"method {method_name(plan.rope.main)}",
            fix="Leave ollama out of --emit, or choose --method yarn.",
        )
    return carrier(plan)


def _check_names(deployment: Deployment, paths: list[Path], files: list[FileBeside]) -> None:
    model = deployment.model
    if not model.isprintable() or "\\" in model or model.startswith("-"):
        what = f"{model!r} holds letters with which the files beside it cannot name it"
        raise BadInput(what, where="-o", fix="Give another name.")
    if taken := {file.name for file in files} & {path.name for path in paths}:
        fix = "Give the model a name that ends in .gguf."
        raise BadInput("would be the model and a file beside it", where=taken.pop(), fix=fix)


def _served_notes(plan: ConversionPlan, stem: str) -> list[str]:
    """What the file itself does not say."""
    method, factor = method_name(plan.rope.main), plan.rope.main_group.buckets[-1].factor
    carries = f"{presets_name(stem)} carries {method} x{factor:g}"
    warning = key_shift_warning(plan.rope)
    return [
        f"The GGUF itself is plain; {carries}, a preset for each factor.",
        *([warning] if warning else []),
    ]


def _stale_notes(destination: Path, files: list[FileBeside]) -> tuple[str, ...]:
    """What was written beside an older file of this name, and is not written again."""
    stem, written = destination.stem, {file.name for file in files}
    names = (name(stem) for name in (script_name, presets_name, modelfile_name, card_name, workflow_name))
    places = (destination.with_name(name) for name in names if name not in written)
    return tuple(
        f"{path.name} beside it belongs to an older file of this name: delete it, or name it in --emit."
        for path in places
        if path.is_file() and is_ours(path)
    )


def workflow_name(stem: str) -> str:
    """The workflow beside a model, by its name without .gguf."""
    return f"{stem}.check.yml"


def _workflow(deployment: Deployment) -> FileBeside:
    return check_workflow(
        workflow_name(deployment.stem),
        artefact=deployment.model,
        reference=deployment.reference,
        extras="check,llama",
        options=command_line(deployment.carried.request.given),
    )


def files_beside(
    served: ConversionPlan,
    carried: ConversionPlan,
    job: GgufJob,
    destination: Path,
    reference: Reference,
    wanted: Collection[str],
) -> Beside:
    """What to write beside a GGUF. served: the plan that was asked for; carried: the file's own.

    Raises BadInput where the destination's name cannot be written in one of them.
    """
    if not wanted:
        return Beside(notes=_stale_notes(destination, []))
    paths = output_paths(destination, len(job.files))
    deployment = Deployment(
        served=served,
        carried=carried,
        encoding=job.rope,
        dtype=job.file_type.name.lower(),
        stem=destination.stem,
        model=paths[0].name,
        parts=len(paths),
        reference=reference,
        wanted=wanted,
    )
    files: list[FileBeside] = []
    notes: list[str] = []
    if needs_flags(served.rope):
        files += dynamic_files(deployment)
        notes += _served_notes(served, deployment.stem)
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
    _check_names(deployment, paths, files)
    return Beside(files=tuple(files), notes=(*notes, *_stale_notes(destination, files)))
