"""ONNX Runtime as a runner: the real library."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from yarnconv.errors import MissingComponent, one_of
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.components import require
from yarnconv.verify.passages import Passage
from yarnconv.verify.runners.runner import Runner

WORKER = Path(__file__).with_name("onnx_runtime_worker.py")
Provider = Literal["cpu", "cuda"]
CHUNK = 48  # tokens prefilled at once: passages are longer, so that a second chunk meets a first one's cache


def parse_provider(text: str) -> Provider:
    """The `--provider` of that name."""
    return one_of(text, get_args(Provider), "--provider")


def _version() -> str:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{package} {version(package)}"
        except ModuleNotFoundError:
            continue
    return "onnxruntime"


class OnnxRuntime(Runner):
    """Runs ONNX models on one execution provider.

    Raises MissingComponent where ONNX Runtime, or its CUDA build, is not installed.
    """

    def __init__(self, provider: Provider = "cpu") -> None:
        require("check,onnx", "onnxruntime")
        if provider == "cuda":
            self._require_cuda()
        super().__init__("ONNX Runtime", self._script_file())
        self.provider = provider
        self.version = f"{_version()}, {provider.upper()}"

    def _script_file(self) -> Path:
        return WORKER

    @staticmethod
    def _require_cuda() -> None:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise MissingComponent(
                "this ONNX Runtime has no CUDA",
                where="--provider cuda",
                fix='Install with: pip uninstall onnxruntime; pip install "yarnconv[check,gpu]"',
            )

    def logits(
        self, path: Path, passages: Sequence[Passage], advance: Advance = lambda done: None, **more: Any
    ) -> list[Float32Array]:
        """float32[judged tokens, vocabulary] of each passage, prefilled in chunks; a passage's context is
        what the client declares: the slots of its buffer, or the input rope_context.
        """
        return super().logits(path, passages, advance, provider=self.provider, chunk=CHUNK, **more)
