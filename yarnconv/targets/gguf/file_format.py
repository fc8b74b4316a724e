"""The GGUF container, version 3: typed key/value pairs, tensor infos, aligned tensor data.

Source: ggml's `docs/gguf.md`. Little-endian throughout.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32


class ValueType(IntEnum):
    """The types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class TensorType(IntEnum):
    """ggml's tensor types, those that a conversion can write."""

    F32 = 0
    F16 = 1
    Q8_0 = 8
    BF16 = 30


# (values, bytes) of a block; a row holds whole blocks
BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q8_0: (32, 34),
}

SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_LENGTH = struct.Struct("<Q")
_TYPE = struct.Struct("<I")


def align(offset: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of the alignment."""
    return -(-offset // alignment) * alignment


def tensor_bytes(shape: Sequence[int], tensor_type: TensorType) -> int:
    """Bytes of a tensor; `shape` has the row length last."""
    values, size = BLOCKS[tensor_type]
    count = 1
    for dimension in shape:
        count *= dimension
    return count // values * size


def _string(text: str) -> bytes:
    # Vocabularies hold lone surrogates as often as not; llama.cpp takes bytes.
    data = text.encode("utf-8", errors="surrogatepass")
    return _LENGTH.pack(len(data)) + data


def _strings(values: Sequence[str]) -> bytes:
    # one pass per step, each inside the interpreter's C code: a vocabulary has half a million strings
    try:
        data = list(map(str.encode, values))
    except UnicodeEncodeError:
        data = [value.encode("utf-8", errors="surrogatepass") for value in values]
    return b"".join(chain.from_iterable(zip(map(_LENGTH.pack, map(len, data)), data, strict=True)))


def _array(element: ValueType, length: int, data: bytes) -> bytes:
    return _TYPE.pack(element) + _LENGTH.pack(length) + data


@dataclass(slots=True)
class Metadata:
    """Key/value pairs in the order they are set, packed as they are set."""

    packed: dict[str, bytes] = field(default_factory=dict)

    def _set(self, key: str, value_type: ValueType, data: bytes) -> None:
        self.packed[key] = _TYPE.pack(value_type) + data

    def string(self, key: str, value: str) -> None:
        """A string."""
        self._set(key, ValueType.STRING, _string(value))

    def uint32(self, key: str, value: int) -> None:
        """An unsigned 32-bit integer."""
        self._set(key, ValueType.UINT32, SCALARS[ValueType.UINT32].pack(value))

    def uint16(self, key: str, value: int) -> None:
        """An unsigned 16-bit integer."""
        self._set(key, ValueType.UINT16, SCALARS[ValueType.UINT16].pack(value))

    def int32(self, key: str, value: int) -> None:
        """A signed 32-bit integer."""
        self._set(key, ValueType.INT32, SCALARS[ValueType.INT32].pack(value))

    def float32(self, key: str, value: float) -> None:
        """A 32-bit float, rounded here and once."""
        self._set(key, ValueType.FLOAT32, SCALARS[ValueType.FLOAT32].pack(value))

    def boolean(self, key: str, value: bool) -> None:
        """True or false."""
        self._set(key, ValueType.BOOL, SCALARS[ValueType.BOOL].pack(value))

    def strings(self, key: str, values: Sequence[str]) -> None:
        """An array of strings."""
        self._set(key, ValueType.ARRAY, _array(ValueType.STRING, len(values), _strings(values)))

    def float32s(self, key: str, values: Sequence[float]) -> None:
        """An array of 32-bit floats."""
        self._set(
            key,
            ValueType.ARRAY,
            _array(ValueType.FLOAT32, len(values), struct.pack(f"<{len(values)}f", *values)),
        )

    def int32s(self, key: str, values: Sequence[int]) -> None:
        """An array of signed 32-bit integers."""
        self._set(
            key,
            ValueType.ARRAY,
            _array(ValueType.INT32, len(values), struct.pack(f"<{len(values)}i", *values)),
        )

    def pack(self) -> bytes:
        """All pairs, as they stand in the file."""
        return b"".join([_string(key) + value for key, value in self.packed.items()])


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor's entry. shape has the row length last (the file stores it reversed); tensor_type is ggml's
    number; offset counts from the start of the tensor data.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: int
    offset: int

    def pack(self) -> bytes:
        """The entry as it stands in the file."""
        dimensions = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *reversed(self.shape))
        return _string(self.name) + dimensions + struct.pack("<IQ", self.tensor_type, self.offset)


def pack_header(metadata: Metadata, tensors: Sequence[TensorInfo], alignment: int = ALIGNMENT) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata.packed))
    data = head + metadata.pack() + b"".join([tensor.pack() for tensor in tensors])
    return data.ljust(align(len(data), alignment), b"\0")
