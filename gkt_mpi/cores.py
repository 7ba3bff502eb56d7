"""The cores of this machine, without importing torch."""

import os


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use; on macOS, which has no affinity, of all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
