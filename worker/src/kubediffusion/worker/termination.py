"""Says why the process ends, where the operator reads it: the container's termination message."""

from __future__ import annotations

import logging
from pathlib import Path

from kubediffusion.worker.settings import Settings

logger = logging.getLogger(__name__)

LIMIT = 4096
"""Bytes that Kubernetes keeps of a termination message."""


def scrubbed(text: str, settings: Settings) -> str:
    """Take the worker's own secrets out of a text that others will read."""
    for secret in filter(None, settings.secrets):
        text = text.replace(secret, "***")
    return text


def write_reason(path: Path | None, reason: str) -> None:
    """Write the reason to the termination log, cut to what Kubernetes keeps; without a path, to nowhere."""
    if path is None:
        return
    try:
        path.write_bytes(reason.encode()[:LIMIT].decode(errors="ignore").encode())
    except OSError as error:
        logger.warning("the termination log cannot be written: %s", error)
