"""llama.cpp's own quantiser, in a process of its own: an assertion in ggml kills the one it stands in.

Run as a script. Reads one JSON request per line and answers each with one JSON line:
    {"path", "out", "type", "threads", "buffer", "imatrix", "overrides", "forecast"}
        quantises the GGUF `path` to `out`; with `forecast` it only says what would come of it, and of `path`
        no tensor is read. imatrix: null, or {"values": .npy of all, "entries": [[name, count], ...]}.
        overrides: keys to add, by name. Answers {"event": {"tensor": name}} as it comes to each, then
        {"bytes": of all tensors, without their padding, "fallbacks": [[tensor, type wanted, type used], ...]}
An answer {"refused": reason} means that llama.cpp would not do it and said so.
"""

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

sys.path.append(str(Path(__file__).parents[3]))
from yarnconv.worker_side import Answer, Refused, serve

ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
LONGEST_VALUE = 127  # bytes of a text that a key is given
TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+)")
FALLBACK = re.compile(
    r"warning: (\S+) +- ncols +\d+ not divisible by +\d+ \(required for type +(\S+)\)"
    r"[^\n]*?-> falling back to +(\S+)"
)
SIZE = re.compile(r"quant size *= *([\d.]+) MiB")


class Log:
    """What llama.cpp says while it works: where it is, and its last errors."""

    def __init__(self) -> None:
        self._answer: Answer = lambda document: None
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        self.begin(self._answer)

    def begin(self, answer: Answer) -> None:
        """Listen anew."""
        self._answer, self.text, self.errors = answer, "", list[str]()

    def _take(self, level: int, text: bytes, data: Any) -> None:
        words = text.decode(errors="replace")
        self.text += words
        if level == ERROR_LEVEL:
            self.errors = [*self.errors[-4:], " ".join(words.replace("=", " ").split())]
        if (found := TENSOR.match(words)) is not None:
            self._answer({"event": {"tensor": found[1]}})


class Parameters:
    """llama.cpp's structure, and what it points to."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.structure = llama_cpp.llama_model_quantize_default_params()
        self.structure.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + request["type"].upper())
        self.structure.nthread = request["threads"]
        self.structure.max_buf_size = request["buffer"]
        self.structure.dry_run = request["forecast"]
        if request["imatrix"] is not None:
            self._values = np.load(request["imatrix"]["values"])
            self._imatrix = self._entries(request["imatrix"]["entries"])
            self.structure.imatrix = self._imatrix
        if request["overrides"]:
            self._overrides = self._keys(request["overrides"])
            self.structure.kv_overrides = self._overrides

    def _entries(self, entries: list[tuple[str, int]]) -> Any:
        found = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()  # the last one ends it
        first = 0
        for slot, (name, count) in zip(found, entries, strict=False):
            slot.name = name.encode()
            part = self._values[first : first + count]
            slot.data = part.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            slot.size = count
            first += count
        return found

    @staticmethod
    def _keys(overrides: dict[str, str | int]) -> Any:
        found = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()
        for slot, (key, value) in zip(found, overrides.items(), strict=False):
            slot.key = key.encode()
            if isinstance(value, int):
                slot.tag, slot.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
            else:
                slot.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
                data = value.encode(errors="replace")[:LONGEST_VALUE]
                slot.value.val_str = data.decode(errors="ignore").encode()  # no half of a letter at its end
        return found


def quantise(request: dict[str, Any], log: Log, answer: Answer) -> dict[str, Any]:
    """Do what is asked for."""
    log.begin(answer)
    parameters = Parameters(request)
    source, destination = os.fsencode(request["path"]), os.fsencode(request["out"])
    failed = llama_cpp.llama_model_quantize(source, destination, ctypes.byref(parameters.structure))
    if failed:
        raise Refused(" | ".join(log.errors) or "llama.cpp does not quantise it, and does not say why")
    size = SIZE.search(log.text)
    return {
        "bytes": None if size is None else int(float(size[1]) * 2**20),
        "fallbacks": [[name, *map(str.lower, kinds)] for name, *kinds in FALLBACK.findall(log.text)],
    }


def main() -> None:
    """Answer requests until stdin ends."""
    llama_cpp.llama_backend_init()
    log = Log()
    serve(lambda request, answer: quantise(request, log, answer))


if __name__ == "__main__":
    main()
