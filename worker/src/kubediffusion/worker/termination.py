"""Writes why the process ends where the operator reads it: to the container's termination message."""

from __future__ import annotations

import logging
from pathlib import Path

from kubediffusion.resources.redaction import Redactor
from kubediffusion.worker.settings import Settings

logger = logging.getLogger(__name__)

MAX_BYTES = 4096
"""Bytes that Kubernetes keeps of a termination message."""


def redact(text: str, settings: Settings) -> str:
    """Return a text with the worker's own secrets replaced by ``***``."""
    return Redactor(settings.secrets).redact(text)


def write_termination_message(path: Path | None, message: str) -> None:
    """Write a message to the termination log, cut to ``MAX_BYTES``; do nothing without a path.

    An error of the disk is logged: the process ends anyway.
    """
    if path is None:
        return
    try:
        # The name of a file may hold what is no text.
        path.write_bytes(message.encode(errors="replace")[:MAX_BYTES].decode(errors="ignore").encode())
    except OSError as error:
        logger.warning("the termination log cannot be written: %s", error)
