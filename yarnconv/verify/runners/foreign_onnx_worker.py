"""Runs ONNX models that others exported for `foreign_onnx`: what a graph declares is filled by its name.

Token ids, positions, a mask of ones or a causal one, and a cache that begins without a slot and grows. A
graph without a cache is run again from the first token on. What has any other name is asked of nobody.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[3]))
from yarnconv.verify.runners.onnx_runtime_worker import PROVIDERS, reason, session_options
from yarnconv.verify.runners.passage_loop import feed_passage, write_logits
from yarnconv.worker_side import Answer, NotHere, Refused, serve

TYPES: dict[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
WHOLE = {"tensor(int64)", "tensor(int32)"}
FLOATS = {"tensor(float)", "tensor(float16)"}
# past_key_values.0.key, past_key_values.key.0, past_key_0, present.0.value, ...
_SLOTS = (
    re.compile(r"(?P<which>past|present)\D{0,24}?(?P<layer>\d{1,5})\D{0,8}?(?P<part>key|value)"),
    re.compile(r"(?P<which>past|present)\D{0,24}?(?P<part>key|value)\D{0,8}?(?P<layer>\d{1,5})"),
)
_LONGEST_NAME = 200


def _slot(name: str) -> tuple[str, int, str] | None:
    """(past or present, the layer, key or value) by a name."""
    for spelling in _SLOTS:
        if match := spelling.search(name[:_LONGEST_NAME]):
            return match["which"], int(match["layer"]), match["part"]
    return None


def _said(value: Any) -> str:
    return f"{value.name[:_LONGEST_NAME]} ({value.type} {str(value.shape)[:_LONGEST_NAME]})"


class Model:
    """A session, and the cache of one sequence. caches: [key/value heads, head_dim] of each layer."""

    def __init__(self, path: str, provider: str, caches: list[list[int]]) -> None:
        self.session = onnxruntime.InferenceSession(path, session_options(), providers=PROVIDERS[provider])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.inputs = {value.name: value for value in inputs if _slot(value.name) is None}
        pasts = {slot[1:]: value for value in inputs if (slot := _slot(value.name)) is not None}
        presents = {slot[1:]: value.name for value in outputs if (slot := _slot(value.name)) is not None}
        if unknown := [value for value in self.inputs.values() if not self._is_known(value)]:
            raise NotHere(f"nobody here knows what to give as {', '.join(map(_said, unknown[:4]))}")
        if "input_ids" not in self.inputs:
            raise NotHere("it takes no input_ids")
        if pasts.keys() - presents.keys() or len(pasts) < sum(_slot(v.name) is not None for v in inputs):
            raise NotHere("its cache goes in by other names than it comes out")
        self.empty = {value.name: self._empty(value, caches, key[0]) for key, value in pasts.items()}
        self.following = {value.name: presents[key] for key, value in pasts.items()}
        self.output = self._logits(outputs)
        self.last_only: bool | None = None
        self.past: dict[str, NDArray[Any]] = {}

    @staticmethod
    def _is_known(value: Any) -> bool:
        rank, kind = len(value.shape), value.type
        if any(isinstance(size, int) and size != 1 for size in value.shape[:1]):
            return False  # rows of a batch that there are not
        if value.name in {"input_ids", "position_ids"}:
            return rank == 2 and kind in WHOLE and not isinstance(value.shape[1], int)
        if value.name == "cache_position":
            return rank == 1 and kind in WHOLE
        if value.name == "attention_mask":
            return kind in TYPES and (rank == 2 or (rank == 4 and kind not in WHOLE))
        return False

    @staticmethod
    def _empty(value: Any, caches: list[list[int]], layer: int) -> NDArray[Any]:
        """A cache without a slot: [1, heads, 0, head_dim]. What the graph leaves open is the plan's."""
        if len(value.shape) != 4 or value.type not in FLOATS or not layer < len(caches):
            raise NotHere(f"nobody here knows what to give as {_said(value)}")
        wanted = [1, caches[layer][0], 0, caches[layer][1]]
        for declared, size in zip(value.shape, wanted, strict=True):
            if isinstance(declared, int) and declared != size:
                raise NotHere(f"its cache {_said(value)} is none of shape {wanted} to begin with")
        return np.zeros(wanted, TYPES[value.type])

    @staticmethod
    def _logits(outputs: list[Any]) -> Any:
        """The output of that name, or the only one that can be."""
        able = [v for v in outputs if _slot(v.name) is None and len(v.shape) == 3 and v.type in FLOATS]
        named = [value for value in able if value.name == "logits"] or able
        if len(named) != 1:
            raise NotHere(f"which of its outputs are logits nobody knows: {', '.join(map(_said, able[:4]))}")
        return named[0]

    def _given(self, value: Any, tokens: NDArray[np.int64], begin: int) -> NDArray[Any]:
        """What an input is filled with, for tokens begin.. of which those before are in the cache."""
        kind, end = TYPES[value.type], begin + len(tokens)
        if value.name == "input_ids":
            return tokens[None].astype(kind)
        if value.name != "attention_mask":
            positions = np.arange(begin, end).astype(kind)
            return positions if len(value.shape) == 1 else positions[None]
        if len(value.shape) == 2:
            return np.ones((1, end), kind)
        seen = np.tri(len(tokens), end, begin, dtype=np.bool_)[None, None]
        if kind is np.bool_:
            return seen
        lowest = np.finfo(np.float16 if kind is np.float16 else np.float32).min
        return np.where(seen, np.float32(0), lowest).astype(kind)

    def feed(self, tokens: NDArray[np.int64], begin: int) -> NDArray[np.float32]:
        """Logits of tokens begin..begin + n - 1: float32[n, vocabulary], or of the last one alone."""
        given = {name: self._given(value, tokens, begin) for name, value in self.inputs.items()}
        names = [self.output.name, *self.following.values()]
        logits, *presents = self.session.run(names, {**given, **self.past})
        end = begin + len(tokens)
        for present in presents:
            if present.ndim != 4 or present.shape[2] != end:
                shape = list(present.shape)
                raise NotHere(f"its cache is {shape} after {end} tokens, and does not grow with them")
        self.past = dict(zip(self.following, presents, strict=True))
        found: NDArray[np.float32] = logits[0].astype(np.float32)
        return found

    def run(
        self, *, tokens: list[int], judged: int, decoded: int, chunk: int, **ours: Any
    ) -> NDArray[np.float32]:
        """Logits of the tokens from `judged` on. ours: what only graphs of our own take."""
        every, count = np.array(tokens, np.int64), len(tokens)
        if self.last_only is None:  # shapes need not say it: exporters name them as they like
            self.past = dict(self.empty)
            self.last_only = len(self.feed(every[:2], 0)) < len(every[:2])
        self.past = dict(self.empty)

        def feed(begin: int, end: int) -> tuple[NDArray[np.float32], int]:
            if self.following:
                return self.feed(every[begin:end], begin), end - begin
            return self.feed(every[:end], 0)[begin - end :], end - begin

        return feed_passage(
            feed, count=count, judged=judged, decoded=decoded, chunk=chunk, last_only=self.last_only
        )


def run_passages(request: dict[str, Any], answer: Answer) -> None:
    """Run all and write their logits to the file that was asked for."""
    try:
        model = Model(request["path"], request["provider"], request["caches"])
    except NotHere:
        raise
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise NotHere(f"this ONNX Runtime has no kernel for it: {reason(error)}") from None
    except Exception as error:
        raise Refused(f"ONNX Runtime does not load it: {reason(error)}") from None

    def run(**passage: Any) -> NDArray[np.float32]:
        try:
            return model.run(**passage)
        except (MemoryError, NotHere):
            raise
        except Exception as error:
            # with other inputs it might: these were guessed by their names
            raise NotHere(f"ONNX Runtime does not run it: {reason(error)}") from None

    write_logits(request, run, answer)


def handle(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Run what is asked for."""
    run_passages(request, answer)
    return {"ok": True}


if __name__ == "__main__":
    serve(handle)
