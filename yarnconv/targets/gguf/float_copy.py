"""A small float32 copy of a GGUF: its own metadata, its own weights dequantised, its first layers.

llama.cpp multiplies quantised weights with quantised activations, whose noise hides a wrong rotation. In
float32 a right artefact stands within 1e-5 of the reference and a wrong one outside 1e-3, whatever its
type, and two layers show it as well as eighty.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
from yarnconv.targets.gguf.reader import PREDICTING, GgufFile, StoredTensor

BLOCK_VALUES = 2**20  # dequantised at once
# Tensors with a row (a value, of a bias) per entry of the vocabulary.
VOCABULARY_TENSORS = frozenset({"token_embd.weight", "output.weight", "output.bias"})
# Tensors with a matrix, a row or a value per expert, which comes first.
EXPERT_TENSOR = re.compile(
    r"blk\.\d{1,9}\.(ffn_(gate|up|down|gate_up)_exps|ffn_gate_inp|exp_probs_b)\.(weight|bias)"
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a copy keeps of an artefact: its first layers, entries of the vocabulary and experts, in order;
    they become 0, 1, ... experts: None for all. told: whole numbers by their keys that it has besides, where
    the artefact has none: what llama.cpp knows of the artefact by its depth.
    """

    layers: int
    vocabulary: NDArray[np.intp]
    experts: NDArray[np.intp] | None = None
    told: Mapping[str, int] = field(default_factory=dict)

    def of(self, tensor: StoredTensor) -> NDArray[np.intp] | None:
        """Which entries of a tensor's first dimension; None for all."""
        if tensor.name in VOCABULARY_TENSORS:
            return self.vocabulary
        return self.experts if EXPERT_TENSOR.fullmatch(tensor.name) else None

    def shape(self, tensor: StoredTensor) -> tuple[int, ...]:
        """Of a tensor in the copy."""
        own = self.of(tensor)
        return tensor.shape if own is None else (len(own), *tensor.shape[1:])


def _metadata(artefact: GgufFile, kept: Kept) -> Metadata:
    """The artefact's own keys, but for the tokenizer (replaced by a bare size) and what it keeps less of."""
    layers = kept.layers
    architecture = artefact.architecture
    all_layers = artefact.scalar(f"{architecture}.block_count", int, layers)
    metadata = Metadata()
    for key, packed in artefact.packed.items():
        if key.startswith(_DROPPED_PREFIXES) or key in {*_DROPPED_KEYS, f"{architecture}.{PREDICTING}"}:
            continue
        own = key.startswith(f"{architecture}.")
        metadata.packed[key] = _shortened(packed, layers, all_layers) if own else packed
    metadata.uint32(f"{architecture}.block_count", layers)
    metadata.uint32(f"{architecture}.vocab_size", len(kept.vocabulary))
    if kept.experts is not None:
        metadata.uint32(f"{architecture}.expert_count", len(kept.experts))
    for key, value in kept.told.items():
        if key not in metadata.packed:
            metadata.uint32(key, value)
    metadata.string("tokenizer.ggml.model", "no_vocab")
    return metadata


def _kept(artefact: GgufFile, layers: int) -> Iterator[StoredTensor]:
    for tensor in artefact.tensors.values():
        layer = _LAYER.match(tensor.name)
        if layer is None or int(layer[1]) < layers:
            yield tensor


def _blocks(tensor: StoredTensor, own: NDArray[np.intp] | None) -> Iterator["slice | NDArray[np.intp]"]:
    """Selections of rows, each of about BLOCK_VALUES values. own: entries of its first dimension."""
    step = max(1, BLOCK_VALUES // tensor.shape[-1])
    if own is not None and len(tensor.shape) > 1:
        size = prod(tensor.shape[1:-1])
        rows = (own[:, None] * size + np.arange(size)).reshape(-1)
        for first in range(0, len(rows), step):
            yield rows[first : first + step]
        return
    for first in range(0, tensor.row_count, step):
        yield slice(first, min(first + step, tensor.row_count))


def copy_bytes(artefact: GgufFile, kept: Kept) -> int:
    """Bytes that the copy's tensors will take."""
    return sum(4 * prod(kept.shape(tensor)) for tensor in _kept(artefact, kept.layers))


def write_float_copy(artefact: GgufFile, destination: Path, kept: Kept, advance: Advance) -> None:
    """Write the copy. advance(bytes) after each block. Raises NotJudged for a type that cannot be
    dequantised.
    """
    tensors = list(_kept(artefact, kept.layers))
    infos, offset = [], 0
    for tensor in tensors:
        shape = kept.shape(tensor)
        infos.append(TensorInfo(name=tensor.name, shape=shape, tensor_type=TensorType.F32, offset=offset))
        offset += align(tensor_bytes(shape, TensorType.F32))
    with destination.open("wb") as file:
        file.write(pack_header(_metadata(artefact, kept), infos))
        data_start = file.tell()
        for tensor, info in zip(tensors, infos, strict=True):
            file.seek(data_start + info.offset)
            own = kept.of(tensor)
            for selection in _blocks(tensor, own):
                values = np.ascontiguousarray(tensor.rows(selection), dtype="<f4")
                if own is not None and len(tensor.shape) == 1:
                    values = np.ascontiguousarray(values[:, own])
                file.write(values.data)
                advance(values.nbytes)
        file.truncate(data_start + offset)
