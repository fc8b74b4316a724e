"""A runtime in a process of its own, which may die without taking us along.

A worker is a Python file that imports its runtime and answers one JSON document a line: {"done": n} while it
works, {"refused": why} where the runtime would not, anything else as its answer.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from yarnconv.errors import RuntimeCrashed, YarnconvError
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.passages import Passage

LAST_WORDS = 1200  # characters of a dead process's stderr that are shown


class RuntimeRefused(YarnconvError):
    """The runtime would not load or run the artefact, and said why. A finding, not a crash."""


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


class Worker:
    """One worker process for many requests. A context manager; after a crash it starts anew.

    name: the runtime's. script: the worker's file. environment: added to ours.
    """

    def __init__(self, name: str, script: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._script = script
        self._environment = dict(environment or {})
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
                [sys.executable, "-P", "-W", "ignore", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._last_words,
                text=True,
                env={**os.environ, **self._environment},
            )
        return self._process

    def _crash(self, process: subprocess.Popen[str], path: str) -> RuntimeCrashed:
        returncode = process.wait()
        self._last_words.seek(0)
        words = self._last_words.read().decode(errors="replace").strip()[-LAST_WORDS:]
        return RuntimeCrashed(
            f"{self.name} {_how_it_ended(returncode)} while it ran this file: its logits cannot be judged",
            where=path,
            fix=f"Its last words:\n{words}" if words else "It said nothing.",
        )

    def ask(self, request: dict[str, Any], advance: Advance = lambda done: None) -> dict[str, Any]:
        """The answer to a request about the file at request["path"].

        Raises RuntimeRefused where the runtime refuses it, RuntimeCrashed where it dies.
        """
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
        self, path: Path, passages: Sequence[Passage], advance: Advance = lambda done: None, **more: Any
    ) -> list[Float32Array]:
        """float32[judged tokens, vocabulary] of each passage. advance(1) after each. more: what else this
        runtime's worker wants to know.

        Raises as `ask` does.
        """
        out = Path(self._scratch.name) / "logits.npy"
        runs = [
            {
                "tokens": passage.tokens.tolist(),
                "positions": passage.positions.tolist(),
                "jump": passage.jump,
                "judged": passage.judged,
                "decoded": passage.decoded,
                "context": passage.context,
            }
            for passage in passages
        ]
        self.ask({"path": str(path), "out": str(out), "passages": runs, **more}, advance)
        logits: Float32Array = np.load(out)
        ends = np.cumsum([len(passage.tokens) - passage.judged for passage in passages])
        return np.split(logits, ends[:-1])
