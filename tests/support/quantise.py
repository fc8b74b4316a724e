"""llama.cpp's own quantiser, in a process of its own."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ctypes, sys
import llama_cpp
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
source, destination, name = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + name.upper())
sys.exit(llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(params)))
"""


def quantise(source: Path, destination: Path, name: str) -> Path:
    """A GGUF in one of llama.cpp's types, such as q4_k_m."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(source), str(destination), name]
    subprocess.run(command, check=True, capture_output=True)
    return destination
