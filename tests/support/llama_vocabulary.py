"""What llama.cpp makes of a GGUF's vocabulary, in a process of its own: half a vocabulary aborts it."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ctypes, json, sys
import llama_cpp
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
params = llama_cpp.llama_model_default_params()
params.vocab_only = True
for path in sys.argv[1:]:
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    count = llama_cpp.llama_vocab_n_tokens(vocabulary)
    print(json.dumps({
        "adds_first": bool(llama_cpp.llama_vocab_get_add_bos(vocabulary)),
        "first": llama_cpp.llama_vocab_bos(vocabulary),
        "ends": [i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, i)],
    }))
    llama_cpp.llama_model_free(model)
"""


def read_vocabularies(paths: list[Path]) -> list[dict]:
    """Of each: whether it adds the first token by itself, that token's id, and the ids that end an answer."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]
