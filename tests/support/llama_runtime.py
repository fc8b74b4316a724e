"""The real llama.cpp, in a subprocess."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

WORKER = Path(__file__).with_name("llama_worker.py")


class LlamaCpp:
    """One worker process for many files; started anew after a crash."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.process = None

    def _ask(self, request):
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            _, last_words = self.process.communicate()
            raise RuntimeError(f"llama.cpp died ({self.process.returncode}): {last_words[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def logits(self, path: Path, tokens, *, first=0, context=None):
        """float32[positions from `first`, vocabulary]."""
        out = self.scratch / "logits.npy"
        context = context or -(-len(tokens) // 256) * 256
        self._ask(
            {
                "path": str(path),
                "tokens": tokens,
                "context": context,
                "first": first,
                "out": str(out),
            }
        )
        return np.load(out)

    def tokenize(self, path: Path, text: str):
        return self._ask({"path": str(path), "text": text})["tokens"]

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.communicate()


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
