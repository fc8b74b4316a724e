"""Optimisation profiles: the ranges of shapes that an engine is planned for.

Every input's shape follows from three numbers: sequences, new tokens, past tokens.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.json_files import MEBIBYTE, read_bytes
from yarnconv.errors import BadInput

USUAL_CHUNK, USUAL_PAST = 512, 2048
DEFAULT_INPUT = 2048  # new tokens at once
# Measured with TensorRT-RTX 1.7: a decode profile of exactly one new token fails or is planned badly once the
# past reaches about 24 thousand tokens; one of up to two is not, up to a million.
LONG_PAST = 16384
MOST_PROFILES, MOST_BATCH, MOST_TOKENS = 16, 2**16, 2**31 - 1
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_RANGES = ("batch", "new_tokens", "past_tokens")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What a number may be, and what it usually is."""

    least: int
    usual: int
    most: int

    def __iter__(self) -> Iterator[int]:
        return iter((self.least, self.usual, self.most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """batch: sequences. new_tokens, past_tokens: of each sequence."""

    name: str
    batch: Range
    new_tokens: Range
    past_tokens: Range

    def shapes(self, name: str, declared: Sequence[int]) -> tuple[Shape, Shape, Shape]:
        """Least, usual and largest shape of an input. declared: the network's, -1 where it varies."""
        least, usual, most = (
            _shape(name, declared, *numbers)
            for numbers in zip(self.batch, self.new_tokens, self.past_tokens, strict=True)
        )
        return least, usual, most


def _shape(name: str, declared: Sequence[int], batch: int, new: int, past: int) -> Shape:
    if name.startswith("past_key_values."):
        return batch, declared[1], past, declared[3]
    if name == "attention_mask":
        return batch, past + new
    return (batch, new) if len(declared) == 2 else tuple(declared)


def default_profiles(max_context: int, max_batch: int, max_input: int | None) -> tuple[Profile, ...]:
    """A prompt in chunks, and one new token after many."""
    most = min(DEFAULT_INPUT, max_context) if max_input is None else max_input
    batch, past = Range(least=1, usual=1, most=max_batch), max_context - 1
    prefill = Range(least=1, usual=min(USUAL_CHUNK, most), most=most)
    return (
        Profile(
            name="prefill",
            batch=batch,
            new_tokens=prefill,
            past_tokens=Range(least=0, usual=0, most=past),
        ),
        Profile(
            name="decode",
            batch=batch,
            new_tokens=Range(least=1, usual=1, most=min(2, max_context)),
            past_tokens=Range(least=0, usual=min(USUAL_PAST, past), most=past),
        ),
    )


def _range(found: Any, key: str, where: str, lowest: int, highest: int) -> Range:
    numbers = found if isinstance(found, list) else []
    if len(numbers) != 3 or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
        raise BadInput(f"{key} is no list of three whole numbers", where=where, fix="Write [min, opt, max].")
    least, usual, most = numbers
    if not lowest <= least <= usual <= most <= highest:
        raise BadInput(
            f"{key} = {numbers} is not in the order min <= opt <= max, from {lowest} to {highest}",
            where=where,
            fix="Correct the profile.",
        )
    return Range(least=least, usual=usual, most=most)


def _profile(entry: Any, where: str) -> Profile:
    keys = {"name", *_RANGES}
    odd = sorted(keys ^ set(entry)) if isinstance(entry, dict) else sorted(keys)
    if odd:
        what = f"{odd[0][:40]!r} is {'missing' if odd[0] in keys else 'no key'} of a profile"
        raise BadInput(what, where=where, fix=f"It has exactly the keys name, {', '.join(_RANGES)}.")
    name = entry["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput("a profile's name is letters, digits, - and _", where=where, fix="Rename it.")
    place = f"{where}: {name}"
    return Profile(
        name=name,
        batch=_range(entry["batch"], "batch", place, 1, MOST_BATCH),
        new_tokens=_range(entry["new_tokens"], "new_tokens", place, 1, MOST_TOKENS),
        past_tokens=_range(entry["past_tokens"], "past_tokens", place, 0, MOST_TOKENS),
    )


def read_profiles(path: Path) -> tuple[Profile, ...]:
    """The profiles of a TOML file: tables `[[profile]]`, each with a name and its three ranges."""
    where = path.name
    try:
        document: Mapping[str, Any] = tomllib.loads(read_bytes(path, MEBIBYTE).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is no TOML ({error})", where=where, fix="Correct it.") from None
    entries = document.get("profile")
    if set(document) != {"profile"} or not isinstance(entries, list) or not entries:
        raise BadInput("holds no [[profile]], or something else too", where=where, fix="Write only those.")
    if len(entries) > MOST_PROFILES:
        raise BadInput(f"holds {len(entries)} profiles, more than {MOST_PROFILES}", where=where)
    profiles = tuple(_profile(entry, where) for entry in entries)
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names):
        raise BadInput("two profiles have the same name", where=where, fix="Rename one.")
    return profiles


def check_profiles(profiles: Sequence[Profile], max_context: int, where: str) -> None:
    """Refuse a profile that reaches beyond the tables, or that TensorRT is known to plan badly."""
    for profile in profiles:
        new, past = profile.new_tokens, profile.past_tokens
        if new.most > max_context or past.most + new.least > max_context:
            raise BadInput(
                f"{past.most} past tokens and {new.least} to {new.most} new ones reach beyond the tables' "
                f"{max_context} positions",
                where=f"{where}: {profile.name}",
                fix="Lower them, or extend further with --factor.",
            )
        if new.most == 1 and past.most > LONG_PAST:
            raise BadInput(
                f"it is fixed at one new token, which TensorRT plans badly with {past.most} past ones",
                where=f"{where}: {profile.name}",
                fix="Write new_tokens = [1, 1, 2].",
            )
