"""The events of a watch, decoded from the lines of its HTTP body."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from kubediffusion.resources.apiserver import deep_json
from kubediffusion.resources.apiserver.errors import error_from_status


async def decode_events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Decode the events of a watch until its body ends.

    Raises:
        KubernetesError: The server sent an ``ERROR`` event; :class:`GoneError` when the resource version is too old.
        ValueError: A line is no event: a proxy on the way may have answered.
    """
    async for line in split_lines(content):
        try:
            event = deep_json.loads(line)
            kind, item = event["type"], dict(event["object"])
            code = item.get("code", 0) if kind == "ERROR" else None
            if code is None:
                item["metadata"]["resourceVersion"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("a line is no event") from error
        if code is not None:
            raise error_from_status(code if isinstance(code, int) else 0, item)
        yield event


async def split_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length.

    aiohttp's own iteration gives up on a line longer than its read buffer. One object with large annotations (the API
    server allows 256 KiB of them) would then break every watch again and again.
    """
    parts: list[bytes] = []
    async for data in content.iter_any():
        *ended, rest = data.split(b"\n")
        for end in ended:
            yield b"".join((*parts, end))
            parts.clear()
        if rest:
            parts.append(rest)
    # What follows the last newline is an event that was cut off with the connection.
