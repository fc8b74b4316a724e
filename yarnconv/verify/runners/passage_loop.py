"""How a passage is fed to a runtime that takes positions as they are: in chunks, then token by token.

Of the workers' half: it knows no runtime.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.worker_side import Answer

Logits = NDArray[np.float32]
# Runs the tokens begin..end-1, or as many of them as the runtime takes; the logits, float32[rows,
# vocabulary], and how many tokens were run.
Feed = Callable[[int, int], tuple[Logits, int]]


def feed_passage(feed: Feed, *, count: int, judged: int, decoded: int, chunk: int, last_only: bool) -> Logits:
    """Logits of the tokens from `judged` on of `count`: float32[count - judged, vocabulary]. Those from
    `decoded` on are fed alone. last_only: whether the runtime gives logits of the last token only.
    """
    found, begin = [], 0
    while begin < count:
        alone = begin >= decoded or (last_only and begin >= judged)
        end = begin + 1 if alone else min(begin + chunk, decoded)
        if last_only and begin < judged:
            end = min(end, judged + 1)  # the first judged token comes of a chunk of several
        logits, ran = feed(begin, end)
        end = begin + ran
        if end > judged:
            found.append(logits[-(end - max(begin, judged)) :])
        begin = end
    return np.concatenate(found).astype(np.float32)


def write_logits(request: dict[str, Any], run: Callable[..., Logits], answer: Answer) -> None:
    """Run every passage of a request and write their logits, one after the other, to the file it names. run:
    takes a passage's fields and `chunk`.
    """
    passages = request["passages"]
    rows, first = sum(len(passage["tokens"]) - passage["judged"] for passage in passages), 0
    logits = None
    for passage in passages:
        found = run(**passage, chunk=request["chunk"])
        if logits is None:
            shape = rows, found.shape[1]
            logits = np.lib.format.open_memmap(request["out"], mode="w+", dtype=np.float32, shape=shape)
        logits[first : first + len(found)] = found
        first += len(found)
        answer({"done": 1})
    if logits is not None:
        logits.flush()
