"""llama.cpp's own source tree, its converter and vocabularies included, from the llama-cpp-python
source package; the wheel and llama-server compiled from it. All are kept in the user's cache directory.

`python tests/support/llama_cpp_source.py` fetches and compiles what is missing (4 minutes) and prints
the wheel's path; with `server` behind it llama-server's (5 minutes).
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "yarnconv"
PACKAGE = CACHE / f"llama_cpp_python-{VERSION}"
LLAMA_CPP = PACKAGE / "vendor" / "llama.cpp"
SERVER = CACHE / f"llama-server-{VERSION}" / "llama-server"
SERVER_ONLY = ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI", "TOOLS_INSTALL")


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


def find_server() -> Path | None:
    """llama-server, on the PATH or compiled here."""
    if SERVER.is_file():
        return SERVER
    found = shutil.which("llama-server")
    return Path(found) if found else None


def build_server() -> Path:
    """Compile llama-server once, without what it needs a network or a browser for."""
    if not SERVER.is_file():
        with tempfile.TemporaryDirectory() as build:
            off = [f"-DLLAMA_{name}=OFF" for name in SERVER_ONLY]
            options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", *off]
            cores = str(len(os.sched_getaffinity(0)))
            for command in (
                ["cmake", "-S", str(fetch_source()), "-B", build, *options],
                ["cmake", "--build", build, "--target", "llama-server", "--parallel", cores],
            ):
                subprocess.run(command, check=True, stdout=sys.stderr)
            SERVER.parent.mkdir(parents=True, exist_ok=True)
            half = SERVER.with_suffix(f".{os.getpid()}")
            shutil.copy2(Path(build) / "bin" / "llama-server", half)
            half.replace(SERVER)
    return SERVER


if __name__ == "__main__":
    fetch_source()
    print(build_server() if sys.argv[1:] == ["server"] else build_wheel())
