"""Counts the CPUs that the container may use.

``loky.cpu_count`` reads the same files by the same rules; it was tried and not taken: see docs/adr/0017.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Quota and period of the process's control group (cgroup v2), as the container sees it."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
CPU_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
"""The same of cgroup v1."""


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1: by affinity and the quota of its control group.

    PyTorch counts the machine's CPUs; more threads than the quota allows are throttled and slow each other down.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_MAX.read_text().split() if CPU_MAX.exists() else _quota_v1()
    except (OSError, ValueError):
        return cpus
    if quota in {"max", "-1"}:
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def _quota_v1() -> list[str]:
    return [CPU_QUOTA.read_text().strip(), CPU_PERIOD.read_text().strip()]
