"""The GGUF container, version 3: typed key/value pairs, tensor infos, aligned tensor data.

Source: ggml's `docs/gguf.md`. Little-endian throughout.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
# A float32 holds a value to 6e-8; factor 3.9999 for 4 is 2.5e-5 away.
VALUE_TOLERANCE = 1e-6


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
    """ggml's tensor types. (The gguf package has them too; to import it takes longer than to read a header.)

    A file may hold any of them; what is written by a conversion are float types and Q8_0.
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


# (values, bytes) of a block; a row holds whole blocks
BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q8_1: (32, 40),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.Q8_K: (256, 292),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ1_S: (256, 50),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ3_S: (256, 110),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ4_XS: (256, 136),
    TensorType.I8: (1, 1),
    TensorType.I16: (1, 2),
    TensorType.I32: (1, 4),
    TensorType.I64: (1, 8),
    TensorType.F64: (1, 8),
    TensorType.IQ1_M: (256, 56),
    TensorType.BF16: (1, 2),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q1_0: (128, 18),
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


def same(one: object, other: object) -> bool:
    """Whether two values are one, where numbers are stored as float32."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=VALUE_TOLERANCE)
    return one == other


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

    def booleans(self, key: str, values: Sequence[bool]) -> None:
        """An array of true and false."""
        self._set(key, ValueType.ARRAY, _array(ValueType.BOOL, len(values), bytes(values)))

    def pieces(self) -> Iterator[bytes]:
        """All pairs, in the pieces that a file joins: so a vocabulary is copied once."""
        for key, value in self.packed.items():
            yield _string(key)
            yield value


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
    pieces = [head, *metadata.pieces(), *(tensor.pack() for tensor in tensors)]
    size = sum(map(len, pieces))
    return b"".join([*pieces, bytes(align(size, alignment) - size)])
