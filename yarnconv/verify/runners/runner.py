"""A runtime that is asked for logits, in a process of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.passages import Passage
from yarnconv.worker import Worker


class Runner(Worker):
    """Runs passages through artefacts."""

    def logits(
        self, path: Path, passages: Sequence[Passage], advance: Advance = lambda done: None, **more: Any
    ) -> list[Float32Array]:
        """float32[judged tokens, vocabulary] of each passage. advance(1) after each. more: what else this
        runtime's worker wants to know.

        Raises as `ask` does.
        """
        out = self.scratch / "logits.npy"
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
