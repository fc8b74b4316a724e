"""The worker's half of `worker`: requests on stdin, answers on stdout, one JSON document a line.

A worker's file runs by its path, and appends ours to the import path only then, so that nothing of ours hides
what a runtime brings.
"""

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1  # of prctl(2)
Answer = Callable[[dict[str, Any]], None]
# What answers a request, and says how far it is on the way.
Handle = Callable[[dict[str, Any], Answer], dict[str, Any]]


class Refused(Exception):
    """The runtime says no."""


class NotHere(Exception):
    """Nothing is wrong with what was asked for, but this machine cannot do it."""


def _end_with_parent() -> None:
    """Where the parent is killed, hours of work for nobody would go on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(handle: Handle) -> None:
    """Answer requests until stdin ends. Whatever else writes to stdout, such as a debugger that prints a
    dying process, writes to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    _end_with_parent()
    answers, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
    os.dup2(2, 1)

    def answer(document: dict[str, Any]) -> None:
        with lock:  # some runtimes tell of their progress from several threads
            answers.write(json.dumps(document) + "\n")
            answers.flush()

    for line in sys.stdin:
        try:
            answer(handle(json.loads(line), answer))
        except Refused as error:
            answer({"refused": str(error)})
        except NotHere as error:
            answer({"not_here": str(error)})
