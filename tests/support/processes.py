"""Commands of ours as processes that can be interrupted."""

import signal
import subprocess
import sys


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
