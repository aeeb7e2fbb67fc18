"""Keeps the watch of this worker's jobs, and finds out when the API server is not heard any more.

A worker that is cut off does not learn of the jobs that it is given. It says so by its readiness, on which the operator
binds none to it and binds elsewhere what it has not begun; what it computes it goes on computing.
"""

from __future__ import annotations

import asyncio
import logging

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.worker.health import Health

logger = logging.getLogger(__name__)

PERIOD = 3.0
"""Seconds between two questions to the API server, the cheapest that there is: a watch may be silent for a minute."""

TIMEOUT = 2.0
"""Seconds for its answer."""

CUT_OFF_SECONDS = 6.0
"""Seconds without any answer, or in which each watch is refused, after which the worker counts as cut off."""


class ApiServerContact:
    """Runs the watch of the worker's jobs, and tells :class:`Health` while the API server is not heard.

    Args:
        client: The API server.
        watch: The watch.
        health: Is told.
        period: Seconds between two questions.
        cut_off_seconds: Seconds without contact after which the worker counts as cut off.
    """

    def __init__(
        self,
        client: KubernetesClient,
        watch: Reflector[GenerationJob],
        health: Health,
        period: float = PERIOD,
        cut_off_seconds: float = CUT_OFF_SECONDS,
    ) -> None:
        self._client = client
        self._watch = watch
        self._health = health
        self._period = period
        self._cut_off_seconds = cut_off_seconds
        self._silent_since: float | None = None
        self._cut_off = False

    async def run(self) -> None:
        """Watch until cancelled; a defect of the watch is raised."""
        watching = asyncio.create_task(self._watch.run())
        try:
            while True:
                done, _ = await asyncio.wait({watching}, timeout=self._period)
                if done:
                    watching.result()
                await self._ask()
                problem = self._problem()
                if problem is not None and not self._cut_off:
                    self._cut_off = True
                    self._health.mark_cut_off(problem)
                    logger.warning("cut off from the API server; the worker takes no jobs: %s", problem)
                elif problem is None and self._cut_off:
                    # The connection of the old watch may be dead without knowing it.
                    if watching.done():
                        watching.result()
                    watching.cancel()
                    await asyncio.wait({watching})
                    await self._catch_up()
                    watching = asyncio.create_task(self._watch.run())
        finally:
            watching.cancel()

    async def _ask(self) -> None:
        """Ask for anything; a refusal is an answer too."""
        try:
            await self._client.request("GET", "/version", timeout=TIMEOUT)
        except KubernetesError as error:
            if not error.status:
                self._silent_since = self._silent_since or self._now() - self._period
                return
        self._silent_since = None

    async def _catch_up(self) -> None:
        """List what was missed; where that fails too, the worker stays cut off."""
        try:
            await self._watch.relist()
        except KubernetesError as error:
            logger.warning("the jobs cannot be listed yet: %s", error)
            return
        self._cut_off = False
        self._health.mark_connected()
        logger.info("the API server is heard again")

    def _problem(self) -> str | None:
        """Say why the worker does not learn of its jobs; None where it does, or that is not sure yet."""
        for since, words in (
            (self._silent_since, "the API server does not answer"),
            (self._watch.interrupted_since, "the API server does not let the worker watch its jobs"),
        ):
            if since is not None and (seconds := self._now() - since) >= self._cut_off_seconds:
                return f"{words} for {seconds:.0f} s"
        return None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
