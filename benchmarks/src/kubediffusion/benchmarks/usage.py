"""What processes cost, read from ``/proc``: processor time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1024
"""KiB, which is what ``/proc`` counts in."""


@dataclass(frozen=True)
class Usage:
    """What a process has used so far.

    Attributes:
        cpu: Seconds of processor time, those of children that have ended included.
        rss: MiB in memory now.
        peak: MiB in memory at most.
    """

    cpu: float
    rss: float
    peak: float


def usage(pid: int) -> Usage:
    """Read what a process has used.

    Raises:
        OSError: There is no such process.
    """
    # The name of the program, in parentheses, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    memory = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Usage(
        cpu=sum(map(int, fields[11:15])) / TICKS,
        rss=int(memory["VmRSS"].split()[0]) / MIB,
        peak=int(memory["VmHWM"].split()[0]) / MIB,
    )


def started(pid: int) -> float:
    """Return when a process was started, in seconds of the boot clock (``CLOCK_BOOTTIME``)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]) / TICKS


class Meter:
    """Measures several processes from its making to :meth:`read`.

    Args:
        pids: The processes, by name.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._began = time.monotonic()
        self._before = {name: usage(pid) for name, pid in self._pids.items()}

    def read(self) -> tuple[float, dict[str, Usage]]:
        """Return the seconds since the start, and what each process has used in them (``cpu``) and holds now."""
        seconds = time.monotonic() - self._began
        after = {name: usage(pid) for name, pid in self._pids.items()}
        used = {name: Usage(now.cpu - self._before[name].cpu, now.rss, now.peak) for name, now in after.items()}
        return seconds, used
