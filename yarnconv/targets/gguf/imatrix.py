"""An importance matrix, by which llama.cpp's quantiser weighs what a column of a matrix is multiplied with.

Two formats, both from strangers: a GGUF with `NAME.in_sum2` and `NAME.counts` for each tensor, and the older
.dat: counted entries of (name, calls, values), and perhaps chunks and a data set at the end. Source:
llama.cpp's `common/imatrix-loader.cpp` and `tools/quantize/quantize.cpp` (`load_imatrix`).
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.gguf.file_format import MAGIC, TensorType
from yarnconv.targets.gguf.reader import GgufFile, StoredTensor, open_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
MAXIMUM_NAME = 256  # bytes; ggml's names have 64
SHOWN_DATASET = 127  # bytes that llama.cpp has room for
# Whose values llama.cpp leaves out where their number is another: of embeddings rows are looked up.
LOOKED_UP = "token_embd.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imatrix:
    """values: by tensor, float32[width], finite and not below 0. dataset: what it was made from; empty where
    it does not say. chunks: how much of that, 0 where it does not say.
    """

    path: Path
    values: Mapping[str, Float32Array]
    dataset: str
    chunks: int

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(values.nbytes for values in self.values.values())


def _bad(path: Path, what: str) -> BadInput:
    return BadInput(what, where=path.name, fix="Give a file that llama.cpp's llama-imatrix wrote.")


def _checked(path: Path, name: str, values: Float32Array) -> Float32Array:
    if not np.isfinite(values).all() or (values < 0).any():
        raise _bad(path, f"{name[:80]!r} has values that no mean of squares can have")
    return values


def _mean_squares(path: Path, name: str, sums: StoredTensor, counts: StoredTensor) -> Float32Array:
    if {sums.tensor_type, counts.tensor_type} != {TensorType.F32}:
        raise _bad(path, f"the values of {name[:80]!r} are not float32")
    total, seen = (tensor.rows(slice(None)).reshape(-1) for tensor in (sums, counts))
    if len(total) % len(seen):
        raise _bad(path, f"{len(total)} values of {name[:80]!r} do not divide among {len(seen)} counts")
    with np.errstate(all="ignore"):
        each = np.rint(seen)[:, None]
        # as llama.cpp has it: what was never seen weighs 1
        means = np.where(each > 0, total.reshape(len(seen), -1) / np.where(each > 0, each, 1), 1)
    return means.reshape(-1).astype(np.float32)


def _read_gguf(file: GgufFile) -> Imatrix:
    path = file.path
    chunks, datasets = file.scalar(CHUNKS, int), file.value(DATASETS)
    if chunks is None or not isinstance(datasets, list):
        raise _bad(path, f"is a GGUF without {DATASETS} and {CHUNKS}, and so no importance matrix")
    names = {
        name.removesuffix(ending)
        for name in file.tensors
        for ending in (SUMS, COUNTS)
        if name.endswith(ending)
    }
    values = {}
    for name in sorted(names):
        sums, counts = file.tensors.get(name + SUMS), file.tensors.get(name + COUNTS)
        if sums is None or counts is None:
            raise _bad(path, f"{name[:80]!r} has {'counts but no sums' if sums is None else 'no counts'}")
        values[name] = _checked(path, name, _mean_squares(path, name, sums, counts))
    dataset = datasets[0] if datasets and isinstance(datasets[0], str) else ""
    return Imatrix(path=path, values=values, dataset=dataset, chunks=max(chunks, 0))


class _Legacy:
    """Reads the older format forwards, never past the file's end."""

    def __init__(self, file: MappedFile) -> None:
        self._data, self._path, self._position = file.view(0, file.size), file.path, 0

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise _bad(self._path, f"truncated, or no importance matrix: {count} bytes at {self._position}")
        start, self._position = self._position, self._position + count
        return bytes(self._data[start : self._position])

    def number(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def text(self, length: int) -> str:
        return self.take(length).split(b"\0")[0].decode("utf-8", errors="replace")


def _read_legacy(file: MappedFile) -> Imatrix:
    path, cursor = file.path, _Legacy(file)
    count = cursor.number()
    if count < 1:
        raise _bad(path, "there is nothing in it")
    values: dict[str, Float32Array] = {}
    for _ in range(count):  # ends at the file's end at the latest
        length = cursor.number()
        if not 0 < length <= MAXIMUM_NAME:
            raise _bad(path, f"a name of {length} bytes: no importance matrix")
        name = cursor.text(length)
        calls, width = cursor.number(), cursor.number()
        if width < 1 or name in values:
            what = f"{name[:80]!r} occurs twice" if width >= 1 else f"{name[:80]!r} has no values"
            raise _bad(path, what)
        found = np.frombuffer(cursor.take(4 * width), "<f4") / np.float32(calls if calls > 0 else 1)
        values[name] = _checked(path, name, found.astype(np.float32))
    chunks, dataset = 0, ""
    if cursor.left >= 4:
        chunks = max(cursor.number(), 0)
    if cursor.left >= 4 and 0 < (length := cursor.number()) <= cursor.left:
        dataset = cursor.text(length)
    return Imatrix(path=path, values=values, dataset=dataset, chunks=chunks)


def read_imatrix(path: Path) -> Imatrix:
    """Raises BadInput for what is none, or cannot be one."""
    try:
        if not path.is_file():
            raise BadInput("no such file", where=f"--imatrix {path}")
        if path.stat().st_size < 4:
            raise _bad(path, "there is nothing in it")
        file = MappedFile(path)
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=f"--imatrix {path}") from None
    try:
        if bytes(file.view(0, 4)) == MAGIC:
            with open_gguf(path) as opened:
                return _read_gguf(opened)
        return _read_legacy(file)
    finally:
        file.close()


def match_imatrix(
    imatrix: Imatrix, widths: Mapping[str, int], needed: Iterable[str]
) -> tuple[Imatrix, str | None]:
    """What of it a model's tensors take, and a note where it leaves some out.

    widths: values of a row, by tensor. needed: tensors that cannot do without. Raises BadInput where it is
    another model's.
    """
    values = {name: imatrix.values[name] for name in widths if name in imatrix.values}
    if len(values.get(LOOKED_UP, ())) not in {0, widths.get(LOOKED_UP)}:
        del values[LOOKED_UP]
    for name, found in values.items():
        if len(found) != widths[name]:
            raise BadInput(
                f"it has {len(found)} values for {name}, whose rows have {widths[name]}",
                where=imatrix.path.name,
                fix="It belongs to another model.",
            )
    missing = sorted(set(needed) - values.keys())
    if missing or not values:
        raise BadInput(
            f"it has nothing for {missing[0] if missing else 'any tensor of the model'}",
            where=imatrix.path.name,
            fix="It belongs to another model, or was made of too little text.",
        )
    left_out = sorted(widths.keys() - values.keys() - {LOOKED_UP})
    note = (
        f"The importance matrix has nothing for {len(left_out)} matrices ({left_out[0]}, ...): they are "
        "quantised without."
        if left_out
        else None
    )
    return Imatrix(path=imatrix.path, values=values, dataset=imatrix.dataset, chunks=imatrix.chunks), note
