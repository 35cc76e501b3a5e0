"""Whether the kernel's out-of-memory killer was at work: it leaves a process no time to say so itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def kernel_oom_kills() -> int:
    """How often the kernel's out-of-memory killer has struck in our control group, or anywhere when it has none."""
    for counter in (*_cgroup_counters(), Path("/proc/vmstat")):
        try:
            fields = [line.split() for line in counter.read_text().splitlines()]
        except OSError:
            continue
        return next((int(count) for name, count in fields if name == "oom_kill"), 0)
    return 0


def _cgroup_counters() -> Iterator[Path]:
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            yield Path("/sys/fs/cgroup", path.lstrip("/"), "memory.events")
        elif "memory" in controllers.split(","):
            yield Path("/sys/fs/cgroup/memory", path.lstrip("/"), "memory.oom_control")
