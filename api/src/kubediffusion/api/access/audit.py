"""The lines of the log that tell who created, cancelled and deleted what."""

from __future__ import annotations

from enum import StrEnum

from kubediffusion.api.access.identity import Identity

AUDIT = "audit"
"""The event that all of these lines have, by which they are found among the others."""


class AuditAction(StrEnum):
    """What was done to a job."""

    CREATE = "create"
    CANCEL = "cancel"
    DELETE = "delete"


def audit(action: AuditAction, job: str, identity: Identity) -> dict[str, str]:
    """Return the fields of a line; none is a secret, and none holds what the client wrote.

    Args:
        action: What was done.
        job: The job's name.
        identity: Who did it.
    """
    return {
        "event": AUDIT,
        "action": action.value,
        "job": job,
        "client": identity.client,
        "authentication": identity.mode.value,
    }
