"""One file of a split model, written by a job of its own: which it is, and what it leaves to the first."""

import re
from dataclasses import dataclass

from yarnconv.errors import BadInput
from yarnconv.targets.beside import Beside

OPTION = "--only-split"
_PART = re.compile(r"(\d{1,5})/(\d{1,5})", re.ASCII)  # no more than llama.cpp's names have digits for


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPart:
    """The file `number`, counted from 1, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_first(self) -> bool:
        """Whether it is the file that a runtime opens."""
        return self.number == 1


def check_splits(option: str, split_max_size: int | None) -> None:
    """Refuse an option that is about a split model's files where none is made."""
    if split_max_size is None:
        raise BadInput(
            "is about the files of a split model, and nothing says how to split",
            where=option,
            fix="Give --split-max-size too, the same to every job.",
        )


def parse_part(text: str | None, split_max_size: int | None) -> SplitPart | None:
    """The file that `--only-split K/N` names."""
    if text is None:
        return None
    check_splits(OPTION, split_max_size)
    found = _PART.fullmatch(text)
    part = SplitPart(number=int(found[1]), count=int(found[2])) if found else None
    if part is None or not 1 <= part.number <= part.count:
        fix = "Write K/N with K from 1 to N, such as 3/17; --split-jobs list says which there are."
        raise BadInput(f"{text[:40]!r} names no part", where=OPTION, fix=fix)
    return part


def check_count(part: SplitPart, count: int) -> None:
    """Refuse a part of another number of files than the plan gives: it would fit to none of the others."""
    if part.count != count:
        raise BadInput(
            f"the plan gives {count} {'file' if count == 1 else 'files'}, and {part} is of {part.count}",
            where=OPTION,
            fix=f"Write {OPTION} K/{count}, with K from 1 to {count} "
            "(--split-jobs list shows them), or correct --split-max-size.",
        )


def beside_part(part: SplitPart, beside: Beside) -> Beside:
    """What of the files beside the model a job writes, and what to say: all are the first job's, so that no
    two of them write the same.
    """
    notes = []
    if part.count > 1:
        notes.append(f"It is part {part} of a model that is whole when all {part.count} are there.")
    if part.is_first:
        return Beside(files=beside.files, notes=(*notes, *beside.notes))
    if beside.files:
        names = ", ".join(file.name for file in beside.files)
        notes.append(f"What lies beside the model is written with part 1/{part.count}: {names}.")
    return Beside(notes=tuple(notes))
