"""What commands cost: time, and the memory of their whole process tree, polled."""

import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """seconds; peak_anonymous: bytes of the tree's own memory (RssAnon); peak_proportional: bytes with its
    share of mapped files, which the kernel may drop at any time (Pss); status: the exit code."""

    seconds: float
    peak_anonymous: int
    peak_proportional: int
    status: int


def _field(pid, file, name):
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _tree(pid):
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield from _tree(int(child))


def measure(command, *, allowed=(0,), stdout=subprocess.DEVNULL) -> Cost:
    """Run a command to its end. Stops everything where it ends with a code that is not allowed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)
    anonymous = proportional = 0
    done = threading.Event()

    def poll():
        nonlocal anonymous, proportional
        rounds = 0
        while not done.wait(0.01):
            tree = list(_tree(process.pid))
            anonymous = max(anonymous, sum(_field(pid, "status", "RssAnon") for pid in tree))
            if rounds % 20 == 0:  # walks every page: not too often
                proportional = max(proportional, sum(_field(pid, "smaps_rollup", "Pss") for pid in tree))
            rounds += 1

    thread = threading.Thread(target=poll)
    thread.start()
    status = process.wait()
    seconds = time.perf_counter() - started
    done.set()
    thread.join()
    if status not in allowed:
        raise SystemExit(f"{command} ended with {status}")
    return Cost(seconds, anonymous, proportional, status)


def measure_rounds(commands, runs, out: Path, *, before=lambda: None) -> dict[str, list[Cost]]:
    """Costs of every command, name -> argv, over so many rounds, each in another order and each command with
    an empty directory `out`. A round more than that comes first, fills the page cache and is not counted.

    before: called before each command."""
    costs = {name: [] for name in commands}
    for run in range(runs + 1):
        for name, command in random.sample(sorted(commands.items()), len(commands)):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            os.sync()  # nobody pays for writing back another's output
            before()
            cost = measure(command)
            if run:
                costs[name].append(cost)
    shutil.rmtree(out)
    return costs


def median_ratio(numerators, denominators):
    """The median over rounds of one thing's time over another's."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
