"""llama.cpp's own source tree, its converter and vocabularies included, from the llama-cpp-python
source package; and the wheel compiled from it. Both are kept in the user's cache directory.

`python tests/support/llama_cpp_source.py` fetches and compiles what is missing (4 minutes) and prints
the wheel's path.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "yarnconv"
PACKAGE = CACHE / f"llama_cpp_python-{VERSION}"
LLAMA_CPP = PACKAGE / "vendor" / "llama.cpp"


def _pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, stdout=sys.stderr)


def fetch_source() -> Path:
    """Download and unpack the source package once."""
    if not LLAMA_CPP.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        requirement = f"llama-cpp-python=={VERSION}"
        _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(CACHE), requirement)
        archive = CACHE / f"llama_cpp_python-{VERSION}.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE, filter="data")
        archive.unlink()
    return LLAMA_CPP


def build_wheel() -> Path:
    """Compile the wheel once."""
    wheels = CACHE / "wheels"
    found = sorted(wheels.glob(f"llama_cpp_python-{VERSION}-*.whl"))
    if not found:
        fetch_source()
        _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(PACKAGE))
        found = sorted(wheels.glob(f"llama_cpp_python-{VERSION}-*.whl"))
    return found[0]


if __name__ == "__main__":
    fetch_source()
    print(build_wheel())
