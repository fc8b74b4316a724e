"""How much of the machine a command takes."""

import os


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))
