"""Typed access to the Kubernetes API.

A thin layer over :mod:`kubernetes.aio`, which brings configuration, TLS and token renewal; requests go through its
generic call, so that one decoding, straight into typed resources, serves every kind.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from pydantic import ValidationError

from kubediffusion.resources import meta
from kubediffusion.resources.base import KubernetesObject
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob

logger = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"

PAGE_SIZE = 500
"""Objects asked for at once when listing, as kubectl does."""

REQUEST_TIMEOUT = 30.0
"""Seconds for a request that is no watch."""

TOKEN_PERIOD = 60.0
"""Seconds after which a token that lies in a file is read again, as the in-cluster configuration does."""

T = TypeVar("T", bound=KubernetesObject)


class KubernetesError(Exception):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: Kubernetes' machine-readable reason, for example ``AlreadyExists``.
        message: What the server says to people.
        details: The ``details`` of the server's Status object (fields that were refused, for example).
        retry_after: Seconds after which the server asks to be tried again, if it says.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in {0, 408, 429} or self.status >= 500


class NotFoundError(KubernetesError):
    """404: there is no such object."""


class ConflictError(KubernetesError):
    """409: it exists already, or the object has changed since it was read."""


class InvalidError(KubernetesError):
    """400 or 422: the object or patch is refused, a failed JSON Patch ``test`` included."""


class ForbiddenError(KubernetesError):
    """403: not permitted, by RBAC or by an admission policy."""


class GoneError(KubernetesError):
    """410: the resource version is too old to watch from; list again."""


_BY_STATUS: dict[int, type[KubernetesError]] = {
    400: InvalidError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
}


def error_from_status(status: int, body: Mapping[str, Any], retry_after: str | None = None) -> KubernetesError:
    """Turn a ``Status`` object of the API server into the error of its class."""
    seconds = (body.get("details") or {}).get("retryAfterSeconds") or (
        int(retry_after) if retry_after and retry_after.isdigit() else None
    )
    return _BY_STATUS.get(status, KubernetesError)(
        status, body.get("reason", ""), body.get("message", ""), body.get("details"), seconds
    )


class KubernetesClient:
    """One connection pool to the API server.

    Use as an async context manager, or call :meth:`close`.
    """

    def __init__(self, configuration: kubernetes_client.Configuration) -> None:
        configuration.connection_pool_maxsize = 64
        # The HTTP client would look the proxy up for every request, in a thread of its own.
        configuration.proxy = configuration.proxy or _proxy(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        self._api = kubernetes_client.ApiClient(configuration)
        self.generation_jobs = Resource(self, GenerationJob, f"/apis/{meta.API_VERSION}", meta.GENERATION_JOBS)
        self.diffusion_models = Resource(self, DiffusionModel, f"/apis/{meta.API_VERSION}", meta.DIFFUSION_MODELS)

    @classmethod
    async def connect(cls, user_agent: str) -> KubernetesClient:
        """Connect with the Pod's service account, or else with the kubeconfig (``KUBECONFIG``, ``~/.kube/config``).

        Raises:
            kubernetes.aio.config.ConfigException: Neither is there.
        """
        configuration = kubernetes_client.Configuration()
        if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            await kubernetes_config.load_kube_config(client_configuration=configuration)
            configuration.refresh_api_key_hook = _renew_from_kubeconfig()  # type: ignore[assignment] # untyped there
        else:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
        client = cls(configuration)
        client._api.user_agent = user_agent
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    @property
    def configuration(self) -> kubernetes_client.Configuration:
        """Address, TLS files and credentials of the connection, for libraries that make one of their own."""
        configuration: kubernetes_client.Configuration = self._api.configuration
        return configuration

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 - bounds the HTTP exchange, connection pool wait included
    ) -> Any:
        """Make one request and give the decoded JSON of its answer.

        Raises:
            KubernetesError: The server refused, or did not answer (status 0).
        """
        response = await self._send(method, path, query, body, content_type, timeout)
        try:
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubernetesError(0, "Unreachable", f"the API server's answer broke off: {error!r}") from error
        if response.status >= 400:
            raise error_from_status(response.status, _decode_status(data), response.getheader("Retry-After"))
        try:
            return json.loads(data)
        except ValueError as error:
            # A proxy between may answer 200 with a page of its own.
            raise KubernetesError(0, "Unreachable", f"the API server's answer is no JSON: {error}") from error

    async def stream(
        self, path: str, query: Mapping[str, str | int], idle_timeout: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Give the events of a watch until the server ends it.

        Args:
            path: Path of the collection.
            query: Query of the watch.
            idle_timeout: Seconds without any byte after which the connection counts as dead. Bookmarks come every
                minute, so more than that.

        Raises:
            GoneError: The resource version is too old.
            KubernetesError: The server refused, or the connection broke.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=idle_timeout)
        response = await self._send("GET", path, query, None, "application/json", timeout)
        try:
            if response.status >= 400:
                data = await response.read()
                raise error_from_status(response.status, _decode_status(data), response.getheader("Retry-After"))
            async for line in _lines(response.response.content):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise error_from_status(event["object"].get("code", 0), event["object"])
                yield event
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise KubernetesError(0, "Unreachable", f"the watch broke off: {error!r}") from error
        finally:
            connection = response.response.connection
            if connection is not None and connection.transport is not None:
                # Closed politely, it would wait for the server's farewell beyond the end of this program.
                connection.transport.abort()
            response.response.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        body: Any,
        content_type: str,
        timeout: Any,  # noqa: ASYNC109 - handed to the HTTP client
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        headers["User-Agent"] = self._api.user_agent
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        except Exception as error:
            # It reads token files and runs credential plugins, whose errors are of any class.
            raise KubernetesError(0, "NoCredentials", f"cannot get credentials: {error!r}") from error
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            return await self._api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubernetesError(0, "Unreachable", f"the API server does not answer: {error!r}") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
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


def _renew_from_kubeconfig() -> Callable[[kubernetes_client.Configuration], Awaitable[None]]:
    """Make the hook that reads the kubeconfig again once a minute: its token may be a file that is rotated."""
    renewed = time.monotonic()

    async def renew(configuration: kubernetes_client.Configuration) -> None:
        nonlocal renewed
        if time.monotonic() - renewed < TOKEN_PERIOD:
            return
        renewed = time.monotonic()
        fresh = kubernetes_client.Configuration()
        await kubernetes_config.load_kube_config(client_configuration=fresh)
        configuration.api_key = fresh.api_key

    return renew


def _proxy(url: str) -> str | None:
    """Give the proxy that the environment names for an address (``HTTPS_PROXY``, ``NO_PROXY``), as curl takes it."""
    address = urlsplit(url)
    if proxy_bypass(address.hostname or ""):
        return None
    return getproxies().get(address.scheme)


def _decode_status(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"message": data.decode(errors="replace")[:1000]}


class Change(StrEnum):
    """What a watch event says of its object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True)
