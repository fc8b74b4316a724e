"""Editing a GGUF's keys and tensor bytes: how good artefacts become the faulty ones that people have."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yarnconv.targets.gguf.file_format import Metadata, TensorInfo, align, pack_header
from yarnconv.targets.gguf.reader import open_gguf


@dataclass
class EditableGguf:
    """keys: a Metadata to set and delete in. rows: name -> uint8[rows, bytes of a row]."""

    architecture: str
    keys: Metadata
    values: dict
    rows: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        infos, offset = [], 0
        for name, tensor in self.tensors.items():
            info = TensorInfo(name=name, shape=tensor.shape, tensor_type=tensor.tensor_type, offset=offset)
            infos.append(info)
            offset += align(tensor.nbytes)
        with path.open("wb") as file:
            file.write(pack_header(self.keys, infos))
            start = file.tell()
            for info in infos:
                file.seek(start + info.offset)
                file.write(self.rows[info.name].tobytes())
            file.truncate(start + offset)
        return path

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def drop(self, prefix: str) -> None:
        for key in [key for key in self.keys.packed if key.startswith(prefix)]:
            del self.keys.packed[key]


def load(path: Path) -> EditableGguf:
    with open_gguf(path) as file:
        values = {key: file.value(key) for key in file.packed if not key.startswith("tokenizer.")}
        edited = EditableGguf(
            architecture=file.architecture, keys=Metadata(packed=dict(file.packed)), values=values
        )
        for tensor in file.tensors.values():
            data = bytes(tensor.file.view(tensor.offset, tensor.nbytes))
            edited.rows[tensor.name] = np.frombuffer(data, np.uint8).reshape(tensor.row_count, -1).copy()
            edited.tensors[tensor.name] = tensor
    return edited
