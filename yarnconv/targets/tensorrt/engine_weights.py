"""The checkpoint's weights, looked for in an engine's own bytes.

Observed with TensorRT-RTX 1.7 (tests/targets/tensorrt/test_engine_weights.py): every float matrix stands in
the plan in the engine's type, row by row, as [out, in] or as [in, out], in some cases side by side with
another; one of fewer bits as its codes and its scales, in either layout; a fused matrix in some cases taken
apart; and of a weight that a norm adds one to the sum alone, folded, in float32. So a few rows of each are
looked for in every form. Where they do not stand in it nothing is known of a tensor: it is no contract of
NVIDIA's.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import convert_floats, to_float32
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.sources import ColumnTensor, PickedTensor, TensorSource, load, row_count
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.external_data import ExternalTensor
from yarnconv.targets.onnx.options import FLOAT32_ROLES
from yarnconv.targets.onnx.quantisation import INT4, INT4_BLOCK, SCHEMES, quantised, quantised_rows
from yarnconv.targets.onnx.weights import FLOAT_TYPES, ElementType, as_matrix, matrix_shape

ALIGNED = 8  # bytes; rows are looked for where they begin on such a boundary
ROW_STEP = 4  # rows of two-byte values lie so far apart on it
SAMPLED = 4  # rows of a form
SHORTEST_ROW = 4  # values of two bytes that fill what is looked for
LONGEST_ROW = 1024  # values of a row that are compared: a column of all rows would read the whole file
WINDOW = 2**24  # bytes looked through at once
FLOATS, CODES, SCALES = "floats", "codes", "scales"
SIGNED = np.uint8(0x88)  # both codes of a byte without what was added to them
MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio
# What stands everywhere, such as zeros, tells nothing: places of one beginning that are looked at, rows that
# begin alike, places of one row that are kept.
MOST_LOOKED, MOST_ALIKE, MOST_PLACES = 4096, 64, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """One of the checkpoint's tensors. fused: rows of each matrix that it is made of, nothing where that is
    one only. adds_one: whether its norm multiplies by 1 + weight.
    """

    name: str
    source: TensorSource
    fused: tuple[int, ...] = ()
    adds_one: bool = False
    in_float32: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that stand in order, of one tensor. row: makes the bytes of one."""

    tensor: str
    kind: str
    count: int
    row: Callable[[int], NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row that is looked for. part: whose. places: where it was found."""

    part: _Part
    index: int
    data: bytes
    places: list[int]


def _rows(source: TensorSource, first: int, last: int) -> TensorSource:
    """Rows first..last-1 of a matrix, or values of a vector."""
    if len(source.shape) == 1:
        source = ColumnTensor(of=source)
    shape = (last - first, source.shape[-1])
    return PickedTensor(shape=shape, of=source, ranges=(range(first, last),))


def sought_weights(plan: ConversionPlan) -> tuple[Sought, ...]:
    """Every tensor of a plan."""
    found = []
    for binding in plan.bindings:
        expected, model = binding.expected, plan.description
        fused: tuple[int, ...] = ()
        if expected.layer is not None:
            layer = model.layers[expected.layer]
            attention, width, latent = layer.attention, layer.attention.head_dim, layer.attention.latent
            few = attention.key_value_heads * width
            parts: dict[str, tuple[int, ...]] = {
                "query_key_value": (attention.heads * width, few, few),
                "gate_up": (expected.shape[0] // 2,) * 2,
            }
            if latent is not None:
                parts["key_value_down"] = latent.rank, latent.rotary_dim
                parts["key_value_up"] = attention.heads * (latent.plain_dim, latent.value_dim)
            fused = parts.get(expected.role.removesuffix("_bias"), ())
        adds_one = model.norms_add_one and expected.role.endswith("_norm")
        source = as_matrix(expected.role, binding.source)
        wide = expected.role in FLOAT32_ROLES
        found.append(
            Sought(name=expected.name, source=source, fused=fused, adds_one=adds_one, in_float32=wide)
        )
    return tuple(found)


def _float_row(matrix: NDArray[np.generic], source: str, target: str, index: int) -> NDArray[np.generic]:
    row = np.ascontiguousarray(matrix[index : index + 1, :LONGEST_ROW])
    return convert_floats(row, source, target)


def _source_row(source: TensorSource, target: str, index: int) -> NDArray[np.generic]:
    row = np.ascontiguousarray(source.block(slice(index, index + 1), slice(LONGEST_ROW)))
    return convert_floats(row, source.dtype, target)


def _code_row(codes: ExternalTensor, index: int) -> NDArray[np.generic]:
    """One row of codes [in, out], which are made a block of inputs at a time."""
    begin = index - index % INT4_BLOCK
    block = codes.rows(begin, min(begin + INT4_BLOCK, codes.shape[0]))
    row: NDArray[np.generic] = block[index - begin]
    return row


def _as_it_is(name: str, source: TensorSource, element: ElementType, dtype: str) -> Iterator[_Part]:
    """The forms in the checkpoint's layout."""
    count = row_count(source.shape)
    yield _Part(name, FLOATS, count, partial(_source_row, source, element.dtype))
    if SCHEMES.get(dtype) is INT4 and len(source.shape) == 2 and INT4.fits(source.shape):
        codes, scales = quantised_rows(name, source, element)
        yield _Part(name, CODES, count, lambda row: codes.rows(row, row + 1) ^ SIGNED)
        yield _Part(name, SCALES, count, lambda row: scales.rows(row, row + 1))


def _turned(name: str, source: TensorSource, element: ElementType, dtype: str) -> Iterator[_Part]:
    """The forms of a matrix that is turned round, by its first rows."""
    if len(source.shape) < 2:
        return
    # as many as a row that is turned round has values that are compared
    first, scheme = _rows(source, 0, min(row_count(source.shape), LONGEST_ROW)), SCHEMES.get(dtype)
    matrix = load(first).T
    yield _Part(name, FLOATS, len(matrix), partial(_float_row, matrix, source.dtype, element.dtype))
    if scheme is not None and scheme.fits(matrix_shape(first)):
        codes, scales = quantised(name, first, scheme, element)
        yield _Part(name, CODES, len(matrix), partial(_code_row, codes))
        if len(scales.shape) == 2:
            yield _Part(name, SCALES, scales.shape[0], lambda row: scales.rows(row, row + 1))
        else:
            yield _Part(name, SCALES, 1, lambda row: scales.rows(0, scales.shape[0]))


def _sampled(part: _Part) -> Iterator[_Row]:
    steps = (part.count - 1) // ROW_STEP
    for index in sorted({int(step) * ROW_STEP for step in np.linspace(0, steps, SAMPLED)}):
        data = np.ascontiguousarray(part.row(index)).view(np.uint8).tobytes()
        if len(data) >= ALIGNED:  # a shorter one could not be looked for
            yield _Row(part, index, data, [])


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


def _find(file: MappedFile, parts: Iterable[_Part]) -> set[str]:
    """The tensors whose rows all stand in the engine: of floats, or of both codes and scales."""
    rows = [row for part in parts for row in _sampled(part)]
    by_key: dict[int, list[_Row]] = {}
    for row in rows:
        by_key.setdefault(int.from_bytes(row.data[:ALIGNED], "little"), []).append(row)
    by_key = {key: alike for key, alike in by_key.items() if len(alike) <= MOST_ALIKE}
    for place, key in _candidates(file, np.array(list(by_key), np.uint64)) if by_key else ():
        for row in by_key[key]:
            fits = len(row.places) < MOST_PLACES and place + len(row.data) <= file.size
            if fits and file.view(place, len(row.data)) == row.data:
                row.places.append(place)
    file.forget()
    stand: dict[str, dict[str, bool]] = {}
    for part, of_part in itertools.groupby(rows, key=lambda row: row.part):
        stand.setdefault(part.tensor, {})[part.kind] = _stand_in_order(list(of_part))
    return {
        name
        for name, kinds in stand.items()
        if kinds.get(FLOATS, False) or (kinds.get(CODES, False) and kinds.get(SCALES, True))
    }


def _as_sum(one: Sought) -> Iterator[_Part]:
    """One more than a norm's weight, in float32."""
    values = to_float32(load(one.source).reshape(1, -1), one.source.dtype) + np.float32(1)
    yield _Part(one.name, FLOATS, 1, partial(_float_row, values, "F32", "F32"))


def _matrices(one: Sought) -> Iterator[tuple[str, TensorSource]]:
    """The matrices that a fused one is made of, each by a name of its own."""
    first = 0
    for number, rows in enumerate(one.fused):
        yield f"{one.name} {number}", _rows(one.source, first, first + rows)
        first += rows


def find_weights(
    file: MappedFile, tensors: Iterable[Sought], element: ElementType, dtype: str
) -> Mapping[str, bool]:
    """Whether each tensor's sampled rows all stand in the engine, in one of the forms. Those whose rows are
    too short to be looked for are left out.

    element: the type that the engine computes in. dtype: of its matrices. file: let go of afterwards.
    """
    sought = [one for one in tensors if one.source.shape and one.source.shape[-1] >= SHORTEST_ROW]
    found = dict.fromkeys((one.name for one in sought), False)
    for in_float32, own, stored in ((False, element, dtype), (True, FLOAT_TYPES["fp32"], "")):
        whole = {one.name: one.source for one in sought if one.in_float32 == in_float32}
        found |= dict.fromkeys(_in_some_form(file, whole, own, stored), True)
    missing = [one for one in sought if not found[one.name]]
    apart = {one.name: dict(_matrices(one)) for one in missing if one.fused}
    every = {name: source for inside in apart.values() for name, source in inside.items()}
    there = _in_some_form(file, every, element, dtype)
    found |= {name: True for name, inside in apart.items() if inside.keys() <= there}
    folded = _find(file, (part for one in missing if one.adds_one for part in _as_sum(one)))
    return found | dict.fromkeys(folded, True)


def _in_some_form(
    file: MappedFile, tensors: Mapping[str, TensorSource], element: ElementType, dtype: str
) -> set[str]:
    """Those whose rows all stand in the engine, in the checkpoint's layout or turned round."""
    found, waiting = set[str](), dict(tensors)
    for forms in (_as_it_is, _turned):
        parts = (part for name, source in waiting.items() for part in forms(name, source, element, dtype))
        here = _find(file, parts)
        found |= here
        waiting = {name: source for name, source in waiting.items() if name not in here}
    return found
