"""Runs ONNX models for `onnx_runtime`, one request a line on stdin, one answer a line on stdout.

A process of its own: a graph from a stranger may crash the runtime, and its memory goes with it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[3]))
from yarnconv.verify.runners.passage_loop import feed_passage, write_logits
from yarnconv.worker_side import Answer, Refused, serve

BFLOAT16 = 16  # TensorProto.DataType; numpy has none
PROVIDERS = {
    "cpu": [("CPUExecutionProvider", {})],
    # its reduced float32 would hide what is judged
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})],
}


def session_options() -> onnxruntime.SessionOptions:
    """Silent, and with as many threads as the environment allows."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]:
        options.intra_op_num_threads = int(threads)
    return options


class Model:
    """A session, and the cache of one sequence."""

    def __init__(self, path: str, provider: str) -> None:
        self.session = onnxruntime.InferenceSession(path, session_options(), providers=PROVIDERS[provider])
        self.device = "cuda" if provider == "cuda" else "cpu"
        inputs = {i.name: i for i in self.session.get_inputs()}
        outputs = {o.name: o for o in self.session.get_outputs()}
        self.slots = [i for i in inputs.values() if i.name.startswith("past_key_values.")]
        present = outputs["present.0.key"].shape[2]
        self.in_place = self.slots[0].shape[2] == present
        self.last_only = outputs["logits"].shape[1] != inputs["input_ids"].shape[1]
        overridable = [i.name for i in self.session.get_overridable_initializers()]
        self.declares = "rope_context" in overridable or "rope_context" in inputs
        # a scalar where it has a default, else a list of one
        self.context_rank = len(inputs["rope_context"].shape) if "rope_context" in inputs else 0
        self.caches: dict[str, onnxruntime.OrtValue] = {}
        self.length = 0
        self.context: int | None = None

    def start(self, tokens: int, context: int | None) -> None:
        """Forget everything. context: what the request declares."""
        self.length, self.context = 0, context
        capacity = (context or tokens) if self.in_place else 0
        self.caches = {}
        for slot in self.slots:
            shape = [1, slot.shape[1], capacity, slot.shape[3]]
            if slot.type == "tensor(bfloat16)":
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, BFLOAT16, self.device, 0)
            else:
                kind = np.float16 if slot.type == "tensor(float16)" else np.float32
                value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, kind), self.device, 0)
            self.caches[slot.name] = value

    def feed(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of new tokens: float32[n, vocabulary]; of the last one, where the graph gives only that."""
        binding = self.session.io_binding()
        self.length += len(tokens)
        binding.bind_cpu_input("input_ids", tokens[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
        binding.bind_cpu_input("position_ids", positions[None])
        if self.declares and self.context is not None:
            # as an OrtValue: an input with a default is none that bind_cpu_input finds
            value = np.array(self.context).reshape((1,) * self.context_rank)
            declared = onnxruntime.OrtValue.ortvalue_from_numpy(value)
            binding.bind_ortvalue_input("rope_context", declared)
        order = []
        for name, value in self.caches.items():
            present = name.replace("past_key_values", "present")
            binding.bind_ortvalue_input(name, value)
            if self.in_place:  # one buffer, or each step would copy it
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present, self.device)
            order.append(present)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        made = dict(zip([*order, "logits"], binding.get_outputs(), strict=True))
        if not self.in_place:  # the buffer's own values keep its memory alive, what is given back does not
            self.caches = {name: made[name.replace("past_key_values", "present")] for name in self.caches}
        logits: NDArray[np.float32] = made["logits"].numpy()[0]
        return logits

    def run(
        self,
        *,
        tokens: list[int],
        positions: list[int],
        jump: int | None,
        judged: int,
        decoded: int,
        context: int | None,
        chunk: int,
    ) -> NDArray[np.float32]:
        """Logits of the tokens from `judged` on. jump: positions are taken as they are, gaps and all."""
        all_tokens, all_positions = np.array(tokens, np.int64), np.array(positions, np.int64)
        self.start(len(tokens), context)

        def feed(begin: int, end: int) -> tuple[NDArray[np.float32], int]:
            return self.feed(all_tokens[begin:end], all_positions[begin:end]), end - begin

        return feed_passage(
            feed,
            count=len(tokens),
            judged=judged,
            decoded=decoded,
            chunk=chunk,
            last_only=self.last_only,
        )


def reason(error: Exception) -> str:
    """What a runtime says, in one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 600 else f"{text[:600]} ..."


def run_passages(request: dict[str, Any], answer: Answer) -> None:
    """Run all and write their logits to the file that was asked for."""
    try:
        model = Model(request["path"], request["provider"])
    except Exception as error:
        raise Refused(f"ONNX Runtime does not load it: {reason(error)}") from None

    def run(**passage: Any) -> NDArray[np.float32]:
        try:
            return model.run(**passage)
        except MemoryError:
            raise
        except Exception as error:
            raise Refused(f"ONNX Runtime does not run it: {reason(error)}") from None

    write_logits(request, run, answer)


def handle(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Run what is asked for."""
    run_passages(request, answer)
    return {"ok": True}


if __name__ == "__main__":
    serve(handle)
