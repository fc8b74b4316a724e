"""What onnxruntime-genai's model builder writes, and ONNX Runtime on the CPU to run it.

As a script it runs the builder with the command line in each line on stdin, each in a process of its own that
begins where everything has been imported: the imports take longer than a tiny model.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


@functools.cache
def _server():
    """Ends with this process, whose end it reads."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def build(checkpoint: Path, out: Path, precision: str, provider: str = "cpu") -> Path:
    """Its directory."""
    options = ["-i", checkpoint, "-o", out, "-p", precision, "-e", provider, "-c", out.parent / "cache"]
    server = _server()
    print(json.dumps([str(word) for word in options]), file=server.stdin, flush=True)
    answer = json.loads(server.stdout.readline())
    assert answer == "done", answer
    return out


def in_float32(directory: Path) -> Path:
    """A copy that multiplies 4-bit matrices with float32 activations: times 8-bit ones, as the builder has
    it, noise of 2e-2 hides what is judged."""
    copy = directory.with_name(f"{directory.name}-float32")
    shutil.copytree(directory, copy)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    return copy


class BuilderModel:
    """A session; its cache begins without a slot and grows."""

    def __init__(self, directory: Path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        self.session = onnxruntime.InferenceSession(
            directory / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.width = json.loads((directory / "genai_config.json").read_text())["model"]["decoder"][
            "head_size"
        ]

    def run(self, tokens, first):
        """Logits of all tokens: `first` in one go, then one by one."""
        inputs = {value.name: value for value in self.session.get_inputs()}
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        past = {
            name: np.zeros((1, value.shape[1], 0, self.width), kind[value.type])
            for name, value in inputs.items()
            if name.startswith("past")
        }
        outputs = [name.replace("past_key_values", "present") for name in past]
        logits, done = [], 0
        for end in (first, *range(first + 1, len(tokens) + 1)):
            feed = {
                "input_ids": np.array([tokens[done:end]]),
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(done, end)[None],
                **past,
            }
            feed = {name: value for name, value in feed.items() if name in inputs}
            found, *present = self.session.run(["logits", *outputs], feed)
            past = dict(zip(past, present, strict=True))
            logits.append(found[0].astype(np.float32))
            done = end
        return np.concatenate(logits)


def dequantised_weights(directory: Path, key_value_width: int) -> dict[str, np.ndarray]:
    """The 4-bit matrices by the checkpoint's names: blocks of 32 along the inputs, codes less 8, two in a
    byte, the lower half first. Of a tied model the embeddings are looked up in the head's."""
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(directory / "model.onnx").graph.initializer}
    weights = {}
    for name, packed in stored.items():
        if not name.endswith("_Q4"):
            continue
        name = name.removesuffix(".MatMul.weight_Q4")
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(int) - 8
        scales = stored[f"{name}.MatMul.weight_scales"][..., None]
        matrix = (codes * scales).reshape(len(packed), -1).astype(np.float32)
        parts = {name: matrix}
        if "qkv_proj" in name:
            ends = [len(matrix) - 2 * key_value_width, len(matrix) - key_value_width]
            split = np.split(matrix, ends)
            parts = {name.replace("qkv", which): part for which, part in zip("qkv", split, strict=True)}
        weights |= {f"{part.replace('.attn.', '.self_attn.')}.weight": v for part, v in parts.items()}
    if "model.embed_tokens.weight" not in stored:
        weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    return weights


def _serve():
    import runpy
    import tempfile

    import onnxruntime_genai.models.builder  # noqa: F401  for what it imports

    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.argv = ["builder", *json.loads(line)]
                runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
                sys.stdout.flush()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            said.seek(0)
            answer = "done" if status == 0 else said.read().decode(errors="replace")[-2000:]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
