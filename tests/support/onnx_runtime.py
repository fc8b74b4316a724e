"""ONNX Runtime on the CPU, with the caches that a client keeps."""

import os
from pathlib import Path

import numpy as np
import onnxruntime


class OnnxModel:
    """One session and, between `start` and the next one, one batch of sequences."""

    def __init__(self, directory: Path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # TensorScatter warns where past and present are two buffers
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        # 4-bit matrices times float32 activations: times 8-bit ones, 1.7e-2 of noise hides what is judged
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(
            directory / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.slots = {i.name: i for i in self.session.get_inputs() if i.name.startswith("past")}
        self.in_place = next(iter(self.slots.values())).shape[2] == "kv_capacity"
        self.types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

    def start(self, mask, capacity=0):
        """mask: int64[B, first tokens]; zeros are left padding."""
        batch = len(mask)
        self.mask = np.empty((batch, 0), np.int64)
        self.past = {
            name: np.zeros(
                (batch, slot.shape[1], capacity if self.in_place else 0, slot.shape[3]), self.types[slot.type]
            )
            for name, slot in self.slots.items()
        }

    def feed(self, tokens, positions, mask=None, **more):
        """Logits of new tokens: [B, S, V]."""
        tokens = np.atleast_2d(tokens)
        mask = np.ones_like(tokens) if mask is None else mask
        self.mask = np.concatenate([self.mask, mask], axis=1)
        inputs = {
            "input_ids": tokens,
            "attention_mask": self.mask,
            "position_ids": np.atleast_2d(positions),
            **self.past,
            **more,
        }
        logits, *present = self.session.run(None, inputs)
        self.past = dict(zip(self.past, present, strict=True))
        return logits

    def run(self, tokens, positions=None, *, capacity=None, **more):
        """One sequence in one go: [S, V]."""
        tokens = np.atleast_2d(tokens)
        positions = np.arange(tokens.shape[1]) if positions is None else positions
        self.start(tokens, capacity or tokens.shape[1])
        return self.feed(tokens, positions, **more)[0]
