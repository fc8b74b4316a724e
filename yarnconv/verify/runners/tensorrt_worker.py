"""Runs TensorRT engines for `tensorrt`, one request a line on stdin, one answer a line on stdout.

A process of its own: an engine is native code, and what it does to its process goes with it. It runs engines
by the files that stand beside them for everyone, so that what is checked is what is used.

    {"path", "passages": [{"tokens", "positions", "jump", "judged", "decoded", "context"}], "out", "chunk"}
        as the other workers; path is the engine's directory or a file in it
    {"path", "probe": runtime}
        answers {"why": what keeps that runtime's engines from running here, or null}
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "templates" / "tensorrt"))
sys.path.append(str(Path(__file__).parents[3]))

from engine import ELSEWHERE, Engine, Gpu, import_runtime
from sidecar import Facts, Unusable
from yarnconv.verify.runners.passage_loop import feed_passage, write_logits
from yarnconv.worker_side import Answer, NotHere, Refused, serve


def run_passage(
    engine: Engine,
    facts: Facts,
    *,
    tokens: list[int],
    positions: list[int],
    jump: int | None,
    judged: int,
    decoded: int,
    context: int | None,
    chunk: int,
) -> NDArray[np.float32]:
    """Logits of the tokens from `judged` on. jump: positions are taken as they are, gaps and all."""
    all_tokens, all_positions = np.array(tokens, np.int64), np.array(positions, np.int64)
    declared = facts.max_context if context is None else context
    engine.reserve(len(tokens))

    def feed(begin: int, end: int) -> tuple[NDArray[np.float32], int]:
        part = slice(begin, end)
        logits, count = engine.run(all_tokens[part], all_positions[part], begin, declared, every=True)
        return logits, count

    return feed_passage(
        feed,
        count=len(tokens),
        judged=judged,
        decoded=decoded,
        chunk=chunk,
        last_only=facts.last_token_only,
    )


def run_passages(request: dict[str, Any], answer: Answer) -> None:
    """Run all and write their logits to the file that was asked for."""
    path = Path(request["path"])
    try:
        facts = Facts(path if path.is_dir() else path.parent)
        longest = max(len(passage["tokens"]) for passage in request["passages"])
        with Engine(facts, longest) as engine:
            write_logits(request, partial(run_passage, engine, facts), answer)
    except Unusable as why:
        raise (NotHere if why.code == ELSEWHERE else Refused)(str(why)) from None


def why_not_here(runtime: str) -> str | None:
    """What keeps engines of a runtime from running here."""
    try:
        import_runtime(runtime)
        Gpu().close()
    except Unusable as why:
        return str(why)
    return None


def handle(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Run what is asked for, or say whether anything can be."""
    if "probe" in request:
        return {"why": why_not_here(request["probe"])}
    run_passages(request, answer)
    return {"ok": True}


if __name__ == "__main__":
    serve(handle)
