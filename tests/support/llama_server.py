"""The real llama-server, started by the script that was written beside a GGUF."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.llama_cpp_source import find_server

# float32 keys and values and no flash attention, one thread: what the passages of `check` run with
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "1", "-tb", "1", "-ngl", "0", "--no-warmup")
STARTS_WITHIN = 120.0  # seconds, on two busy processors


# options of a dynamic plan that no preset carries, and a part of the message
REFUSED_EMISSIONS = [
    (["--method", "dynamic-yarn", "--no-truncate", "--emit", "llama-server"], "no flag of llama.cpp"),
    (["--method", "dynamic-yarn", "--emit", "all"], "a Modelfile has no parameters"),
    (["--method", "dynamic-yarn", "--emit", "card"], "--emit llama-server"),
]


def require_server() -> Path:
    """The binary, or a skipped test."""
    found = find_server()
    if found is None:
        pytest.skip("there is no llama-server: python tests/support/llama_cpp_source.py server (5 minutes)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LlamaServer:
    """A context manager. script: what starts it; it finds the binary as `llama-server` on its PATH."""

    def __init__(self, script: Path, scratch: Path, *options) -> None:
        programs = scratch / "programs"
        programs.mkdir(exist_ok=True)
        link = programs / "llama-server"
        if not link.exists():
            link.symlink_to(require_server())
        self._url = f"http://127.0.0.1:{(port := _free_port())}"
        self._log = (scratch / "server.log").open("w+")
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LLAMA_CACHE": str(scratch / "cache"),
            "HOME": str(scratch),
            "XDG_CONFIG_HOME": str(scratch),
        }
        self._process = subprocess.Popen(
            [str(script), "--port", str(port), "--host", "127.0.0.1", *EXACT, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
            start_new_session=True,
        )

    def __enter__(self):
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                if self.ask("/health")["status"] == "ok":
                    return self
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.1)
        self.__exit__()
        raise AssertionError(f"llama-server does not start:\n{self.log[-3000:]}")

    def __exit__(self, *error) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._log.close()

    @property
    def log(self) -> str:
        """All that it has said."""
        return Path(self._log.name).read_text(errors="replace")

    def ask(self, path, document=None):
        """What it answers to a GET, or to a POST of a document."""
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"} if data else {}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def log_probabilities(self, prompt, forced, *, model=None):
        """{token: log-probability} before each of the `forced` tokens, with which the prompt goes on.

        One and the same token, one of text: the server leaves out what it has of half a character. It is
        forced by a bias, which these probabilities do not see.
        """
        assert len(set(forced)) == 1
        document = {
            "prompt": prompt,
            "n_predict": len(forced),
            "temperature": 0,
            "n_probs": 512,
            "logit_bias": [[forced[0], 1000.0]],
            "cache_prompt": False,
            **({} if model is None else {"model": model}),
        }
        found = self.ask("/completion", document)["completion_probabilities"]
        assert [entry["id"] for entry in found] == forced
        return [{top["id"]: top["logprob"] for top in entry["top_logprobs"]} for entry in found]


def bash_accepts(script: Path) -> None:
    """Whether a script parses, in the shells there are."""
    for shell in filter(shutil.which, ("sh", "bash", "dash")):
        subprocess.run([shell, "-n", str(script)], check=True, capture_output=True)
