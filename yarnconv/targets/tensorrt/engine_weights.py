"""The checkpoint's weights, looked for in an engine's own bytes.

Observed with TensorRT-RTX 1.7 (tests/targets/tensorrt/test_engine_weights.py): every float matrix stands in
the plan in the engine's type, row by row, as [out, in] or as [in, out], in some cases side by side with
another. So a few rows of each are looked for, in both forms, each by itself. Where they do not stand in it
nothing is known of a tensor: it is no contract of NVIDIA's.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import convert_floats
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.safetensors_file import TensorRef

ALIGNED = 8  # bytes; rows are looked for where they begin on such a boundary
ROW_STEP = 4  # rows of two-byte values lie so far apart on it
SAMPLED = 4  # rows of a form
LONGEST_ROW = 1024  # values of a row that are compared: a column of all rows would read the whole file
WINDOW = 2**24  # bytes looked through at once
MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio
MOST_LOOKED, MOST_PLACES = 4096, 16  # of one row: what stands everywhere, such as zeros, tells nothing


@dataclass(frozen=True, slots=True)
class _Row:
    """One row that is looked for. tensor: whose. form: 0 as the checkpoint has it, 1 turned round. places:
    where it was found.
    """

    tensor: str
    form: int
    index: int
    data: bytes
    places: list[int]


def _rows(name: str, source: TensorRef, dtype: str) -> Iterator[_Row]:
    values: NDArray[np.generic] = source.load()
    matrices = (values, values.T) if values.ndim == 2 else (values.reshape(1, -1),)
    for form, matrix in enumerate(matrices):
        steps = (len(matrix) - 1) // ROW_STEP
        chosen = {int(step) * ROW_STEP for step in np.linspace(0, steps, SAMPLED)}
        for index in sorted(chosen):
            row = np.ascontiguousarray(matrix[index : index + 1, :LONGEST_ROW])
            made = np.ascontiguousarray(convert_floats(row, source.dtype, dtype))
            yield _Row(name, form, index, made.view(np.uint8).tobytes(), [])


def _hashed(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """16 bits of each 64, as evenly spread as weights are not (Fibonacci hashing)."""
    hashed: NDArray[np.uint16] = (words * MIXER >> np.uint64(48)).astype(np.uint16)
    return hashed


def _candidates(file: MappedFile, keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """(place, key) wherever the first eight bytes of a row stand."""
    ordered = np.sort(keys)
    known = np.zeros(2**16, np.bool_)
    known[_hashed(ordered)] = True
    looked = np.zeros(len(ordered), np.int64)
    for begin in range(0, file.size - file.size % ALIGNED, WINDOW):
        length = min(WINDOW, file.size - begin)
        words = np.frombuffer(file.view(begin, length - length % ALIGNED), np.uint64)
        likely = np.flatnonzero(known[_hashed(words)])
        found = words[likely]
        places = np.searchsorted(ordered, found)
        exact = ordered[np.minimum(places, len(ordered) - 1)] == found
        likely, numbers = likely[exact], places[exact]
        for number in np.unique(numbers):
            here = likely[numbers == number][: MOST_LOOKED - looked[number]]
            looked[number] += len(here)
            for index in here:
                yield begin + int(index) * ALIGNED, int(ordered[number])


def _stand_in_order(rows: Sequence[_Row]) -> bool:
    """Whether rows of one form were all found, as far from each other as their indices say."""
    first, *others = rows
    if not others:
        return bool(first.places)
    for begin, second in itertools.product(first.places, others[0].places):
        stride, rest = divmod(second - begin, others[0].index - first.index)
        if rest == 0 and stride > 0:
            origin = begin - first.index * stride
            if all(origin + row.index * stride in row.places for row in others):
                return True
    return False


def find_weights(
    file: MappedFile, tensors: Iterable[tuple[str, TensorRef]], dtype: str
) -> Mapping[str, bool]:
    """Whether each tensor's sampled rows all stand in the engine, in one of the forms.

    dtype: safetensors' name of the engine's type. file: let go of afterwards.
    """
    rows = [row for name, source in tensors for row in _rows(name, source, dtype)]
    by_key: dict[int, list[_Row]] = {}
    for row in rows:
        key = int.from_bytes(row.data[:ALIGNED].ljust(ALIGNED, b"\0"), "little")
        by_key.setdefault(key, []).append(row)
    for place, key in _candidates(file, np.array(list(by_key), np.uint64)) if rows else ():
        for row in by_key[key]:
            fits = len(row.places) < MOST_PLACES and place + len(row.data) <= file.size
            if fits and file.view(place, len(row.data)) == row.data:
                row.places.append(place)
    file.forget()
    forms: dict[str, dict[int, list[_Row]]] = {}
    for row in rows:
        forms.setdefault(row.tensor, {}).setdefault(row.form, []).append(row)
    return {name: any(map(_stand_in_order, by_form.values())) for name, by_form in forms.items()}
