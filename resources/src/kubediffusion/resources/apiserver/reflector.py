"""List and watch: keep a reader's picture of a collection equal to the cluster's, through every interruption.

The same contract as client-go's Reflector: list, then watch from the list's resource version; resume from the last
version seen when a watch ends, which is normal; list again when that version is gone. An object that vanished while
nobody watched is reported as deleted after the next list.
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


class Reflector(Generic[T]):
    """Tell a handler of every change of a collection, once and in the server's order.

    Args:
        resource: What to watch.
        namespace: Where; None for all namespaces.
        on_change: Called with the object and whether it is gone. It must not block.
        field_selector: Only objects that match; one that stops matching counts as gone.
        label_selector: The same, by labels.
        remember: What is kept of an object until it is gone, and told then; all of it unless something less will do.
        seen: Objects that an earlier list had, which was not this one's: those that are gone by the first are told.

    Attributes:
        synced: Set while the picture is complete: from the first full list on.
    """

    def __init__(
        self,
        resource: Resource[T],
        namespace: str | None,
        on_change: Callable[[T, bool], None],
        *,
        field_selector: str = "",
        label_selector: str = "",
        remember: Callable[[T], T] = lambda item: item,
        seen: Iterable[T] = (),
    ) -> None:
        self._resource = resource
        self._namespace = namespace
        self._on_change = on_change
        self._field_selector = field_selector
        self._label_selector = label_selector
        self._remember = remember
        self._known: dict[str, T] = {}
        self._seen = {item.uid: remember(item) for item in seen}
        self._version: str | None = None
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Reflect until cancelled. The API server being away is waited out."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                if self._version is None:
                    await self._list()
                if await self._watch():
                    backoff.reset()
                else:
                    # A server that is going down ends each watch at once, without an error.
                    await asyncio.sleep(backoff.next_pause())
            except GoneError:
                self._version = None
                # A server that answers 410 each time would else be listed at full speed.
                await asyncio.sleep(backoff.next_pause())
            except KubernetesError as error:
                logger.warning("watch of %s interrupted, trying again: %s", self._resource.kind.__name__, error)
                pause = backoff.next_pause()
                await asyncio.sleep(error.retry_after or pause)

    async def _list(self) -> None:
        first = not self._known
        present: set[str] = set()
        changed: list[T] = []
        version: str | None = None
        pages = self._resource.pages(
            self._namespace, field_selector=self._field_selector, label_selector=self._label_selector
        )
        async with aclosing(pages):
            async for page in pages:
                version = page.resource_version
                present.update(item.uid for item in page.items)
                # What cannot be read is as it was last told: it is there.
                present.update(page.unreadable)
                changed += filter(self._is_news, page.items)
                if first:
                    # Nothing can have gone, so nobody need wait for the end: all of it at once may be a lot of memory.
                    self._tell(changed)
        before = self._seen | self._known
        self._seen = {}
        for uid in before.keys() - present:
            self._known.pop(uid, None)
            self._on_change(before[uid], True)
        self._tell(changed)
        self._version = version
        self.synced.set()

    def _is_news(self, item: T) -> bool:
        known = self._known.get(item.uid)
        return known is None or known.metadata.resource_version != item.metadata.resource_version

    def _tell(self, changed: list[T]) -> None:
        for item in changed:
            self._take(item, False)
        changed.clear()

    async def _watch(self) -> bool:
        """Follow one watch to its end, and tell whether it brought anything."""
        assert self._version is not None  # noqa: S101 - set by _list
        lively = False
        events = self._resource.watch(
            self._namespace,
            self._version,
            field_selector=self._field_selector,
            label_selector=self._label_selector,
        )
        async with aclosing(events):
            async for event in events:
                lively = True
                self._version = event.resource_version
                if event.item is not None:
                    self._take(event.item, event.type is EventType.DELETED)
        return lively

    def _take(self, item: T, gone: bool) -> None:
        if gone:
            self._known.pop(item.uid, None)
        else:
            self._known[item.uid] = self._remember(item)
        self._on_change(item, gone)
