"""The files that `check` writes its report to, and the command that makes it again."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from yarnconv.artifact import check_directory, staged
from yarnconv.cli.again import given_words
from yarnconv.console.html_report import html_report
from yarnconv.console.junit import junit_xml
from yarnconv.console.marks import is_report
from yarnconv.console.messages import json_text
from yarnconv.errors import BadInput
from yarnconv.verify.result import CheckResult

# options that say where and how it is told: the same check without them
_TELLING = ("output_json", "junit", "html", "as_json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where each form goes; None where nobody asked for it."""

    output_json: Path | None = None
    junit: Path | None = None
    html: Path | None = None

    def _given(self) -> Iterator[tuple[str, Path, Callable[[CheckResult], bytes]]]:
        """(option, path, what makes its bytes) of each that was asked for."""
        for option, path, make in (
            ("--output-json", self.output_json, lambda result: json_text(result.document).encode()),
            ("--junit", self.junit, junit_xml),
            ("--html", self.html, html_report),
        ):
            if path is not None:
                yield option, path, make

    def refuse(self, artefact: Path, read: Mapping[str, Path | None]) -> None:
        """Refuse before the work what would fail after it, or destroy what was judged. read: by option, files
        that are read.
        """
        taken = {path.resolve(): option for option, path in read.items() if path is not None}
        for option, path, _ in self._given():
            check_directory(path.parent)
            if path.exists() and not path.is_file():
                raise BadInput("is no regular file", where=str(path), fix=f"Correct {option}.")
            if path.resolve() in taken:
                where = f"{taken[path.resolve()]}, {option}"
                raise BadInput("both name the same file", where=where, fix="Give each a file of its own.")
            if path.exists() and not is_report(path):  # another part of the artefact, perhaps
                fix = f"Move it away, or correct {option}."
                what = "the file exists and is no report that yarnconv wrote"
                raise BadInput(what, where=str(path), fix=fix)
            taken[path.resolve()] = option
            self._refuse_over(artefact, option, path)

    def refuse_reference(self, reference: Path) -> None:
        """The same of the checkpoint, once it is known where it lies."""
        for option, path, _ in self._given():
            self._refuse_over(reference, option, path)

    @staticmethod
    def _refuse_over(judged: Path, option: str, path: Path) -> None:
        inside = judged.is_dir() and path.resolve().parent == judged.resolve()
        if inside or path.resolve() == judged.resolve():
            what = "would be written over the artefact or into the checkpoint"
            raise BadInput(what, where=str(path), fix=f"Correct {option}.")

    def write(self, result: CheckResult) -> list[Path]:
        """Each whole or not at all; which."""
        made = [(path, make(result)) for _, path, make in self._given()]
        for path, data in made:
            with staged([path]) as temporary:
                temporary[0].write_bytes(data)
        return [path for path, _ in made]


def command_again(context: typer.Context) -> str:
    """What of a command line decides the result, quoted for a shell."""
    operands, options = given_words(context, _TELLING)
    return shlex.join(["yarnconv", context.command.name or "", *operands, *options])
