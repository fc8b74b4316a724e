"""What memory the machine has left."""

from pathlib import Path


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
