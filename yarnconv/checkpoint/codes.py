"""Values that a checkpoint stores as codes, with a scale for each block; sources as in `sources`."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import row_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yarnconv.checkpoint.floats import Rows

MXFP4_BLOCK = 32  # values that share a scale
LEAST_EXPONENT = 127  # that of 1 in E8M0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Tensor:
    """E4M3 codes [out, in] with a factor for each square block (DeepSeek-V3, arXiv:2412.19437, section 3.3):
    float32 values, of one rounding.
    """

    codes: TensorRef
    factors: TensorRef
    block_size: tuple[int, int]

    @property
    def name(self) -> str:
        """In the checkpoint."""
        return self.codes.name

    @property
    def dtype(self) -> str:
        """As which the values come."""
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        return self.codes.shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Codes and factors."""
        return self.codes, self.factors

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Dequantised."""
        import numpy as np

        from yarnconv.checkpoint.floats import to_float32

        height, width = self.block_size
        values = _from_e4m3(_read_rows(self.codes, rows, columns))
        of = np.arange(self.shape[0])[rows] // height
        lowest = int(of[0]) if len(of) else 0
        factors = self.factors.block(slice(lowest, int(of[-1]) + 1 if len(of) else 0))
        factors, of = to_float32(factors, self.factors.dtype), of - lowest
        first = 0
        with np.errstate(over="ignore"):
            for last in (*(np.flatnonzero(np.diff(of)) + 1), len(of)):  # rows of one block have the same ones
                if first < last:
                    repeated = np.repeat(factors[of[first]], width)[: self.shape[1]]
                    values[first:last] *= repeated[columns]
                first = last
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Tensor:
    """E2M1 codes, two in a byte, with a power of two for each 32 of a row (OCP Microscaling Formats 1.0,
    sections 5.3 and 6.3): bfloat16 values, exact.
    """

    name: str
    codes: TensorRef
    exponents: TensorRef

    @property
    def dtype(self) -> str:
        """As which the values come: three bits of mantissa and eight of an exponent fit into it."""
        return "BF16"

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        *rows, blocks, _ = self.codes.shape
        return *rows, blocks * MXFP4_BLOCK

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Codes and exponents."""
        return self.codes, self.exponents

    def packed(self, rows: slice) -> "tuple[NDArray[np.uint8], NDArray[np.uint8]]":
        """Codes [rows, blocks, 16], the first of two in a byte's low half, and exponents [rows, blocks]."""
        *_, blocks, width = self.codes.shape
        return row_bytes(self.codes).reshape(-1, blocks, width)[rows], row_bytes(self.exponents)[rows]

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Dequantised; whole blocks of columns, and of those the ones that are asked for."""
        import numpy as np

        first, last, step = columns.indices(self.shape[-1])
        codes, exponents = self.packed(rows)
        begin, end = first // MXFP4_BLOCK, -(-last // MXFP4_BLOCK)
        codes, exponents = codes[:, begin:end], exponents[:, begin:end]
        halves = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(*exponents.shape, MXFP4_BLOCK)
        with np.errstate(over="ignore"):  # exponents that no number has
            values = np.ldexp(_e2m1()[halves], (exponents.astype(np.int32) - LEAST_EXPONENT)[..., None])
        bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        offset = begin * MXFP4_BLOCK
        return bits.reshape(len(bits), -1)[:, first - offset : last - offset : step]


def _read_rows(ref: TensorRef, rows: slice, columns: slice) -> "NDArray[np.uint8]":
    """[rows, columns] of a matrix of bytes: read where whole rows stand together, else a view."""
    import numpy as np

    count, width = ref.shape
    first, last, step = rows.indices(count)
    if step != 1 or columns.indices(width) != (0, width, 1):
        return row_bytes(ref)[rows, columns]
    read = np.empty((max(last - first, 0), width), np.uint8)
    ref.file.read(ref.offset + first * width, read.reshape(-1).data)
    return read


@cache
def _e4m3() -> "NDArray[np.float32]":
    """The values of the 256 codes: a sign, four bits of exponent, three of mantissa, no infinities."""
    import numpy as np

    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    values = np.where(exponent > 0, normal, np.ldexp(mantissa / 8.0, -6))
    values = np.where(codes & 127 == 127, np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float32)


@cache
def _e4m3_pairs() -> "NDArray[np.uint64]":
    """The values of two codes at once, by the number that their bytes are in the machine's order."""
    import numpy as np

    codes = np.arange(2**16, dtype=np.uint16).view(np.uint8)
    return _e4m3()[codes].view(np.uint64)


def _from_e4m3(codes: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """The values of codes, new, two at once where a row has pairs: half as many look-ups."""
    import numpy as np

    if codes.shape[-1] % 2:
        return np.take(_e4m3(), codes)
    pairs = np.ascontiguousarray(codes).view(np.uint16)
    return np.take(_e4m3_pairs(), pairs).view(np.float32)


@cache
def _e2m1() -> "NDArray[np.float32]":
    """The values of the sixteen codes: a sign, two bits of exponent, one of mantissa."""
    import numpy as np

    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    return np.asarray(positive + [-value for value in positive], np.float32)
