"""llama.cpp in a process of its own: an assertion in ggml kills the interpreter it stands in.

Run as a script. Reads one JSON request per line and answers each with one JSON line:
    {"path", "passages": [{"tokens", "positions", "jump", "judged", "decoded", "context"}], "out"}
        runs each passage from an empty cache, in a context of so many positions at least; writes
        float32[judged tokens, vocabulary] of all, one after the other, to the .npy file `out`; answers
        {"done": passages} after each, then {"ok": true}
    {"path", "text"}
        answers {"tokens": [...]} by the file's own vocabulary
An answer {"refused": reason} means that llama.cpp would not do it and said so.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[3]))
from yarnconv.worker_side import Answer, Refused, serve

BATCH = 512
CONTEXT_STEP = 256  # llama.cpp pads contexts to it
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
MAIN, APART = 0, 1  # sequences: where a passage runs, and where a prefix waits


def thread_count() -> int:
    """As many as there are processors for us, or as few as OMP_NUM_THREADS says: threads of llama.cpp spin
    while they wait, and two of them on one processor take ten times as long.
    """
    processors = len(os.sched_getaffinity(0))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(wanted), processors) if wanted.isdecimal() and int(wanted) > 0 else processors


class Log:
    """The last errors that llama.cpp logged; everything else is dropped."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, data: Any) -> None:
        if level == ERROR_LEVEL:
            self.errors = [*self.errors[-4:], text.decode(errors="replace").strip()]

    def refusal(self, what: str) -> Refused:
        """An error that carries what llama.cpp said of it."""
        said, self.errors = " | ".join(self.errors), []
        return Refused(f"{what} ({said})" if said else what)


@contextmanager
def loaded_model(path: str, log: Log, *, vocabulary_only: bool = False) -> Iterator[Any]:
    """A model on the CPU, in the plain weight layout."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    # the accelerated weight layouts of some CPUs crash on q8_0 batches, and are not what is judged
    params.use_extra_bufts = False
    params.vocab_only = vocabulary_only
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise log.refusal("llama.cpp does not load the file")
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


@contextmanager
def open_context(model: Any, cells: int, log: Log) -> Iterator[Any]:
    """A context for one passage at a time, with float32 keys and values and no flash attention: 1.9e-6
    of noise instead of 1.6e-4 (measured). Every RoPE parameter is left to the file.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = -(-cells // CONTEXT_STEP) * CONTEXT_STEP
    params.n_batch = params.n_ubatch = BATCH
    params.n_seq_max = 2
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = thread_count()
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    params.offload_kqv = False
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise log.refusal("llama.cpp makes no context")
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


class Decoder:
    """Feeds tokens to a context and collects logits."""

    def __init__(self, context: Any, vocab_size: int, log: Log) -> None:
        self.context = context
        self.memory = llama_cpp.llama_get_memory(context)
        self.vocab_size = vocab_size
        self.log = log
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        """Free the batch."""
        llama_cpp.llama_batch_free(self.batch)

    def _feed(
        self, tokens: list[int], positions: list[int], sequence: int, judged_from: int
    ) -> Iterator[NDArray[np.float32]]:
        """Logits of the tokens from index `judged_from` on, at most BATCH tokens at a time."""
        for start in range(0, len(tokens), BATCH):
            chunk = range(start, min(start + BATCH, len(tokens)))
            self.batch.n_tokens = len(chunk)
            for slot, index in enumerate(chunk):
                self.batch.token[slot] = tokens[index]
                self.batch.pos[slot] = positions[index]
                self.batch.n_seq_id[slot] = 1
                self.batch.seq_id[slot][0] = sequence
                self.batch.logits[slot] = index >= judged_from
            if llama_cpp.llama_decode(self.context, self.batch) != 0:
                raise self.log.refusal("llama.cpp does not decode")
            for slot, index in enumerate(chunk):
                if index >= judged_from:
                    pointer = llama_cpp.llama_get_logits_ith(self.context, slot)
                    yield np.ctypeslib.as_array(pointer, (self.vocab_size,)).copy()

    def run(
        self,
        *,
        tokens: list[int],
        positions: list[int],
        jump: int | None,
        judged: int,
        decoded: int,
        context: int | None,
    ) -> Iterator[NDArray[np.float32]]:
        """Logits of the tokens from `judged` on. context: what was declared; its size is this context's."""
        llama_cpp.llama_memory_clear(self.memory, True)
        begin = 0
        if jump is not None:
            # the prefix waits apart; the token behind the gap opens the main sequence alone
            yield from self._feed(tokens[:jump], positions[:jump], APART, judged)
            alone = slice(jump, jump + 1)
            yield from self._feed(tokens[alone], positions[alone], MAIN, judged - jump)
            llama_cpp.llama_memory_seq_cp(self.memory, APART, MAIN, 0, jump)
            begin = jump + 1
        yield from self._feed(tokens[begin:decoded], positions[begin:decoded], MAIN, judged - begin)
        for index in range(max(begin, decoded), len(tokens)):
            one = slice(index, index + 1)
            yield from self._feed(tokens[one], positions[one], MAIN, judged - index)


def run_passages(path: str, passages: list[dict[str, Any]], out: str, log: Log, answer: Answer) -> None:
    """Run all and write their logits to `out`; those that declare another context in one of that size."""
    rows = sum(len(passage["tokens"]) - passage["judged"] for passage in passages)
    most = max(len(passage["tokens"]) for passage in passages)
    with loaded_model(path, log) as model:
        vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        logits = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=(rows, vocab_size))
        row = 0
        for declared, group in groupby(passages, lambda passage: passage["context"]):
            alike = list(group)
            cells = most
            if declared is not None:
                cells = max(declared, *(len(passage["tokens"]) for passage in alike))
            with open_context(model, cells, log) as context:
                decoder = Decoder(context, vocab_size, log)
                for passage in alike:
                    for values in decoder.run(**passage):
                        logits[row] = values
                        row += 1
                    answer({"done": 1})
                decoder.close()
        logits.flush()


def tokenize(path: str, text: str, log: Log) -> list[int]:
    """The tokens of a text, without special ones."""
    with loaded_model(path, log, vocabulary_only=True) as model:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        data = text.encode()
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), False, False)
        if count < 0:
            raise log.refusal("llama.cpp does not tokenise the text")
        return list(tokens[:count])


def main() -> None:
    """Answer requests until stdin ends."""
    llama_cpp.llama_backend_init()
    log = Log()

    def handle(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
        if "text" in request:
            return {"tokens": tokenize(request["path"], request["text"], log)}
        run_passages(request["path"], request["passages"], request["out"], log, answer)
        return {"ok": True}

    serve(handle)


if __name__ == "__main__":
    main()
