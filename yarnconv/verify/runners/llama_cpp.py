"""llama.cpp as a runner: the real library, in a subprocess that may die without taking us along."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from yarnconv.errors import RuntimeCrashed, YarnconvError
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array, Float64Array
from yarnconv.verify.components import require
from yarnconv.verify.passages import Passage

WORKER = Path(__file__).with_name("llama_cpp_worker.py")
LAST_WORDS = 1200  # characters of a dead process's stderr that are shown


class RuntimeRefused(YarnconvError):
    """The runtime would not load or run the artefact, and said why. A finding, not a crash."""


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


class LlamaCpp:
    """One worker process for many files. A context manager; after a crash it starts anew."""

    name = "llama.cpp"

    def __init__(self) -> None:
        require("llama", "llama_cpp")
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"
        self._scratch = tempfile.TemporaryDirectory(prefix="yarnconv-logits-")
        self._last_words = (Path(self._scratch.name) / "stderr").open("w+b")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and delete what it wrote."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._last_words.close()
        self._scratch.cleanup()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._last_words.seek(0)
            self._last_words.truncate()
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [sys.executable, "-P", "-W", "ignore", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._last_words,
                text=True,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # its last words, not a debugger's
            )
        return self._process

    def _crash(self, process: subprocess.Popen[str], path: str) -> RuntimeCrashed:
        returncode = process.wait()
        self._last_words.seek(0)
        words = self._last_words.read().decode(errors="replace").strip()[-LAST_WORDS:]
        return RuntimeCrashed(
            f"llama.cpp {_how_it_ended(returncode)} while it ran this file: its logits cannot be judged",
            where=path,
            fix=f"Its last words:\n{words}" if words else "It said nothing.",
        )

    def _ask(self, request: dict[str, Any], advance: Advance) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._crash(process, request["path"]) from None
        while line := process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            if "done" in answer:
                advance(answer["done"])
                continue
            if "refused" in answer:
                raise RuntimeRefused(answer["refused"], where=request["path"])
            return answer
        raise self._crash(process, request["path"])

    def logits(
        self, path: Path, passages: Sequence[Passage], advance: Advance = lambda done: None
    ) -> list[Float32Array]:
        """float32[judged tokens, vocabulary] of each passage. advance(1) after each.

        Raises RuntimeRefused where llama.cpp refuses the file, RuntimeCrashed where it dies.
        """
        out = Path(self._scratch.name) / "logits.npy"
        request = {
            "path": str(path),
            "out": str(out),
            "passages": [
                {
                    "tokens": passage.tokens.tolist(),
                    "positions": passage.positions.tolist(),
                    "jump": passage.jump,
                    "judged": passage.judged,
                    "decoded": passage.decoded,
                }
                for passage in passages
            ],
        }
        self._ask(request, advance)
        logits: Float32Array = np.load(out)
        ends = np.cumsum([len(passage.tokens) - passage.judged for passage in passages])
        return np.split(logits, ends[:-1])

    @staticmethod
    def angle_rounding(pairs: int) -> Float64Array:
        """Relative error of the angle of each pair, in float32: float64[pairs].

        ggml multiplies the position by theta^(-2/D) once per pair (`ggml_rope_cache_init`), so that the
        error of that number counts i times for pair i; transformers rounds each frequency and product.
        """
        return (np.arange(pairs, dtype=np.float64) + 2.0) * 2.0**-24

    def tokenize(self, path: Path, text: str) -> list[int]:
        """The tokens of a text by the file's own vocabulary, without special ones."""
        answer = self._ask({"path": str(path), "text": text}, lambda done: None)
        return [int(token) for token in answer["tokens"]]
