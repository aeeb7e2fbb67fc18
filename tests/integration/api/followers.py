"""Clients of event streams, each in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from integration.api.api_kit import Api
from kubediffusion.local.testing import wait_for


class Follower:
    """A stream that is read as it comes.

    Attributes:
        events: What has come.
        response: The response, once it has begun.
        ended: Set when the stream has ended by itself.
    """

    def __init__(self, api: Api, path: str, headers: dict[str, str]) -> None:
        self.events: list[ServerSentEvent] = []
        self.response: httpx.Response | None = None
        self.ended = threading.Event()
        self._api = api
        self._path = path
        self._headers = headers
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_for("the stream", lambda: self.response is not None)

    def _read(self) -> None:
        with (
            httpx.Client(base_url=self._api.url, timeout=60, trust_env=False) as client,
            connect_sse(client, "GET", self._path, headers=self._headers) as source,
        ):
            self.response = source.response
            with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                for event in source.iter_sse():
                    self.events.append(event)
                self.ended.set()

    def next(self, count: int = 1) -> dict[str, Any]:
        """Wait for the event of a number, from 1, and return its data."""
        wait_for(f"event {count}", lambda: len(self.events) >= count)
        found: dict[str, Any] = self.events[count - 1].json()
        return found

    def until(self, kind: str, name: str = "") -> ServerSentEvent:
        """Wait for an event of a type, and of a job."""

        def found() -> ServerSentEvent | None:
            events = [event for event in self.events if event.event == kind]
            return next((event for event in events if not name or event.json()["name"] == name), None)

        return wait_for(f"{kind} {name}", found)

    @property
    def last_id(self) -> str:
        return self.events[-1].id

    @property
    def told(self) -> list[tuple[str, str]]:
        """Type and phase of each event."""
        return [(event.event, event.json().get("phase", "")) for event in self.events]

    def hang_up(self) -> None:
        """Close the connection, as a client does that goes."""
        if self.response is not None and self._thread.is_alive():
            with contextlib.suppress(OSError):
                self.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def following(api: Api, path: str, last_event_id: str | None = None, **headers: str) -> Iterator[Follower]:
    """Follow a path of the API."""
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    follower = Follower(api, path, headers)
    try:
        yield follower
    finally:
        follower.hang_up()
