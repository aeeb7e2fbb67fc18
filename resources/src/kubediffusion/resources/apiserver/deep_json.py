"""JSON of the API server, of any depth."""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 500
"""Maps and lists within each other that are read where Python cannot read all: half of its limit of 1,000, which what
calls the decoder takes from too."""

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


def loads(data: bytes) -> Any:
    """Decode JSON. What is nested too deeply for Python is read as null from :data:`DEEPEST` levels on.

    Kubernetes takes 10,000 levels, in a free-form field (``affinity``, ``template``) of one object. It must keep no
    reader from the list, or the watch, in which that object is.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(_cut(data))


def _cut(data: bytes) -> bytes:
    """Return JSON with null in place of each map and list below :data:`DEEPEST` others."""
    kept: list[bytes] = []
    depth, kept_to = 0, 0
    for token in _TOKEN.finditer(data):
        sign = token[0]
        if sign in b"[{":
            if depth == DEEPEST:
                kept += data[kept_to : token.start()], b"null"
            depth += 1
        elif sign in b"]}":
            depth -= 1
            if depth == DEEPEST:
                kept_to = token.end()
    if depth >= DEEPEST:
        raise ValueError("JSON ends within a value")
    return b"".join((*kept, data[kept_to:]))
