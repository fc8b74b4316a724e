"""`yarnconv gguf --split-jobs`: the files of a split model, and a job file that has a cluster write them."""

from pathlib import Path

import typer

from yarnconv.artifact import staged
from yarnconv.cli.again import given_words
from yarnconv.console.split_view import PlannedSplit, show_split
from yarnconv.errors import BadInput
from yarnconv.targets.beside import check_beside
from yarnconv.targets.gguf import target as gguf
from yarnconv.targets.gguf.output import output_paths
from yarnconv.targets.gguf.split_jobs import (
    OPTION,
    SplitJobs,
    job_command,
    job_file,
    job_notes,
    parse_form,
)

# said anew for a job, or not said to it at all
_NOT_REPEATED = ("model", "revision", "output", "split_jobs", "as_json")


def parse_jobs(context: typer.Context, split_max_size: int | None) -> SplitJobs | None:
    """What `--split-jobs` of this command line asks for."""
    text = context.params["split_jobs"]
    if text is None:
        return None
    if context.params["only_split"] is not None:
        fix = f"Leave one out: {OPTION} is for all of them."
        raise BadInput("a job writes one file, and none is split further", where=OPTION, fix=fix)
    form = parse_form(text, split_max_size)
    return SplitJobs(form=form, options=tuple(given_words(context, _NOT_REPEATED)[1]))


def write_jobs(
    jobs: SplitJobs,
    model: str,
    directory: Path,
    job: gguf.GgufJob,
    destination: Path,
    *,
    kind: str,
    as_json: bool,
) -> None:
    """Write the job file, if one is asked for, and show which files there will be."""
    sizes = [file.size for file in job.files]
    command = job_command(model, directory, jobs.options, destination, sizes)
    files: list[Path] = []
    made = job_file(jobs.form, command)
    if made is not None:
        files = [destination.with_name(made.name)]
        check_beside(files)
        with staged(files) as temporary:
            made.write(temporary[0])
    planned = PlannedSplit(
        kind=kind,
        files=[(path, path.stat().st_size) for path in files],
        parts=list(zip(output_paths(destination, len(sizes)), sizes, strict=True)),
        notes=job_notes(jobs.form, files, command),
    )
    show_split(planned, as_json=as_json)
