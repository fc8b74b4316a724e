"""Commands of ours as processes that can be interrupted."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path


def start(*arguments, **options) -> subprocess.Popen:
    """`python -m yarnconv ...`, with stderr to read.

    Ctrl-C reaches it even where the tests run in the background, whose children a shell has ignore it.
    """
    command = [sys.executable, "-m", "yarnconv", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def with_yarnconv(directory: Path, **variables: str) -> dict[str, str]:
    """An environment on whose PATH `yarnconv` is this interpreter's. directory: for the program."""
    directory.mkdir(exist_ok=True)
    program = directory / "yarnconv"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m yarnconv "$@"\n')
    program.chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
