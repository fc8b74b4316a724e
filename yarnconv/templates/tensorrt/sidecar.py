"""Reads yarnconv.json, which says what the engine beside it is. It may be a stranger's: no number is believed
before it is checked, as memory is taken by them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDECAR, SCHEMA = "yarnconv.json", 1
# what the sidecar calls a runtime: its module
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# a type of keys and values: TensorRT's name of it, and bytes
TYPES = {"fp16": ("HALF", 2), "bf16": ("BF16", 2), "fp32": ("FLOAT", 4)}
LONGEST_SIDECAR = 2**24  # bytes


class Unusable(Exception):
    """What was found and what to do about it; ends a command with `code`."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Profile:
    """Least, usual and most tokens that an optimisation profile takes: new ones, and past ones.

    total: most of both together.
    """

    new: tuple[int, int, int]
    past: tuple[int, int, int]
    total: int


def choose(profiles: Sequence[Profile], past: int, wanted: int) -> tuple[int, int] | None:
    """The profile that takes the most of the `wanted` tokens behind `past` ones, and how many those are; of
    several the one whose usual tokens are as many.
    """
    fitting = []
    for index, profile in enumerate(profiles):
        count = min(wanted, profile.new[2], profile.total - past)
        if profile.past[0] <= past <= profile.past[2] and count >= profile.new[0]:
            fitting.append((count, -abs(profile.new[1] - count), -index))
    if not fitting:
        return None
    count, _, index = max(fitting)
    return -index, count


def reach(profiles: Sequence[Profile]) -> int:
    """Tokens that can be run if they come one at a time."""
    reached = 0
    while further := [
        min(profile.past[2] + 1, profile.total)
        for profile in profiles
        if profile.new[0] <= 1 and profile.past[0] <= reached <= min(profile.past[2], profile.total - 1)
    ]:
        reached = max(further)
    return reached


class _Sidecar:
    """Values of a JSON document, each checked when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size > LONGEST_SIDECAR:
                raise ValueError("too long")
            self._document = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise Unusable(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise Unusable(f"{path}: not what yarnconv writes ({error})") from None
        if self.number("schema_version", 1) != SCHEMA:
            raise Unusable(f"{path}: a later yarnconv wrote it; take the scripts that came with it")

    def value(self, key: str) -> Any:
        found = self._document
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise Unusable(f"{self.path}: no {key} in it")
            found = found[part]
        return found

    def wrong(self, key: str, found: Any, wanted: str) -> Unusable:
        return Unusable(f"{self.path}: {key} is {str(found)[:60]!r}, not {wanted}")

    def number(self, key: str, least: int, most: int = 2**31 - 1, found: Any = None) -> int:
        found = self.value(key) if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
            raise self.wrong(key, found, f"a number from {least} to {most}")
        return found

    def numbers(self, key: str, least: int, most: int = 2**31 - 1, found: Any = None) -> list[int]:
        found = self.value(key) if found is None else found
        if not isinstance(found, list) or len(found) > 2**16:
            raise self.wrong(key, found, "a list of numbers")
        return [self.number(key, least, most, item) for item in found]

    def ascending(self, key: str, least: int, count: int | None = None, found: Any = None) -> list[int]:
        numbers = self.numbers(key, least, found=found)
        if not numbers or numbers != sorted(numbers) or (count is not None and len(numbers) != count):
            raise self.wrong(key, numbers, f"{count or 'some'} ascending numbers")
        return numbers

    def word(self, key: str, known: Sequence[str] | None = None) -> str:
        found = self.value(key)
        if not isinstance(found, str) or (known is not None and found not in known):
            raise self.wrong(key, found, f"one of {', '.join(known)}" if known else "a word")
        return "".join(letter if letter.isprintable() else "?" for letter in found[:100])

    def profiles(self) -> tuple[Profile, ...]:
        entries = self.value("profiles")
        if not isinstance(entries, list) or not 1 <= len(entries) <= 64:
            raise self.wrong("profiles", entries, "a list")
        found = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise self.wrong("profiles", entry, "an object")
            new, past = (
                self.ascending(f"profiles: {key}", least, 3, found=entry.get(key, ""))
                for key, least in (("new_tokens", 1), ("past_tokens", 0))
            )
            found.append(Profile((new[0], new[1], new[2]), (past[0], past[1], past[2]), new[2] + past[2]))
        return tuple(found)

    def engine(self) -> Path:
        name = self.word("engine.file")
        path = self.path.with_name(name) if name not in ("", ".", "..") and Path(name).name == name else None
        if path is None:
            raise self.wrong("engine.file", name, "the name of a file beside it")
        size = self.number("engine.bytes", 1, 2**63)
        if not path.is_file():
            raise Unusable(f"{path}: no such file")
        if path.stat().st_size != size:
            raise Unusable(f"{path}: {path.stat().st_size} bytes, where {SIDECAR} has {size}; copy it again")
        return path


class Facts:
    """What yarnconv.json says of the engine beside it."""

    def __init__(self, directory: Path) -> None:
        sidecar = _Sidecar(directory / SIDECAR)
        self.engine = sidecar.engine()
        self.runtime = sidecar.word("runtime.name", tuple(MODULES))
        self.version = sidecar.word("runtime.version")
        if not re.fullmatch(r"\d[\w.+]*", self.version, re.ASCII):  # it will stand in a line to be copied
            raise sidecar.wrong("runtime.version", self.version, "a version")
        self.cache_type = sidecar.word("graph.cache_type", tuple(TYPES))
        self.max_context = sidecar.number("graph.max_context", 1)
        self.buckets = sidecar.ascending("graph.bucket_contexts", 1)
        self.vocabulary = sidecar.number("graph.vocab_size", 1, 2**24)
        self.layers = sidecar.number("graph.layers", 1, 2**12)
        self.heads = sidecar.number("graph.key_value_heads", 1, 2**12)
        self.head_dim = sidecar.number("graph.head_dim", 1, 2**14)
        self.last_token_only = sidecar.value("graph.last_token_only") is True
        self.end_tokens = set(sidecar.numbers("eos_token_ids", 0))
        self.profiles = sidecar.profiles()
        capabilities = sidecar.value("compute_capabilities")
        self.capabilities = [str(c)[:10] for c in capabilities] if isinstance(capabilities, list) else []

    @property
    def slots(self) -> list[str]:
        """The cache's tensors, without what tells past from present."""
        return [f"{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]
