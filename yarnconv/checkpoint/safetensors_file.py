"""One safetensors file, its header checked before anything is believed, its tensors mapped lazily.

Format: 8 bytes little-endian header length, a JSON header, then the data it points into
(https://github.com/huggingface/safetensors, "Format"). The offsets must cover the data exactly.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from yarnconv.checkpoint.json_files import parse_json_object
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAXIMUM_HEADER = 100_000_000  # the limit of the reference implementation
ELEMENT_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """A tensor that has not been loaded. offset counts from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: MappedFile
    offset: int
    nbytes: int

    def load(self) -> "NDArray[np.generic]":
        """The mapped values, without a copy. bfloat16 comes as its 16 bits (uint16).

        Raises BadInput for a dtype other than F32, F16, BF16.
        """
        import numpy as np

        from yarnconv.checkpoint.floats import NUMPY_DTYPES

        if self.dtype not in NUMPY_DTYPES:
            raise BadInput(
                f"{self.name} has dtype {self.dtype}",
                where=self.file.path.name,
                fix="Only F32, F16 and BF16 weights are read; convert from the unquantised checkpoint.",
            )
        buffer = self.file.view(self.offset, self.nbytes)
        return np.frombuffer(buffer, dtype=NUMPY_DTYPES[self.dtype]).reshape(self.shape)

    @property
    def refs(self) -> "tuple[TensorRef, ...]":
        """Itself: as a source of values it is made of nothing else."""
        return (self,)

    def block(self, rows: slice, columns: slice = slice(None)) -> "NDArray[np.generic]":
        """[rows, columns] of the matrix whose columns are the last dimension; a view of the file."""
        values = self.load()
        return values.reshape(-1, self.shape[-1] if self.shape else 1)[rows, columns]


def _bad(path: Path, what: str, tensor: str | None = None) -> BadInput:
    where = f"{path.name}: {tensor}" if tensor else path.name
    return BadInput(what, where=where, fix="Download or save the file again.")


def _whole_numbers(value: Any, count: int | None = None) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and (count is None or len(value) == count)
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in value)
    )


def _tensor(path: Path, name: str, entry: Any, data_length: int) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise _bad(path, "its header entry is not an object", name)
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ELEMENT_BITS:
        raise _bad(path, f"unknown dtype {dtype!r}", name)
    if not _whole_numbers(shape) or len(shape) > 16:
        raise _bad(path, "its shape is not a list of whole numbers of 0 or more", name)
    if not _whole_numbers(offsets, 2):
        raise _bad(path, "its data_offsets are not two whole numbers of 0 or more", name)
    begin, end = offsets
    if begin > end or end > data_length:
        raise _bad(path, f"its bytes {begin}..{end} lie outside the {data_length} bytes of data", name)
    if prod(shape) * ELEMENT_BITS[dtype] != (end - begin) * 8:
        raise _bad(path, f"{end - begin} bytes do not hold {dtype} values of shape {shape}", name)
    return dtype, tuple(shape), begin, end


def open_safetensors(path: Path) -> tuple[MappedFile, dict[str, TensorRef]]:
    """Map a file and check its whole header. Raises BadInput; nothing stays open then."""
    try:
        size = path.stat().st_size
        if size < 8:
            raise _bad(path, f"truncated: {size} bytes cannot hold a safetensors header")
        file = MappedFile(path)
    except OSError as error:
        raise BadInput(f"cannot be opened ({error.strerror})", where=path.name) from None
    try:
        return file, _read_header(file)
    except BaseException:
        file.close()
        raise


def _read_header(file: MappedFile) -> dict[str, TensorRef]:
    path = file.path
    length = int.from_bytes(file.view(0, 8), "little")
    if length > file.size - 8:
        raise _bad(path, f"the header's length of {length} bytes is more than the file holds")
    if length > MAXIMUM_HEADER:
        raise _bad(path, f"the header's length of {length} bytes is above {MAXIMUM_HEADER}")
    header = parse_json_object(bytes(file.view(8, length)), f"{path.name}: header", unique_keys=True)
    header.pop("__metadata__", None)
    data_start, data_length = 8 + length, file.size - 8 - length
    found = {name: _tensor(path, name, entry, data_length) for name, entry in header.items()}
    expected_begin = 0
    for name, (_, _, begin, end) in sorted(found.items(), key=lambda item: item[1][2:]):
        if begin != expected_begin:
            problem = "overlaps the tensor before it" if begin < expected_begin else "leaves a gap"
            raise _bad(path, f"its bytes {begin}..{end}: {problem}", name)
        expected_begin = end
    if expected_begin != data_length:
        raise _bad(
            path,
            f"the header describes {expected_begin} bytes of data, the file holds {data_length}",
        )
    return {
        name: TensorRef(
            name=name,
            dtype=dtype,
            shape=shape,
            file=file,
            offset=data_start + begin,
            nbytes=end - begin,
        )
        for name, (dtype, shape, begin, end) in found.items()
    }
