"""A runtime in a process of its own, which may die without taking us along.

A worker is a Python file that imports its runtime and answers one JSON document a line: {"done": n} and
{"event": what} while it works, {"refused": why} where the runtime would not, {"not_here": why} where the
machine cannot, anything else as its answer.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from yarnconv.errors import NotJudged, RuntimeCrashed, YarnconvError
from yarnconv.progress import Advance

LAST_WORDS = 1200  # characters of a dead process's stderr that are shown


Listen = Callable[[Mapping[str, Any]], None]


def _deaf(event: Mapping[str, Any]) -> None:
    pass


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

    crashed_while = "it ran this file: its logits cannot be judged"

    def __init__(self, name: str, script: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._script = script
        self._scratch = tempfile.TemporaryDirectory(prefix="yarnconv-worker-")
        # ONNX Runtime leaves a file in the temporary directory as soon as it is imported
        self._environment = {**(environment or {}), "TMPDIR": self._scratch.name}
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
            f"{self.name} {_how_it_ended(returncode)} while {self.crashed_while}",
            where=path,
            fix=f"Its last words:\n{words}" if words else "It said nothing.",
        )

    @property
    def scratch(self) -> Path:
        """A directory for what is too large for an answer; gone with the worker."""
        return Path(self._scratch.name)

    def ask(
        self, request: dict[str, Any], advance: Advance = lambda done: None, listen: Listen = _deaf
    ) -> dict[str, Any]:
        """The answer to a request about the file at request["path"]. listen: hears what it tells on the way.

        Raises RuntimeRefused where the runtime refuses it, NotJudged where this machine cannot do it,
        RuntimeCrashed where the runtime dies.
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
            if "event" in answer:
                listen(answer["event"])
                continue
            if "not_here" in answer:
                raise NotJudged(answer["not_here"], where=request["path"])
            if "refused" in answer:
                raise RuntimeRefused(answer["refused"], where=request["path"])
            return answer
        raise self._crash(process, request["path"])
