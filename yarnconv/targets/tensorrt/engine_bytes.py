"""What a serialised engine's own bytes say. No contract of NVIDIA's, but what was observed; so each is a fact
that may be missing, never one that is guessed.

Observed with TensorRT-RTX 1.7: tables stand in the plan verbatim; the header holds "vtrt" at byte 0, the
plan's size as a 64-bit number at byte 16, the version in bytes 24 to 27 and a bit for each compute capability
in the 32-bit number at byte 32; the names of inputs and outputs stand in it, and of each profile but the
first again with " [profile N]".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.mapped_file import MappedFile

MAGIC = b"vtrt"
CAPABILITY_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
HEADER = 64
WINDOW = 2**26  # bytes searched at once
NEEDLE = 2**12  # bytes of a table that are looked for before all of it is compared
_PROFILE = re.compile(rb"input_ids \[profile (\d{1,3})\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """size: bytes of the plan. version: TensorRT-RTX's. compute_capabilities: it was built for."""

    size: int
    version: str
    compute_capabilities: tuple[str, ...]


def read_header(file: MappedFile) -> Header | None:
    """None where it is none of TensorRT-RTX's."""
    if file.size < HEADER:
        return None
    data = bytes(file.view(0, HEADER))
    if data[:4] != MAGIC or data[28:32] != MAGIC:
        return None
    bits = int.from_bytes(data[32:36], "little")
    return Header(
        size=int.from_bytes(data[16:24], "little"),
        version=".".join(map(str, data[24:28])),
        compute_capabilities=tuple(name for number, name in enumerate(CAPABILITY_BITS) if bits >> number & 1),
    )


def _occurrences(file: MappedFile, needle: bytes) -> Iterator[int]:
    """Where the bytes stand, in order."""
    begin = 0
    while begin < file.size:
        length = min(WINDOW + len(needle) - 1, file.size - begin)
        window, found = bytes(file.view(begin, length)), -1
        while (found := window.find(needle, found + 1)) >= 0:
            yield begin + found
        begin += WINDOW


def find_array(file: MappedFile, array: NDArray[np.generic]) -> list[int]:
    """Offsets at which all of an array's bytes stand. [rows, ...], of at least one row."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    middle = len(array) // 2 * (data.nbytes // len(array))  # the first rows are much alike
    needle = data[middle : middle + NEEDLE].tobytes()
    found = []
    for place in _occurrences(file, needle):
        begin = place - middle
        if begin < 0 or begin + data.nbytes > file.size:
            continue
        stored = np.frombuffer(file.view(begin, data.nbytes), np.uint8)
        if np.array_equal(stored, data):
            found.append(begin)
    return found


def count_profiles(file: MappedFile) -> int:
    """Optimisation profiles, by the names of the input input_ids; 0 where there is not even one."""
    if next(_occurrences(file, b"input_ids"), None) is None:
        return 0
    numbers = [0]
    for place in _occurrences(file, b"input_ids [profile "):
        length = min(32, file.size - place)
        if (match := _PROFILE.match(bytes(file.view(place, length)))) is not None:
            numbers.append(int(match[1]))
    return 1 + max(numbers)


def missing_names(file: MappedFile, names: Sequence[str]) -> list[str]:
    """Those of the inputs' and outputs' names that do not stand in the plan."""
    return [name for name in names if next(_occurrences(file, name.encode()), None) is None]
