"""The names of workers' Jobs, from the model and the template that each is made from."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_hash(content: Any) -> str:
    """Hash a JSON-like value to 8 hexadecimal digits; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def worker_job_name(model: str, template_hash: str, ordinal: int) -> str:
    """Name the batch/v1 Job of a worker: the same inputs give the same name, so creating one twice is a 409."""
    return f"{model}-{template_hash}-{ordinal}"
