"""List and watch: a handler learns of every change of a collection, through every interruption.

As client-go's Reflector does, it lists, watches from the list's resource version, resumes from the last version it saw
when a watch ends, and lists again when that version is gone. Other than there:

- it calls a handler, and keeps no store; of each object it keeps what ``remember`` returns, for the report of a
  deletion that it learns of by a list;
- the same object in the same version is reported once, so a list after an interruption reports only what changed;
- several changes of an object may be merged into the last one, by a list; a watch reports each;
- there is no periodic resync;
- an object that cannot be parsed is skipped, and counts as neither changed nor deleted.

``kubernetes.informer.SharedInformer`` of version 37 was tried: it cannot list custom resources (their API returns a
dictionary, and it iterates over the attribute ``items``, the method). It also needs a thread for each collection, lists
without pages, keeps every object whole, reports every object as modified at each list, logs and drops a handler's
error, and opens a refused watch again without a pause. docs/adr/0010 and 0017 say more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Generic, TypeVar

from kubediffusion.resources.apiserver.errors import GoneError, KubernetesError
from kubediffusion.resources.apiserver.resource import EventType, Resource
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.objects import KubernetesObject

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=KubernetesObject)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0

OPEN_SECONDS = 2.0
"""Seconds after which a watch that was not refused counts as open, though nothing has happened in it."""


class Reflector(Generic[T]):
    """Calls a handler for every change of a collection, once and in the server's order.

    Args:
        resource: The kind of object.
        namespace: The namespace to watch; None for all namespaces.
        on_change: Called with the object and whether it is deleted. It must not block.
        field_selector: Only objects that match; one that stops matching counts as deleted.
        remember: Reduces an object to what is kept of it, and passed to ``on_change`` when a list lacks it; the whole
            object by default.
        seen: Objects of a list that somebody else made before: those that the first list lacks are reported deleted.

    Attributes:
        synced: Set from the end of the first full list on.
        interrupted_since: When the first of the latest tries in a row failed, by the event loop's clock; None while the
            watch is open.
    """

    def __init__(
        self,
        resource: Resource[T],
        namespace: str | None,
        on_change: Callable[[T, bool], None],
        *,
        field_selector: str = "",
        remember: Callable[[T], T] = lambda item: item,
        seen: Iterable[T] = (),
    ) -> None:
        self._resource = resource
        self._namespace = namespace
        self._on_change = on_change
        self._field_selector = field_selector
        self._remember = remember
        self._known: dict[str, T] = {}
        self._seen = {item.uid: remember(item) for item in seen}
        self._version: str | None = None
        self.synced = asyncio.Event()
        self.interrupted_since: float | None = None

    async def run(self) -> None:
        """List and watch until cancelled. Errors of the API server are logged, and tried again after a pause."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                if self._version is None:
                    await self.relist()
                if await self._watch():
                    self._mark_open()
                    backoff.reset()
                else:
                    # A server that is going down ends each watch at once, without an error.
                    await asyncio.sleep(backoff.next_pause())
            except GoneError:
                self._version = None
                # A server that answers 410 each time would else be listed at full speed.
                await asyncio.sleep(backoff.next_pause())
            except KubernetesError as error:
                if self.interrupted_since is None:
                    self.interrupted_since = asyncio.get_running_loop().time()
                logger.warning("watch of %s interrupted, trying again: %s", self._resource.kind.__name__, error)
                pause = backoff.next_pause()
                await asyncio.sleep(error.retry_after or pause)

    async def relist(self) -> None:
        """List the collection once, and report how it differs from what was reported before.

        Raises:
            KubernetesError: The server refused, or did not answer.
        """
        first = not self._known
        present: set[str] = set()
        changed: list[T] = []
        version: str | None = None
        pages = self._resource.pages(self._namespace, field_selector=self._field_selector)
        async with aclosing(pages):
            async for page in pages:
                version = page.resource_version
                present.update(item.uid for item in page.items)
                # What cannot be parsed is there all the same.
                present.update(page.unreadable)
                changed += filter(self._has_changed, page.items)
                if first:
                    # Nothing can have been deleted, so nothing need wait for the last page: all of it at once may be a
                    # lot of memory.
                    self._report_all(changed)
        before = self._seen | self._known
        self._seen = {}
        for uid in before.keys() - present:
            self._known.pop(uid, None)
            self._on_change(before[uid], True)
        self._report_all(changed)
        self._version = version
        self.synced.set()

    def _has_changed(self, item: T) -> bool:
        known = self._known.get(item.uid)
        return known is None or known.metadata.resource_version != item.metadata.resource_version

    def _report_all(self, changed: list[T]) -> None:
        for item in changed:
            self._report(item, False)
        changed.clear()

    async def _watch(self) -> bool:
        """Follow one watch to its end; return whether it had an event."""
        assert self._version is not None  # noqa: S101 - set by relist
        has_events = False
        events = self._resource.watch(
            self._namespace,
            self._version,
            field_selector=self._field_selector,
        )
        opening = asyncio.get_running_loop().call_later(OPEN_SECONDS, self._mark_open)
        try:
            async with aclosing(events):
                async for event in events:
                    has_events = True
                    self.interrupted_since = None
                    self._version = event.resource_version
                    if event.item is not None:
                        self._report(event.item, event.type is EventType.DELETED)
        finally:
            opening.cancel()
        return has_events

    def _mark_open(self) -> None:
        self.interrupted_since = None

    def _report(self, item: T, deleted: bool) -> None:
        if deleted:
            self._known.pop(item.uid, None)
        else:
            self._known[item.uid] = self._remember(item)
        self._on_change(item, deleted)
