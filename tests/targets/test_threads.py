"""Threads that share one list of jobs: all is done once, the first failure ends it, and so does Ctrl-C."""

import subprocess
import sys

import pytest

from yarnconv.targets.threads import share_out

INTERRUPTED_AT_ANY_MOMENT = """
import os, random, signal, threading, time
from yarnconv.artifact import held_back
from yarnconv.targets.threads import share_out

def work(items):
    for _ in items:
        time.sleep(0.0001)

rounds, interrupts = 400, 0
for seed in range(rounds):
    delay = random.Random(seed).uniform(0, 0.002)
    def send():
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)
    sender = threading.Thread(target=send)
    try:
        with held_back():
            sender.start()
        share_out(iter(range(10**9)), work, 4)
    except KeyboardInterrupt:
        interrupts += 1
    sender.join()
    assert threading.active_count() == 1, threading.enumerate()
print(interrupts, rounds)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_each_item_reaches_one_thread(workers):
    seen: list[int] = []
    share_out(iter(range(1000)), seen.extend, workers)
    assert sorted(seen) == list(range(1000))


def test_the_first_failure_ends_all():
    taken: list[int] = []

    def work(items):
        for item in items:
            taken.append(item)
            if item == 7:
                raise ValueError("the seventh")

    with pytest.raises(ValueError, match="the seventh"):
        share_out(iter(range(10**9)), work, 2)
    assert len(taken) < 10**6


def test_an_interrupt_at_any_moment_is_an_interrupt():
    """Four hundred times: a lock of Python's own would break in about one of a thousand."""
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_ANY_MOMENT], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    interrupts, rounds = map(int, found.stdout.split())
    assert interrupts == rounds
