"""Where a page of a list ended, as text that clients hand back."""

from __future__ import annotations

import base64
import json

from pydantic_core import from_json

from kubediffusion.api.errors import InvalidRequestError, problem
from kubediffusion.api.job_cache.records import AgeKey


def encoded_cursor(end: AgeKey) -> str:
    """Write where a page ended."""
    return base64.urlsafe_b64encode(json.dumps(end).encode()).decode().rstrip("=")


def decoded_cursor(text: str | None, parameter: str, name: str = "cursor") -> AgeKey | None:
    """Read where the page before ended; None for the first page.

    Args:
        text: What the client handed back.
        parameter: The query's parameter that it came in.
        name: What clients know it as.

    Raises:
        InvalidRequestError: It is no such text.
    """
    if text is None:
        return None
    try:
        # Python's own parser recurses as deep as the text tells it to, and takes NaN for a number.
        created, job = from_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), allow_inf_nan=False)
        return AgeKey(float(created), str(job))
    except (ValueError, TypeError) as error:
        message = f"This is no {name} of a list"
        raise InvalidRequestError([problem(parameter, message, where="query")]) from error