class WatchEvent(Generic[T]):
    """One event of a watch.

    Attributes:
        change: What happened.
        resource_version: Where to resume the watch from.
        item: The object; None for a bookmark.
    """

    change: Change
    resource_version: str
    item: T | None


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list.

    Attributes:
        items: The objects.
        unreadable: Uids of objects that are there too, in a shape of another version.
        resource_version: Where to watch from, after the last page.
    """

    items: Sequence[T]
    unreadable: Sequence[str]
    resource_version: str


class Resource(Generic[T]):
    """One kind of object, typed.

    Args:
        client: The connection.
        kind: Its typed model.
        base: Path of its API group and version, for example ``/apis/batch/v1``.
        plural: Its name in paths.
    """

    def __init__(self, client: KubernetesClient, kind: type[T], base: str, plural: str) -> None:
        self._client = client
        self.kind = kind
        self._base = base
        self._plural = plural

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Give the path of a collection (in all namespaces where ``namespace`` is None), an object or a subresource."""
        parts = [self._base, *(("namespaces", namespace) if namespace else ()), self._plural, name, subresource]
        return "/".join(part for part in parts if part)

    async def get(self, namespace: str, name: str) -> T:
        """Read one object."""
        return self.kind.from_wire(await self._client.request("GET", self.path(namespace, name)))

    async def create(self, namespace: str, body: Mapping[str, Any]) -> T:
        """Create an object; an unknown field is an error."""
        path = self.path(namespace)
        answer = await self._client.request("POST", path, query={"fieldValidation": "Strict"}, body=body)
        return self.kind.from_wire(answer)

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
        answer = await self._client.request("PATCH", path, query=query, body=patch, content_type=content_type)
        return self.kind.from_wire(answer)

    async def delete(self, namespace: str, name: str, uid: str | None = None) -> None:
        """Delete an object in the background, only if it still has that uid where one is given."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._client.request("DELETE", self.path(namespace, name), body=options)

    async def pages(
        self, namespace: str | None, *, field_selector: str = "", label_selector: str = ""
    ) -> AsyncGenerator[Page[T], None]:
        """Read all objects and give them page by page."""
        query: dict[str, str | int] = {"limit": PAGE_SIZE, **_selectors(field_selector, label_selector)}
        while True:
            page = await self._client.request("GET", self.path(namespace), query=query)
            token = page["metadata"].get("continue")
            read = [(body["metadata"]["uid"], self._read(body)) for body in page["items"]]
            yield Page(
                [item for _, item in read if item is not None],
                [uid for uid, item in read if item is None],
                page["metadata"]["resourceVersion"],
            )
            if not token:
                return
            query["continue"] = token

    async def list(
        self, namespace: str | None, *, field_selector: str = "", label_selector: str = ""
    ) -> tuple[list[T], str]:
        """Read all objects, page by page, and the resource version to watch from."""
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
        """Give the changes after a resource version, until the server ends the watch.

        Who leaves it earlier closes it (:func:`contextlib.aclosing`), and its connection with it.
        """
        query: dict[str, str | int] = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            **_selectors(field_selector, label_selector),
        }
        async with aclosing(self._client.stream(self.path(namespace), query, idle_timeout)) as events:
            async for event in events:
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    # A bookmark's object has a resource version and nothing else.
                    yield WatchEvent(Change.BOOKMARK, version, None)
                elif (item := self._read(event["object"])) is not None:
                    yield WatchEvent(Change(event["type"]), version, item)

    def _read(self, body: Any) -> T | None:
        """Read one object of many; None where it has a shape of another version, as one must not stop the others."""
        try:
            return self.kind.from_wire(body)
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
