"""One kind of object of the Kubernetes API, typed: read, write, list and watch."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.objects import KubernetesObject

logger = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

PAGE_SIZE = 500
"""Objects asked for at once when listing, as kubectl does."""

T = TypeVar("T", bound=KubernetesObject)


class EventType(StrEnum):
    """Type of a watch event, as in the Kubernetes API."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


_CHANGES = frozenset({EventType.ADDED, EventType.MODIFIED, EventType.DELETED})


@dataclass(frozen=True)
class WatchEvent(Generic[T]):
    """One event of a watch.

    Attributes:
        type: What happened.
        resource_version: The version to resume the watch from.
        item: The object; None for a bookmark.
    """

    type: EventType
    resource_version: str
    item: T | None


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list.

    Attributes:
        items: The objects.
        unreadable: Uids of the page's objects that have the shape of another version.
        resource_version: The version to watch from, after the last page.
    """

    items: Sequence[T]
    unreadable: Sequence[str]
    resource_version: str


class Resource(Generic[T]):
    """One kind of object, typed.

    Args:
        rest: The connection.
        kind: Its typed model.
        base: Path of its API group and version, for example ``/apis/batch/v1``.
        plural: Its name in paths.
        page_size: Objects asked for at once when listing. All of a page is in memory at the same time.
        transform: Reduces each object that is read to what its reader keeps of it, as client-go's informers do.
    """

    def __init__(
        self,
        rest: RestClient,
        kind: type[T],
        base: str,
        plural: str,
        *,
        page_size: int = PAGE_SIZE,
        transform: Callable[[T], T] = lambda item: item,
    ) -> None:
        self._rest = rest
        self.kind = kind
        self._base = base
        self._plural = plural
        self._page_size = page_size
        self._transform = transform

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the path of a collection (of all namespaces where ``namespace`` is None), an object or subresource."""
        parts = [self._base, *(("namespaces", namespace) if namespace else ()), self._plural, name, subresource]
        return "/".join(part for part in parts if part)

    async def get(self, namespace: str, name: str) -> T:
        """Read one object."""
        return self._parse(await self._rest.request("GET", self.path(namespace, name)))

    async def create(self, namespace: str, body: Mapping[str, Any], *, dry_run: bool = False) -> T:
        """Create an object, or only ask whether it could be; an unknown field is an error."""
        path = self.path(namespace)
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        answer = await self._rest.request("POST", path, query=query, body=body)
        return self._parse(answer)

    async def patch(
        self,
        namespace: str,
        name: str,
        patch: Any,
        *,
        content_type: str = MERGE_PATCH,
        subresource: str = "",
    ) -> T:
        """Apply a merge patch (an object) or a JSON patch (a list)."""
        path = self.path(namespace, name, subresource)
        # Without it the API server decodes each patched object twice, to warn of unknown fields in a header.
        query = {"fieldValidation": "Ignore"}
        answer = await self._rest.request("PATCH", path, query=query, body=patch, content_type=content_type)
        return self._parse(answer)

    async def delete(self, namespace: str, name: str, uid: str | None = None) -> None:
        """Delete an object, its dependents in the background; only the object of ``uid`` where one is given."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._rest.request("DELETE", self.path(namespace, name), body=options)

    async def pages(
        self, namespace: str | None, *, field_selector: str = "", label_selector: str = ""
    ) -> AsyncGenerator[Page[T], None]:
        """List all objects and yield them page by page."""
        query: dict[str, str | int] = {"limit": self._page_size, **_selectors(field_selector, label_selector)}
        while True:
            page = await self._rest.request("GET", self.path(namespace), query=query)
            try:
                token, version = page["metadata"].get("continue"), page["metadata"]["resourceVersion"]
                read = [(body["metadata"]["uid"], self._read(body)) for body in page["items"]]
            except (KeyError, TypeError, AttributeError) as error:
                # A proxy on the way may have answered.
                raise KubernetesError(0, "Unreachable", "the API server's answer is no list") from error
            yield Page(
                [item for _, item in read if item is not None], [uid for uid, item in read if item is None], version
            )
            # The next page is not to find this one in memory.
            del page, read
            if not token:
                return
            query["continue"] = token

    async def list(
        self, namespace: str | None, *, field_selector: str = "", label_selector: str = ""
    ) -> tuple[list[T], str]:
        """List all objects, page by page; also return the resource version to watch from."""
        items: list[T] = []
        version = ""
        async for page in self.pages(namespace, field_selector=field_selector, label_selector=label_selector):
            items += page.items
            version = page.resource_version
        return items, version

    async def watch(
        self,
        namespace: str | None,
        resource_version: str,
        *,
        field_selector: str = "",
        label_selector: str = "",
        idle_timeout: float = 90.0,
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Yield the events after a resource version, until the server ends the watch.

        Whoever leaves it earlier closes it (:func:`contextlib.aclosing`), and its connection with it.

        Raises:
            GoneError: The resource version is too old: list again.
            KubernetesError: The server refused, or the connection broke.
        """
        query: dict[str, str | int] = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            **_selectors(field_selector, label_selector),
        }
        async with aclosing(self._rest.stream(self.path(namespace), query, idle_timeout)) as events:
            async for event in events:
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    # A bookmark's object has a resource version and nothing else.
                    yield WatchEvent(EventType.BOOKMARK, version, None)
                elif event["type"] not in _CHANGES:
                    raise KubernetesError(0, "Unreachable", f"the watch broke off: {event['type']!r} is no change")
                elif (item := self._read(event["object"])) is not None:
                    yield WatchEvent(EventType(event["type"]), version, item)

    def _parse(self, body: Any) -> T:
        return self._transform(self.kind.from_wire(body))

    def _read(self, body: Any) -> T | None:
        """Parse one object of many; None where it has the shape of another version, as one must not stop the others."""
        try:
            return self._parse(body)
        except ValidationError:
            metadata = body.get("metadata", {})
            place = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
            logger.exception("cannot read %s %s; is the CRD of this version?", self.kind.__name__, place)
            return None


def _selectors(field_selector: str, label_selector: str) -> dict[str, str | int]:
    selectors: dict[str, str | int] = {}
    if field_selector:
        selectors["fieldSelector"] = field_selector
    if label_selector:
        selectors["labelSelector"] = label_selector
    return selectors
