"""Runs TensorRT engines for `tensorrt`, one request a line on stdin, one answer a line on stdout.

A process of its own: an engine is native code, and what it does to its process goes with it. It runs engines
by the files that stand beside them for everyone, so that what is checked is what is used.

    {"path", "passages": [{"tokens", "positions", "jump", "judged", "decoded", "context"}], "out", "chunk"}
        as the other workers; path is the engine's directory or a file in it
    {"path", "probe": runtime}
        answers {"why": what keeps that runtime's engines from running here, or null}
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "templates" / "tensorrt"))
sys.path.append(str(Path(__file__).parents[3]))

from engine import ELSEWHERE, Engine, Gpu, import_runtime
from sidecar import Facts, Unusable
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
    found, begin = [], 0
    while begin < len(tokens):
        alone = begin >= decoded or (facts.last_token_only and begin >= judged)
        end = begin + 1 if alone else min(begin + chunk, decoded)
        if facts.last_token_only and begin < judged:
            end = min(end, judged + 1)  # the first judged token comes of a chunk of several
        part = slice(begin, end)
        logits, count = engine.run(all_tokens[part], all_positions[part], begin, declared, every=True)
        end = begin + count
        if end > judged:
            found.append(logits[-(end - max(begin, judged)) :])
        begin = end
    return np.concatenate(found)


def run_passages(request: dict[str, Any], answer: Answer) -> None:
    """Run all and write their logits to the file that was asked for."""
    path, passages = Path(request["path"]), request["passages"]
    try:
        facts = Facts(path if path.is_dir() else path.parent)
        longest = max(len(passage["tokens"]) for passage in passages)
        rows = sum(len(passage["tokens"]) - passage["judged"] for passage in passages)
        with Engine(facts, longest) as engine:
            logits = np.lib.format.open_memmap(
                request["out"], mode="w+", dtype=np.float32, shape=(rows, facts.vocabulary)
            )
            first = 0
            for passage in passages:
                found = run_passage(engine, facts, **passage, chunk=request["chunk"])
                logits[first : first + len(found)] = found
                first += len(found)
                answer({"done": 1})
            logits.flush()
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
