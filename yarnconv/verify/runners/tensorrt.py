"""TensorRT as a runner: real engines, which need a GPU of the kind that they were built for."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yarnconv.errors import MissingComponent, RuntimeCrashed
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.tensorrt.builder import EXTRAS, MODULES, RuntimeName
from yarnconv.verify.passages import Passage
from yarnconv.verify.runners.runner import Runner

WORKER = Path(__file__).with_name("tensorrt_worker.py")
CHUNK = 48  # tokens prefilled at once: passages are longer, so that a second chunk meets a first one's cache


def _missing(runtime: RuntimeName) -> str | None:
    """What of a runtime is not installed."""
    for module in (MODULES[runtime], "cuda.bindings"):
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:  # what the part before the point would have raised
            found = False
        if not found:
            return module
    return None


def _install(runtime: RuntimeName) -> str:
    return f'Install with: pip install "yarnconv[check,{EXTRAS[runtime]}]"'


def why_not_here(runtime: RuntimeName) -> str | None:
    """Why this machine runs no engine of `tensorrt` or `tensorrt-rtx`; None where it can."""
    if missing := _missing(runtime):
        return f"{missing} is not installed. {_install(runtime)}"
    with Runner(runtime, WORKER) as worker:
        try:
            answer = worker.ask({"path": runtime, "probe": runtime})
        except RuntimeCrashed as crash:
            return str(crash)
    reason: str | None = answer["why"]
    return reason


class TensorRt(Runner):
    """Runs engines of `tensorrt` or `tensorrt-rtx`, as yarnconv.json beside them names it.

    Raises MissingComponent where that, or cuda-bindings, is not installed. `logits` takes the engine's
    directory, or a file in it, and raises RuntimeRefused where there is no GPU or the engine is not for it.
    """

    def __init__(self, runtime: RuntimeName) -> None:
        if missing := _missing(runtime):
            raise MissingComponent(f"{missing} is not installed", fix=f"{_install(runtime)}.")
        super().__init__(runtime, WORKER)
        self.version = self._version(runtime)

    @staticmethod
    def _version(runtime: str) -> str:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"{runtime} {version(runtime)}"
        except PackageNotFoundError:  # a system's own package
            return runtime

    def logits(
        self, path: Path, passages: Sequence[Passage], advance: Advance = lambda done: None, **more: Any
    ) -> list[Float32Array]:
        """float32[judged tokens, vocabulary] of each passage, prefilled in chunks; a passage's context is the
        input rope_context.
        """
        return super().logits(path, passages, advance, chunk=CHUNK, **more)
