"""The names of jobs that the HTTP API creates: its task ids."""

from __future__ import annotations

import os
import time
import uuid


def new_task_id() -> str:
    """Make the name of a new job: a UUID of version 7 (RFC 9562), so that names sort by the time of creation.

    ``creationTimestamp`` has whole seconds only; the name keeps first come, first served within a second.
    """
    milliseconds = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | tail
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
