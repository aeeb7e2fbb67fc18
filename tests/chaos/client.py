"""The people who use the system: they ask for jobs, change their minds, and ask again when nobody answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import httpx

from chaos.evidence import Evidence, Span
from chaos.load import Change, Order, Route
from chaos.system import System
from kubediffusion.local import installation
from kubediffusion.local.errors import LocalError

APPLIED_TOGETHER = 20
"""Manifests of one kubectl apply."""
PAUSE = 0.5
PATIENCE_SECONDS = 180.0
"""How long somebody asks again."""


class GivenUpError(Exception):
    """Nobody answered for a long time."""


class Clients:
    """Place orders, and note in the evidence what was confirmed.

    Args:
        system: Whom to ask.
        evidence: Where confirmations go.
    """

    def __init__(self, system: System, evidence: Evidence) -> None:
        self._system = system
        self._evidence = evidence
        self._http = httpx.AsyncClient(timeout=30, trust_env=False)

    async def place(self, orders: Sequence[Order], rate: float) -> None:
        """Place all orders, so many a second, and see to what follows from each."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        applied: list[Order] = []
        try:
            async with asyncio.TaskGroup() as placing:
                for order in orders:
                    await asyncio.sleep(max(0.0, began + order.number / rate - loop.time()))
                    if order.route is not Route.KUBECTL:
                        placing.create_task(self._post(order))
                        continue
                    applied.append(order)
                    if len(applied) == APPLIED_TOGETHER:
                        placing.create_task(self._apply(applied))
                        applied = []
                if applied:
                    placing.create_task(self._apply(applied))
        finally:
            await self._http.aclose()

    async def _post(self, order: Order) -> None:
        path, field = ("/generate", "task_id") if order.route is Route.GENERATE else ("/v1/jobs", "name")
        # The same key with every try: an answer that was lost must not become a second job.
        answer, _ = await self._ask("POST", path, {"Idempotency-Key": f"order-{order.number}"}, order.request)
        if answer.status_code not in {201, 202}:
            raise GivenUpError(f"order {order.number}: {answer.status_code} {answer.text}")
        name = str(answer.json()[field])
        self._evidence.accepted.add(name)
        await self._change(order, name)

    async def _apply(self, orders: Sequence[Order]) -> None:
        manifests = json.dumps({"apiVersion": "v1", "kind": "List", "items": [order.manifest for order in orders]})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        while True:
            try:
                await asyncio.to_thread(self._system.namespace.kubectl, "apply", "-f", "-", stdin=manifests)
            except LocalError:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(PAUSE)
            else:
                break
        names = [str(order.manifest["metadata"]["name"]) for order in orders]
        self._evidence.accepted.update(names)
        async with asyncio.TaskGroup() as changing:
            for order, name in zip(orders, names, strict=True):
                changing.create_task(self._change(order, name))

    async def _change(self, order: Order, name: str) -> None:
        if order.change is None:
            return
        accepted = time.monotonic()
        await asyncio.sleep(order.delay)
        if order.change is Change.DELETE:
            self._evidence.deleted.add(name)
            answer, again = await self._ask("DELETE", f"/v1/jobs/{name}")
            # Not found at once means that it was lost before; asked again, that the try without an answer was its end.
            if answer.is_success or (again and answer.status_code == 404):
                self._evidence.lives[name] = Span(accepted, time.monotonic())
        else:
            answer, _ = await self._ask("POST", f"/v1/jobs/{name}/cancel")
            if answer.status_code == 202:
                self._evidence.cancelled.add(name)

    async def _ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: dict[str, object] | None = None
    ) -> tuple[httpx.Response, bool]:
        """Make a request until somebody answers it, whatever the answer; return whether it was made more than once."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        tries = 0
        while True:
            problem = "no API is there"
            for pod in self._system.pods(installation.API):
                url = f"http://{pod.get('status', {}).get('podIP')}:{installation.API_PORT}{path}"
                tries += 1
                try:
                    answer = await self._http.request(method, url, headers=headers, json=body)
                except httpx.HTTPError as error:
                    problem = repr(error)
                else:
                    if answer.status_code < 500 and answer.status_code != 429:
                        return answer, tries > 1
                    problem = f"{answer.status_code} {answer.text}"
            if loop.time() > deadline:
                raise GivenUpError(f"{method} {path}: {problem}")
            await asyncio.sleep(PAUSE)
