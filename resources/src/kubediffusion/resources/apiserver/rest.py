"""One connection pool to the API server: requests and watches, as decoded JSON.

A thin layer over :mod:`kubernetes.aio`, which brings configuration, TLS and token renewal; requests go through its
generic call, so that one decoding, straight into typed resources, serves every kind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as kubernetes_client

from kubediffusion.resources.apiserver import deep_json
from kubediffusion.resources.apiserver.configuration import load_configuration, proxy_for
from kubediffusion.resources.apiserver.errors import KubernetesError, error_from_answer
from kubediffusion.resources.apiserver.watch_stream import decode_events

REQUEST_TIMEOUT = 30.0
"""Seconds for a request that is no watch."""


class RestClient:
    """One connection pool to the API server.

    Use as an async context manager, or call :meth:`close`.
    """

    def __init__(self, configuration: kubernetes_client.Configuration) -> None:
        configuration.connection_pool_maxsize = 64
        # The HTTP client would look the proxy up for every request, in a thread of its own.
        configuration.proxy = configuration.proxy or proxy_for(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        self._api = kubernetes_client.ApiClient(configuration)

    @classmethod
    async def connect(cls, user_agent: str) -> Self:
        """Connect with the Pod's service account, or else with the kubeconfig (``KUBECONFIG``, ``~/.kube/config``).

        Raises:
            kubernetes.aio.config.ConfigException: Neither is there.
        """
        client = cls(await load_configuration())
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
        """Make one request and return the decoded JSON of its answer.

        Raises:
            KubernetesError: The server refused, or did not answer (status 0).
        """
        response = await self._send(method, path, query, body, content_type, timeout)
        data = await self._body(response)
        if response.status >= 400:
            raise error_from_answer(response.status, data, response.getheader("Retry-After"))
        try:
            return deep_json.loads(data)
        except ValueError as error:
            # A proxy between may answer 200 with a page of its own.
            raise KubernetesError(0, "Unreachable", f"the API server's answer is no JSON: {error}") from error

    async def read(
        self, path: str, *, query: Mapping[str, str | int] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return status and body of what is no Kubernetes object: what a Service answers through the API server.

        Args:
            path: Path of a ``proxy`` subresource, and behind it that of what is asked.
            query: Query, which is handed on.
            headers: Headers, which are handed on.

        Raises:
            KubernetesError: There was no answer (status 0).
        """
        response = await self._send("GET", path, query, None, "application/json", REQUEST_TIMEOUT, headers)
        return response.status, await self._body(response)

    @staticmethod
    async def _body(response: Any) -> bytes:
        try:
            data: bytes = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubernetesError(0, "Unreachable", f"the API server's answer broke off: {_text_of(error)}") from error
        return data

    async def stream(
        self, path: str, query: Mapping[str, str | int], idle_timeout: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a watch until the server ends it.

        Args:
            path: Path of the collection.
            query: Query of the watch.
            idle_timeout: Seconds without any byte after which the connection counts as dead: more than 60, as the
                server sends a bookmark every minute.

        Raises:
            GoneError: The resource version is too old.
            KubernetesError: The server refused, or the connection broke.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=idle_timeout)
        response = await self._send("GET", path, query, None, "application/json", timeout)
        try:
            if response.status >= 400:
                data = await response.read()
                raise error_from_answer(response.status, data, response.getheader("Retry-After"))
            async for event in decode_events(response.response.content):
                yield event
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise KubernetesError(0, "Unreachable", f"the watch broke off: {_text_of(error)}") from error
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
        more_headers: Mapping[str, str] | None = None,
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type, **(more_headers or {})}
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
            raise KubernetesError(0, "Unreachable", f"the API server does not answer: {_text_of(error)}") from error


def _text_of(error: Exception) -> str:
    """Return class and words of an error.

    That of an answer (a proxy's refusal, too many redirects) would quote its request, and credentials are among that
    request's headers.
    """
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{type(error).__name__}({error.status}, {error.message!r})"
    return repr(error)
