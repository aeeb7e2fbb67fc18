"""The short way for polls: a job that has not finished is answered from bytes, before the framework's machinery.

It is the same answer that the route gives (:mod:`kubediffusion.api.routes.tasks`), which takes everything else.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.results import cached_result

PREFIX = "/results/"
ROUTE = "/results/{task_id}"


class PollingMiddleware:
    """Answer ``GET /results/{task_id}`` where the cache has the whole answer.

    Args:
        app: The app behind.
        jobs: The cache.
    """

    def __init__(self, app: ASGIApp, jobs: JobCache) -> None:
        self._app = app
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if (
            scope["type"] == "http"
            and scope["path"].startswith(PREFIX)
            and scope["method"] == "GET"
            and not scope["query_string"]
            and (entry := self._jobs.get(scope["path"][len(PREFIX) :])) is not None
            and (answer := cached_result(entry)) is not None
        ):
            headers, body = answer
            scope["state"]["route"] = ROUTE
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)
