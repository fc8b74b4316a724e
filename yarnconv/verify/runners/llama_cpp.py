"""llama.cpp as a runner: the real library."""

from importlib.metadata import version
from pathlib import Path

import numpy as np

from yarnconv.rope.tables import Float64Array
from yarnconv.verify.components import require
from yarnconv.verify.runners.runner import Runner

WORKER = Path(__file__).with_name("llama_cpp_worker.py")


class LlamaCpp(Runner):
    """Runs GGUFs."""

    def __init__(self) -> None:
        require("llama", "llama_cpp")
        # its last words, not a debugger's
        super().__init__("llama.cpp", WORKER, {"GGML_NO_BACKTRACE": "1"})
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"

    @staticmethod
    def angle_rounding(pairs: int) -> Float64Array:
        """Relative error of the angle of each pair, in float32: float64[pairs].

        ggml multiplies the position by theta^(-2/D) once per pair (`ggml_rope_cache_init`), so that the
        error of that number counts i times for pair i; transformers rounds each frequency and product.
        """
        return (np.arange(pairs, dtype=np.float64) + 2.0) * 2.0**-24

    def tokenize(self, path: Path, text: str) -> list[int]:
        """The tokens of a text by the file's own vocabulary, without special ones."""
        answer = self.ask({"path": str(path), "text": text})
        return [int(token) for token in answer["tokens"]]
