"""The real llama.cpp, for tests that look at logits themselves; and a copy made without our code."""

from pathlib import Path

import gguf
import numpy as np

from yarnconv.verify.passages import Passage
from yarnconv.verify.runners.llama_cpp import LlamaCpp as Runner


class LlamaCpp(Runner):
    """The runner of `check`, asked for one plain run from position 0."""

    def run(self, path: Path, tokens, *, first=0, context=None):
        """float32[positions from `first`, vocabulary]. context: llama.cpp's, at least."""
        count = len(tokens)
        passage = Passage(
            name="all",
            tokens=np.array(tokens),
            positions=np.arange(count),
            jump=None,
            judged=first,
            decoded=count,
            context=context,
        )
        return self.logits(path, [passage])[0]


def dequantised_copy(source: Path, destination: Path) -> Path:
    """A float32 copy of a GGUF with its own metadata, made by the gguf package alone.

    llama.cpp multiplies quantised weights with quantised activations; the copy shows whether the
    file means the right thing without that noise.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(destination, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        writer.add_tensor(tensor.name, np.ascontiguousarray(values.reshape(shape), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination
