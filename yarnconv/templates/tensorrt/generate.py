"""Runs the engine beside this file with TensorRT: `python generate.py "prompt"`.

Needs generation.py, engine.py and sidecar.py beside it, and numpy, tokenizers, cuda-bindings and the TensorRT
that yarnconv.json names. CUDA_VISIBLE_DEVICES chooses the GPU. Text goes to stdout as it comes, figures to
stderr.

A model with several buckets of frequencies chooses by the context that the request declares (prompt and new
tokens) in the input `rope_context`. Without --max-new-tokens and --max-context the context grows with the
answer, in steps. Where it leaves its bucket all tokens are run again: keys turned by the old frequencies are
wrong beside the new ones.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # Python leaves it out where it is told to be safe
try:
    import numpy as np

    import generation
    from engine import Engine
    from sidecar import Facts, Unusable, reach
except ImportError as missing:
    install = "pip install numpy tokenizers cuda-bindings"
    print(
        f"error: {missing}. Needed are the scripts that came with this one, beside it, and {install}",
        file=sys.stderr,
    )
    raise SystemExit(4) from None


class Model(generation.Model):
    """What yarnconv.json says, and once it was started, the engine."""

    def __init__(self, directory: Path) -> None:
        self.facts = Facts(directory)
        self.vocabulary = self.facts.vocabulary
        self.max_context = min(self.facts.max_context, reach(self.facts.profiles))
        self.buckets = self.facts.buckets
        self.end_tokens = self.facts.end_tokens
        self.engine: Engine | None = None

    def start(self, context: int) -> None:
        """Load the engine."""
        self.engine = Engine(self.facts, context)

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self.engine is not None:
            self.engine.close()


class Conversation(generation.Conversation):
    """Tokens, and the engine's cache of them."""

    model: Model

    def _make_room(self, context: int) -> None:
        assert self.model.engine is not None
        self.model.engine.reserve(context)

    def _run(self, tokens: list[int]) -> Any:
        """Run as many of the next tokens as one of the engine's profiles takes."""
        assert self.model.engine is not None
        positions = np.arange(self.cached, self.cached + len(tokens), dtype=np.int64)
        logits, count = self.model.engine.run(np.array(tokens), positions, self.cached, self.declared)
        self.cached += count
        return logits[-1]


def load(arguments: argparse.Namespace, directory: Path) -> Model:
    """The model; its engine waits."""
    return Model(directory)


def main() -> int:
    """The command's exit code: 2 bad input, 4 a missing package, 5 no GPU or the wrong one, 70 a failure of
    the runtime, 130 interrupted.
    """
    directory = Path(__file__).resolve().parent
    try:
        return generation.main(generation.command_line(), directory, load, Conversation)
    except Unusable as why:
        print(f"error: {why}", file=sys.stderr)
        return why.code


if __name__ == "__main__":
    sys.exit(main())
