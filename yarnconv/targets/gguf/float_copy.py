"""A small float32 copy of a GGUF: its own metadata, its own weights dequantised, its first layers.

llama.cpp multiplies quantised weights with quantised activations, whose noise hides a wrong rotation. In
float32 a right artefact stands within 1e-5 of the reference and a wrong one outside 1e-3, whatever its
type, and two layers show it as well as eighty.
"""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.progress import Advance
from yarnconv.targets.gguf.file_format import (
    SCALARS,
    Metadata,
    TensorInfo,
    TensorType,
    ValueType,
    align,
    pack_header,
    tensor_bytes,
)
from yarnconv.targets.gguf.reader import GgufFile, StoredTensor

BLOCK_VALUES = 2**20  # dequantised at once
# Tensors with a row (a value, of a bias) per entry of the vocabulary.
VOCABULARY_TENSORS = frozenset({"token_embd.weight", "output.weight", "output.bias"})
_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_DROPPED_PREFIXES = ("tokenizer.", "split.")
_DROPPED_KEYS = frozenset({"general.alignment", "general.file_type"})


def _shortened(packed: bytes, layers: int, all_layers: int) -> bytes:
    """A value with one entry per layer, cut to the first layers; any other value as it is."""
    header, kind = packed[:4], ValueType(int.from_bytes(packed[:4], "little"))
    if kind is not ValueType.ARRAY:
        return packed
    element = ValueType(int.from_bytes(packed[4:8], "little"))
    count = int.from_bytes(packed[8:16], "little")
    if count != all_layers or element is ValueType.STRING:
        return packed
    data = packed[16 : 16 + layers * SCALARS[element].size]
    return header + packed[4:8] + layers.to_bytes(8, "little") + data


def _metadata(artefact: GgufFile, layers: int, vocab_size: int) -> Metadata:
    """The artefact's own keys, but for the tokenizer (replaced by a bare size) and the layer count."""
    architecture = artefact.architecture
    all_layers = artefact.scalar(f"{architecture}.block_count", int, layers)
    metadata = Metadata()
    for key, packed in artefact.packed.items():
        if key.startswith(_DROPPED_PREFIXES) or key in _DROPPED_KEYS:
            continue
        own = key.startswith(f"{architecture}.")
        metadata.packed[key] = _shortened(packed, layers, all_layers) if own else packed
    metadata.uint32(f"{architecture}.block_count", layers)
    metadata.uint32(f"{architecture}.vocab_size", vocab_size)
    metadata.string("tokenizer.ggml.model", "no_vocab")
    return metadata


def _kept(artefact: GgufFile, layers: int) -> Iterator[StoredTensor]:
    for tensor in artefact.tensors.values():
        layer = _LAYER.match(tensor.name)
        if layer is None or int(layer[1]) < layers:
            yield tensor


def _blocks(tensor: StoredTensor, vocabulary: NDArray[np.intp]) -> Iterator["slice | NDArray[np.intp]"]:
    """Selections of rows, each of about BLOCK_VALUES values."""
    step = max(1, BLOCK_VALUES // tensor.shape[-1])
    if tensor.name in VOCABULARY_TENSORS and len(tensor.shape) > 1:
        for first in range(0, len(vocabulary), step):
            yield vocabulary[first : first + step]
        return
    for first in range(0, tensor.row_count, step):
        yield slice(first, min(first + step, tensor.row_count))


def _shape(tensor: StoredTensor, vocab_size: int) -> tuple[int, ...]:
    return (vocab_size, *tensor.shape[1:]) if tensor.name in VOCABULARY_TENSORS else tensor.shape


def copy_bytes(artefact: GgufFile, layers: int, vocab_size: int) -> int:
    """Bytes that the copy's tensors will take."""
    return sum(4 * prod(_shape(tensor, vocab_size)) for tensor in _kept(artefact, layers))


def write_float_copy(
    artefact: GgufFile,
    destination: Path,
    *,
    layers: int,
    vocabulary: NDArray[np.intp],
    advance: Advance,
) -> None:
    """Write the copy. vocabulary: the ids that are kept, in order; they become 0, 1, ...

    advance(bytes) after each block. Raises NotJudged for a type that cannot be dequantised.
    """
    kept = list(_kept(artefact, layers))
    infos, offset = [], 0
    for tensor in kept:
        shape = _shape(tensor, len(vocabulary))
        infos.append(TensorInfo(name=tensor.name, shape=shape, tensor_type=TensorType.F32, offset=offset))
        offset += align(tensor_bytes(shape, TensorType.F32))
    with destination.open("wb") as file:
        file.write(pack_header(_metadata(artefact, layers, len(vocabulary)), infos))
        data_start = file.tell()
        for tensor, info in zip(kept, infos, strict=True):
            file.seek(data_start + info.offset)
            for selection in _blocks(tensor, vocabulary):
                values = np.ascontiguousarray(tensor.rows(selection), dtype="<f4")
                if tensor.name in VOCABULARY_TENSORS and len(tensor.shape) == 1:
                    values = np.ascontiguousarray(values[:, vocabulary])
                file.write(values.data)
                advance(values.nbytes)
        file.truncate(data_start + offset)
