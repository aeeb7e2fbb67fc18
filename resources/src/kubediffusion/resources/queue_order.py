"""Who comes first: the one order in which jobs are served, wherever they wait."""

from __future__ import annotations

import datetime as dt
from typing import TypeVar

Created = TypeVar("Created", dt.datetime, float)

QueueKey = tuple[int, Created, str]
"""What jobs that wait are sorted by."""


def queue_key(priority: int | None, created: Created, name: str) -> QueueKey[Created]:
    """Give what a job is sorted by: its priority (higher first), then its age, then its name.

    ``creationTimestamp`` has whole seconds; the names that :func:`~kubediffusion.resources.task_ids.new_task_id` makes
    keep first come, first served within one.

    Args:
        priority: ``spec.priority``.
        created: When the job was created: a moment, or seconds since the epoch.
        name: Its name.
    """
    return -(priority or 0), created, name
