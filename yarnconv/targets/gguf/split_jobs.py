"""Job files: a cluster writes a split model by the command line that would write all of it, a file a job."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal, get_args

from yarnconv import __version__
from yarnconv.errors import BadInput, one_of
from yarnconv.targets.beside import MARK, FileBeside
from yarnconv.targets.gguf.output import output_paths, stem_of
from yarnconv.targets.gguf.split import check_splits
from yarnconv.targets.templates import render

OPTION = "--split-jobs"
JobForm = Literal["list", "slurm", "kubernetes"]
SUFFIXES: dict[JobForm, str] = {"slurm": ".slurm.sh", "kubernetes": ".kubernetes.yaml"}
# Kubernetes' names of jobs: with an index behind it a pod's host name has to keep within 63 letters
_NO_LABEL = re.compile(r"[^a-z0-9]+")
LABEL_LETTERS = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitJobs:
    """Who is to write the model's files. options: those of the command line that decide what they are, but
    for MODEL, its revision and the destination.
    """

    form: JobForm
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCommand:
    """The command line that every job runs, with `--only-split` behind it.

    words: it, without the program. checkpoint: the directory that MODEL is, None of a Hub id. destination:
    where the model goes, absolute. sizes: of its files.
    """

    words: tuple[str, ...]
    checkpoint: Path | None
    destination: Path
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volume:
    """A directory that a pod needs. claim: what stands for the name of its volume claim."""

    name: str
    claim: str
    place: str
    read_only: bool


def parse_form(text: str, split_max_size: int | None) -> JobForm:
    """The `--split-jobs` of that name."""
    form: JobForm = one_of(text.lower(), get_args(JobForm), OPTION)
    check_splits(OPTION, split_max_size)
    return form


def job_command(
    model: str, directory: Path, options: Sequence[str], destination: Path, sizes: Sequence[int]
) -> JobCommand:
    """model: MODEL as it was given, directory: where it was found. It is named so that every job finds the
    same: a directory from wherever it runs, a Hub id at the commit that was read here.
    """
    is_local = Path(model).is_dir()
    place = directory.resolve()  # a model has its directory's name, not a link's
    named = [str(place)] if is_local else [model, "--revision", directory.name]
    destination = destination.parent.resolve() / destination.name
    return JobCommand(
        words=("gguf", *named, *options, "--output", str(destination)),
        checkpoint=place if is_local else None,
        destination=destination,
        sizes=tuple(sizes),
    )


def _check_words(words: Sequence[str]) -> None:
    for word in words:
        if not word.isprintable():
            what = f"{word!r} holds letters with which a job file cannot name it"
            raise BadInput(what, where=OPTION, fix="Give another name.")


def _check_links(checkpoint: Path, mounted: Path) -> None:
    """Refuse a checkpoint whose files lie elsewhere, as those of the Hub's cache do: no pod has them."""
    for path in sorted(checkpoint.iterdir()):
        if not path.resolve().is_relative_to(mounted):
            what = "is a link to a file that lies outside the directory, which alone is mounted"
            fix = "Copy the checkpoint with cp -rL, and give the copy's directory as MODEL."
            raise BadInput(what, where=str(path), fix=fix)


def _volumes(command: JobCommand) -> list[_Volume]:
    """What a pod mounts, each where it lies on this machine; one where the other lies within it."""
    output = command.destination.parent
    if command.checkpoint is None:
        raise BadInput(
            "every pod would download the whole model",
            where=f"{OPTION} kubernetes",
            fix="Download it to a volume once, and give its directory as MODEL.",
        )
    outer = min(command.checkpoint, output, key=lambda place: len(place.parts))
    if command.checkpoint.is_relative_to(outer) and output.is_relative_to(outer):
        volumes = [_Volume(name="model", claim="MODEL_CLAIM", place=str(outer), read_only=False)]
    else:
        place = str(command.checkpoint)
        volumes = [
            _Volume(name="checkpoint", claim="CHECKPOINT_CLAIM", place=place, read_only=True),
            _Volume(name="output", claim="OUTPUT_CLAIM", place=str(output), read_only=False),
        ]
    for volume in volumes:
        if ":" in volume.place or volume.place == "/":
            fix = "Give the model a directory of another name."
            raise BadInput("is no place where Kubernetes mounts a volume", where=volume.place, fix=fix)
    _check_links(command.checkpoint, Path(volumes[0].place))
    return volumes


def job_file(form: JobForm, command: JobCommand) -> FileBeside | None:
    """The file, beside the model; None where the files are listed only.

    Raises BadInput where the command line cannot be named in it.
    """
    if form == "list":
        return None
    _check_words(command.words)
    stem = stem_of(command.destination)
    label = _NO_LABEL.sub("-", f"yarnconv-{stem}".lower())[:LABEL_LETTERS].strip("-")
    name = f"{stem}{SUFFIXES[form]}"
    values: dict[str, Any] = {
        "mark": MARK,
        "version": __version__,
        "name": name,
        "label": label,
        "parts": len(command.sizes),
        "words": command.words,
    }
    if form == "slurm":
        return FileBeside(name=name, text=render("cluster/slurm.sh", values))
    values["volumes"] = _volumes(command)
    return FileBeside(name=name, text=render("cluster/kubernetes.yaml", values))


def job_notes(form: JobForm, written: Sequence[Path], command: JobCommand) -> list[str]:
    """What to do with the job file that was written, and what to know before."""
    notes = []
    for path in written:
        if form == "slurm":
            notes.append(f"Name a partition in it if there has to be one; then: sbatch {quote(str(path))}")
        else:
            claims = ", ".join(volume.claim for volume in _volumes(command))
            then = f"kubectl apply -f {quote(str(path))}"
            notes.append(f"Put your own names into it for IMAGE, {claims}; then: {then}")
    every = output_paths(command.destination, len(command.sizes))
    if existing := [path for path in every if path.exists()]:
        notes.append(
            f"{len(existing)} of the files are there already ({existing[0].name}, ...). If they are of "
            "another model or plan, delete them first: beside what a failed job left out they would load."
        )
    return notes
