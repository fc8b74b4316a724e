"""Workflows for GitHub Actions: one that checks an artefact again, in the repository that holds it, and one
that converts a checkpoint and checks what was made.
"""

from dataclasses import dataclass
from pathlib import Path

from yarnconv import __version__
from yarnconv.checkpoint.hub import model_name
from yarnconv.targets.beside import MARK, FileBeside
from yarnconv.targets.templates import render

WORKFLOW_FILE = "check.yml"  # in a directory that is an artefact
PARITY_FILE = Path(".github", "workflows", "yarnconv-parity.yml")  # in a repository
BASELINE_FILE = ".github/yarnconv-baseline.json"  # there too, if at all
# what `check` needs, by the command that makes what a machine without a GPU can judge
PARITY_EXTRAS = {"gguf": "check,llama", "onnx": "check,onnx"}
_LOCAL = "the checkpoint: a directory of this repository, or better a Hub id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The checkpoint that an artefact is checked against, as another machine can name it.

    model: a Hub id, or of a local checkpoint its name. revision: of a Hub id. remark: what to put there
    instead, where the name is no other machine's.
    """

    model: str
    revision: str | None = None
    remark: str | None = None

    @classmethod
    def of(cls, model: str, revision: str | None) -> "Reference":
        """The reference that MODEL on a command line stands for."""
        path = Path(model)
        if path.exists():
            return cls(model=model_name(path if path.is_dir() else path.parent), remark=_LOCAL)
        return cls(model=model, revision=revision)


# of an artefact of which nobody knows what it was made of
UNKNOWN_REFERENCE = Reference(
    model="MODEL",
    remark="the checkpoint that the artefact was made of: its Hub id, or a directory of this repository",
)


def unknown_reference_note(what: str, name: str) -> str:
    """what: the artefact. name: of the file to complete."""
    return f"Which checkpoint {what} was made of is not known here: name it in {name} instead of MODEL."


def check_workflow(
    name: str,
    *,
    artefact: str,
    reference: Reference,
    extras: str,
    options: str,
    judges_without_gpu: bool = True,
) -> FileBeside:
    """The file. artefact: within its repository. extras: of yarnconv, that `check` needs. options: rope
    options, numbers and fixed words only. judges_without_gpu: whether `check` comes to a verdict without one.
    """
    values = {
        "mark": MARK,
        "version": __version__,
        "file": name,
        "artefact": artefact,
        "reference": reference,
        "extras": extras,
        "options": options,
        "judges_without_gpu": judges_without_gpu,
    }
    return FileBeside(name=name, text=render("shared/check.yml", values))


def parity_workflow(model: str, *, target: str, factor: float) -> str:
    """The workflow that `ci init` writes. model: a Hub id or a directory of the repository. target: a key of
    PARITY_EXTRAS. Whoever starts it by hand may name others.
    """
    values = {
        "mark": MARK,
        "version": __version__,
        "model": model,
        "target": target,
        "factor": repr(factor).removesuffix(".0"),  # exactly, and as short as that can be
        "targets": PARITY_EXTRAS,
        "baseline": BASELINE_FILE,
        "extras": "${extras}",
    }
    return render("ci/parity.yml", values)
