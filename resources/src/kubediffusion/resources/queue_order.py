"""The order in which jobs are served: the operator queues by it, and the API counts positions by it."""

from __future__ import annotations

import datetime as dt
from typing import TypeVar

Created = TypeVar("Created", dt.datetime, float)

QueueKey = tuple[int, Created, str]
"""Sort key of a waiting job."""


def queue_key(priority: int | None, created: Created, name: str) -> QueueKey[Created]:
    """Return the sort key of a job: its priority (higher first), then its age, then its name.

    ``creationTimestamp`` has whole seconds; the names that :func:`~kubediffusion.resources.task_ids.new_task_id` makes
    keep first come, first served within one.

    Args:
        priority: ``spec.priority``.
        created: When the job was created: a moment, or seconds since the epoch.
        name: Its name.
    """
    return -(priority or 0), created, name
