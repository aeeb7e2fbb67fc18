"""What comes from somebody before the API server, whatever it is, is an error that passes, and ends nobody's watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError, error_from_answer
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.generation_job import GenerationJob

NESTED = "[" * 100_000
FOREIGN = [
    "",
    "<html>Bad gateway</html>",
    "null",
    "[]",
    "3",
    '"text"',
    "{}",
    NESTED,
    '{"items": null, "metadata": {}}',
    '{"items": [], "metadata": null}',
    '{"items": [{}], "metadata": {"resourceVersion": "1"}}',
    '{"items": ["text"], "metadata": {"resourceVersion": "1"}}',
]
LIST = '{"items": [], "metadata": {"resourceVersion": "1"}}'
EVENTS = [
    *FOREIGN,
    '{"type": "ADDED"}',
    '{"type": "ADDED", "object": null}',
    '{"type": "ADDED", "object": {"metadata": {}}}',
    '{"type": "BOOKMARK", "object": {}}',
    '{"type": "NONE", "object": {"metadata": {"resourceVersion": "2"}}}',
    '{"type": 3, "object": {"metadata": {"resourceVersion": "2"}}}',
    '{"type": "ERROR", "object": "text"}',
    '{"type": "ERROR", "object": {"code": "x", "message": 3, "details": []}}',
]


class Proxy:
    """Answers lists and watches with what it is told, each with status 200."""

    def __init__(self) -> None:
        self.listed = self.watched = LIST
        self.watches = 0
        self.watched_often = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        watch = "watch" in request.query
        self.watches += watch
        if self.watches >= 3:
            self.watched_often.set()
        return web.Response(text=(self.watched if watch else self.listed) + "\n")


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[Proxy, KubernetesClient]]:
    proxy, app = Proxy(), web.Application()
    app.router.add_get("/{path:.*}", proxy.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    configuration.client_session_kwargs = {"trust_env": False}
    async with KubernetesClient(configuration) as client:
        yield proxy, client
    await runner.cleanup()


def shown(answer: str) -> str:
    return answer[:40] or "nothing"


@pytest.mark.parametrize("answer", FOREIGN, ids=shown)
async def test_a_list_that_is_none_passes(proxy: tuple[Proxy, KubernetesClient], answer: str) -> None:
    server, client = proxy
    server.listed = answer
    with pytest.raises(KubernetesError) as caught:
        await client.generation_jobs.list("default")
    assert caught.value.transient


@pytest.mark.parametrize("answer", EVENTS, ids=shown)
async def test_a_watch_goes_on_after_what_is_no_event(proxy: tuple[Proxy, KubernetesClient], answer: str) -> None:
    server, client = proxy
    server.watched = answer
    seen: list[GenerationJob] = []
    reflector = Reflector(client.generation_jobs, "default", lambda job, _: seen.append(job))
    task = asyncio.create_task(reflector.run())
    often = asyncio.create_task(server.watched_often.wait())
    done, _ = await asyncio.wait([task, often], timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert done == {often}
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert seen == []


@pytest.mark.parametrize("body", [*FOREIGN, '{"details": 3}', '{"message": ["a"], "code": {}}'], ids=shown)
def test_an_error_is_one_whatever_its_page_is(body: Any) -> None:
    assert error_from_answer(502, body.encode()).transient
