"""The names of jobs that the HTTP API creates: its task ids."""

from __future__ import annotations

import uuid_utils


def new_task_id() -> str:
    """Make the name of a new job: a UUID of version 7 (RFC 9562), so that names sort by the time of creation.

    ``creationTimestamp`` has whole seconds only; the name keeps first come, first served within a second. Names of one
    process sort in the order of the calls; those of several processes by the millisecond.
    """
    return str(uuid_utils.uuid7())
