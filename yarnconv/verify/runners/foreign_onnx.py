"""ONNX Runtime for graphs that others exported, whose inputs are filled by what they are called."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.passages import Passage
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime, Provider
from yarnconv.verify.runners.runner import Runner

WORKER = Path(__file__).with_name("foreign_onnx_worker.py")


class ForeignOnnxRuntime(OnnxRuntime):
    """Runs passages at positions 0, 1, ... without a gap: such a graph may count them itself.

    plan: says what of a cache's shape the graph leaves open.
    """

    def __init__(self, provider: Provider, plan: ConversionPlan) -> None:
        super().__init__(provider)
        attention = [layer.attention for layer in plan.description.layers]
        self._caches = [[one.key_value_heads, one.head_dim] for one in attention]

    def _script_file(self) -> Path:
        return WORKER

    def logits(
        self, path: Path, passages: Sequence[Passage], advance: Advance = lambda done: None, **more: Any
    ) -> list[Float32Array]:
        """float32[judged tokens, vocabulary] of each passage, prefilled in one piece.

        Raises NotJudged where the graph wants what nobody knows how to give, RuntimeRefused where ONNX
        Runtime does not load it, RuntimeCrashed.
        """
        whole = max(len(passage.tokens) for passage in passages)
        own = {"provider": self.provider, "caches": self._caches, "chunk": whole}
        return Runner.logits(self, path, passages, advance, **own, **more)
