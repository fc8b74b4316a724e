"""Reading a GGUF that anyone may have written: what its header claims is checked, metadata stays packed until
it is asked for, tensor data stays in the file.

Source of the format: ggml's `docs/gguf.md`; versions 2 and 3, little-endian.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput, NotJudged
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.gguf.blocks import dequantise
from yarnconv.targets.gguf.cursor import Cursor, broken
from yarnconv.targets.gguf.file_format import (
    ALIGNMENT,
    BLOCKS,
    MAGIC,
    SCALARS,
    TensorType,
    ValueType,
    tensor_bytes,
)

READABLE_VERSIONS = (2, 3)
MAXIMUM_KEY = 2**16 - 1  # bytes; the format's own limit
MAXIMUM_NAME = 1024  # characters of a tensor's name; ggml has 64
PREDICTING = "nextn_predict_layers"  # behind an architecture's name
MAXIMUM_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
SMALLEST_PAIR = 8 + 4 + 1  # bytes: an empty key, a type, a value of one byte
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a GGUF that has not been loaded. shape has the row length last."""

    name: str
    shape: tuple[int, ...]
    tensor_type: TensorType
    file: MappedFile
    offset: int
    nbytes: int

    @property
    def row_count(self) -> int:
        """Rows of the matrix that the tensor's last dimension is the width of."""
        return prod(self.shape[:-1])

    def packed(self, selection: "slice | NDArray[np.intp]") -> NDArray[np.uint8]:
        """The selected rows as they are stored: uint8[selected, bytes of a row]."""
        data = np.frombuffer(self.file.view(self.offset, self.nbytes), dtype=np.uint8)
        return data.reshape(self.row_count, -1)[selection]

    def rows(self, selection: "slice | NDArray[np.intp]") -> Float32Array:
        """The selected rows, dequantised: float32[selected, width].

        Raises NotJudged for a type that the gguf package cannot dequantise.
        """
        packed = self.packed(selection)
        if self.tensor_type is TensorType.F32:
            return packed.view(np.float32)
        if self.tensor_type is TensorType.F16:
            return packed.view(np.float16).astype(np.float32)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                values = dequantise(packed, self.tensor_type)
        except NotImplementedError:
            raise NotJudged(
                f"the gguf package cannot read values of type {self.tensor_type.name}",
                where=f"{self.file.path.name}: {self.name}",
                fix="Check a file in another type.",
            ) from None
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPart:
    """One file of a GGUF. packed: key -> type and value as they stand in it. alignment: of data, in bytes."""

    file: MappedFile
    packed: Mapping[str, bytes]
    tensors: Mapping[str, StoredTensor]
    alignment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """An open GGUF, of one file or of several shards.

    tensors: by name, in the files' order.
    """

    path: Path
    parts: tuple[GgufPart, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def packed(self) -> Mapping[str, bytes]:
        """The model's metadata: that of the first file."""
        return self.parts[0].packed

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The mapped files."""
        return tuple(part.file for part in self.parts)

    @property
    def predicting_layers(self) -> int:
        """How many of its blocks, the last ones, are none of the model's but predict further tokens."""
        count: int = self.scalar(f"{self.architecture}.{PREDICTING}", int, 0)
        return count

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key: a Python scalar, string or list."""
        if key not in self.packed:
            return default
        data = self.packed[key]
        kind = ValueType(int.from_bytes(data[:4], "little"))
        return Cursor(memoryview(data)[4:], self.path).value(kind)

    def scalar(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key that must be of one kind (str, bool, int, float); `default` if absent."""
        if self._is_array(key):
            raise broken(self.path, f"is a list, not a value of type {kind.__name__}", key)
        value = self.value(key, default)
        if value is default:
            return value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise broken(self.path, f"is {value!r:.80}, not a value of type {kind.__name__}", key)
        return value

    def _is_array(self, key: str) -> bool:
        return self.packed.get(key, b"")[:4] == ValueType.ARRAY.to_bytes(4, "little")

    def array(self, key: str, kind: type, most: int) -> list[Any]:
        """The list of a key, of values of one kind (str, int) and of `most` at most; empty if absent."""
        if key not in self.packed:
            return []
        if not self._is_array(key):
            raise broken(self.path, "is no list", key)
        if (count := int.from_bytes(self.packed[key][8:16], "little")) > most:
            raise broken(self.path, f"is a list of {count} values; no more than {most} are read", key)
        values: list[Any] = self.value(key)
        if values and type(values[0]) is not kind:  # lists are of one type
            raise broken(self.path, f"is a list of other values than {kind.__name__}", key)
        return values

    @property
    def weight_type(self) -> str:
        """Ggml's name of the type of most of the weights; empty where there are none."""
        values: Counter[str] = Counter()
        for tensor in self.tensors.values():
            values[tensor.tensor_type.name] += prod(tensor.shape)
        return max(values, key=lambda name: values[name], default="")

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's architecture."""
        found = self.scalar("general.architecture", str)
        if found is None:
            raise broken(self.path, "the key general.architecture is missing")
        return str(found)


def _read_metadata(cursor: Cursor, count: int) -> dict[str, bytes]:
    packed: dict[str, bytes] = {}
    for _ in range(count):
        key = cursor.name("a key")
        if len(key) > MAXIMUM_KEY:
            raise broken(cursor.path, f"a key of {len(key)} characters", key[:40])
        start = cursor.position
        cursor.skip_value(cursor.value_type())
        if key in packed:
            raise broken(cursor.path, "occurs twice", key)
        packed[key] = bytes(cursor.data[start : cursor.position])
    return packed


def _read_tensor(cursor: Cursor) -> tuple[str, tuple[int, ...], TensorType, int]:
    """(name, shape, type, offset from the start of the data)."""
    uint32 = SCALARS[ValueType.UINT32]
    name = cursor.name("a tensor")
    if len(name) > MAXIMUM_NAME:
        raise broken(cursor.path, f"a tensor's name of {len(name)} characters", name[:40])
    dimensions = cursor.number(uint32)
    if not 1 <= dimensions <= MAXIMUM_DIMENSIONS:
        raise broken(cursor.path, f"{dimensions} dimensions; ggml has 1 to {MAXIMUM_DIMENSIONS}", name)
    shape = tuple(reversed([cursor.length() for _ in range(dimensions)]))
    number, offset = cursor.number(uint32), cursor.length()
    try:
        tensor_type = TensorType(number)
    except ValueError:
        raise broken(cursor.path, f"unknown tensor type {number}", name) from None
    if not all(shape):
        raise broken(cursor.path, f"a dimension of 0 in {list(shape)}", name)
    return name, shape, tensor_type, offset


def _read_file(file: MappedFile) -> GgufPart:
    path, uint32 = file.path, SCALARS[ValueType.UINT32]
    cursor = Cursor(file.view(0, file.size), path)
    if bytes(file.view(0, len(MAGIC))) != MAGIC:
        raise BadInput("is no GGUF: it does not begin with the letters GGUF", where=path.name)
    cursor.skip(len(MAGIC))
    version = cursor.number(uint32)
    if version not in READABLE_VERSIONS:
        raise broken(path, f"GGUF version {version}; versions 2 and 3 (little-endian) are read")
    tensor_count, pair_count = cursor.length(), cursor.length()
    if tensor_count * SMALLEST_TENSOR + pair_count * SMALLEST_PAIR > file.size:
        raise broken(path, f"{tensor_count} tensors and {pair_count} keys do not fit into {file.size} bytes")
    packed = _read_metadata(cursor, pair_count)
    entries = [_read_tensor(cursor) for _ in range(tensor_count)]
    alignment = ALIGNMENT
    if "general.alignment" in packed:
        alignment = Cursor(memoryview(packed["general.alignment"])[4:], path).number(uint32)
        if alignment == 0 or alignment % 8:
            raise broken(path, f"is {alignment}, not a multiple of 8", "general.alignment")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, tensor_type, offset in entries:
        values = BLOCKS[tensor_type][0]
        if shape[-1] % values:
            raise broken(path, f"rows of {shape[-1]} values do not divide into blocks of {values}", name)
        nbytes = tensor_bytes(shape, tensor_type)
        if offset % alignment or data_start + offset + nbytes > file.size:
            raise broken(path, f"its {nbytes} bytes at {offset} are misaligned or lie beyond the file", name)
        if name in tensors:
            raise broken(path, "occurs twice", name)
        tensors[name] = StoredTensor(
            name=name,
            shape=shape,
            tensor_type=tensor_type,
            file=file,
            offset=data_start + offset,
            nbytes=nbytes,
        )
    _refuse_overlap(path, tensors)
    return GgufPart(file=file, packed=packed, tensors=tensors, alignment=alignment)


def _refuse_overlap(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """A file of a few bytes could claim any number of tensors at one place."""
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise broken(path, "lies over another tensor", tensor.name)
        end = tensor.offset + tensor.nbytes


def is_shard(path: Path) -> bool:
    """Whether a file is named as a part of a split model."""
    return _SHARD.fullmatch(path.name) is not None


def _shard_paths(path: Path) -> list[Path]:
    """The path alone, or every shard of a split model whose first one it is."""
    found = _SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    stem, number, count = found[1], int(found[2]), int(found[3])
    if number != 1:
        raise BadInput(
            f"is part {number} of a split model", where=path.name, fix="Give the first part (00001-of-...)."
        )
    return [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufFile]:
    """Open a GGUF (of a split model: its first file) and check its whole header."""
    files: list[MappedFile] = []
    parts: list[GgufPart] = []
    tensors: dict[str, StoredTensor] = {}
    paths = _shard_paths(path)
    try:
        for place in paths:
            if not place.is_file():
                raise BadInput("no such file", where=str(place))
            if place.stat().st_size < len(MAGIC) + 20:
                raise broken(place, "truncated: too short for a GGUF's header")
            files.append(MappedFile(place))
            parts.append(_read_file(files[-1]))
            if twice := tensors.keys() & parts[-1].tensors.keys():
                raise broken(place, "stands in an earlier part as well", min(twice))
            tensors |= parts[-1].tensors
        opened = GgufFile(path=path, parts=tuple(parts), tensors=tensors)
        if (count := opened.scalar("split.count", int, 1)) not in {0, len(paths)}:
            raise BadInput(
                f"is one of {count} files of a split model, and {len(paths)} are there",
                where=path.name,
                fix="Give the first part under its own name (00001-of-...), the others beside it.",
            )
        yield opened
    finally:
        for file in files:
            file.close()
