"""What building takes, estimated before it begins.

Measured with TensorRT-RTX 1.7 (`python -m tests.bench.tensorrt_bench`): the builder's own memory is below
0.6 GB + 1.6 x the engine's weights, and where it converts them to another type another 1 x.
"""

from pathlib import Path

from yarnconv.errors import BadInput

FIXED_BYTES = 3 * 10**8
PER_WEIGHT, PER_CONVERTED = 1.5, 0.7  # below what was measured: an estimate must not refuse what would do


def needed_memory(weight_bytes: int, *, converts: bool) -> int:
    """Bytes."""
    return FIXED_BYTES + int(weight_bytes * (PER_WEIGHT + (PER_CONVERTED if converts else 0.0)))


def available_memory() -> int | None:
    """Bytes that a process can still get, by machine and control group; None where neither says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = (line.split() for line in lines if line.startswith(("MemAvailable:", "SwapFree:")))
        machine = sum(1024 * int(words[1]) for words in free)
    except (OSError, ValueError):
        return None
    group = _group_limit()
    return machine if group is None else min(machine, group)


def _group_limit() -> int | None:
    """What the control group has left; page cache counts as left, for it gives way."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(limit - used + int(statistics.get("file", 0)), 0)


def check_memory(weight_bytes: int, *, converts: bool) -> None:
    """Refuse to begin what the machine cannot end. Raises BadInput."""
    needed, available = needed_memory(weight_bytes, converts=converts), available_memory()
    if available is not None and needed > available:
        raise BadInput(
            f"building takes about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
            where=f"{weight_bytes / 1e9:.1f} GB of weights",
            fix="Build on a larger machine, free some memory, or choose --dtype int4.",
        )
