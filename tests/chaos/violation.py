"""What a law is broken with, and how laws read an object. Independent of the parts, as the checker is."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from chaos.evidence import Version


@dataclass(frozen=True)
class Violation:
    """A law that does not hold.

    Attributes:
        law: Its name.
        subject: What it was broken for.
        message: How.
    """

    law: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.law}: {self.subject}: {self.message}"


def phase(version: Version) -> str:
    """Return a job's phase; the schema's default where it says none."""
    return str(status(version).get("phase", "Pending"))


def status(version: Version) -> dict[str, Any]:
    """Return an object's status."""
    found: dict[str, Any] = version.object.get("status") or {}
    return found


def moment(text: str) -> dt.datetime:
    """Read a timestamp of the Kubernetes API."""
    return dt.datetime.fromisoformat(text)
