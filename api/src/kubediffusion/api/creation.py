"""Creates jobs so that a client that reads an error, and sends its request again, has not two.

The API server may commit a write and answer with an error all the same: etcd was slow, the connection broke, a proxy
lost patience. So the job is asked for before the client hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.records import CachedJob, JobRecord
from kubediffusion.api.metrics import Metrics
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.apiserver.resource import Resource

logger = logging.getLogger(__name__)

NO_ANSWER = frozenset({0, 408, 504})
"""Statuses after which a write may still be on its way. After any other of 500 and above it is there or it is not."""

ASK_PAUSES = (0.0, 0.2, 0.8)
"""Seconds before each question whether a job is there."""

WITHDRAW_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each try to delete a job that its client was told does not exist."""


class Creation(NamedTuple):
    """A job that exists; ``fresh`` says that this process knows it to be of this very request."""

    job: CachedJob
    fresh: bool


class JobCreator:
    """Creates the jobs of one namespace.

    Args:
        resource: GenerationJobs at the API server.
        namespace: Their namespace.
        jobs: GenerationJobs as the watch shows them.
        metrics: Where creations are counted.
    """

    def __init__(self, resource: Resource[JobRecord], namespace: str, jobs: JobCache, metrics: Metrics) -> None:
        self._resource = resource
        self._namespace = namespace
        self._jobs = jobs
        self._metrics = metrics
        self._withdrawing: set[asyncio.Task[None]] = set()

    async def create(self, name: str, body: dict[str, Any], *, repeatable: bool) -> Creation:
        """Create a job, or find the one of this name.

        Args:
            name: Name of the job.
            body: The GenerationJob.
            repeatable: Whether the client that reads an error may send the same name again. If not, a job that is
                committed after the error is deleted.

        Raises:
            KubernetesError: The API server refused the job, or cannot be asked whether it is there.
        """
        try:
            return await self._write(name, body)
        except KubernetesError as error:
            if error.status not in NO_ANSWER and error.status < 500:
                raise
            found = await self._ask(name, body, error)
            if found is None:
                if not repeatable:
                    self._withdraw(name)
                raise
            return found

    def close(self) -> None:
        """End what runs in the background."""
        for task in self._withdrawing:
            task.cancel()

    async def _ask(self, name: str, body: dict[str, Any], error: KubernetesError) -> Creation | None:
        """Find out whether a write was committed; None when nobody can say.

        Raises:
            KubernetesError: It was not, and will not be.
        """
        for pause in ASK_PAUSES:
            await asyncio.sleep(pause)
            try:
                return Creation(await self._read(name), fresh=False)
            except NotFoundError:
                if error.status not in NO_ANSWER:
                    raise error from None
            except KubernetesError:
                # It answers this as little: it is asked again after the next pause.
                continue
            try:
                # The first one was lost, or is on its way: of two of one name, one is.
                return await self._write(name, body)
            except KubernetesError as again:
                if again.status not in NO_ANSWER and again.status < 500:
                    raise
        return None

    async def _write(self, name: str, body: dict[str, Any]) -> Creation:
        try:
            record = await self._resource.create(self._namespace, body)
        except ConflictError:
            return Creation(await self._read(name), fresh=False)
        self._metrics.jobs_created.inc()
        return Creation(record.job, fresh=True)

    async def _read(self, name: str) -> CachedJob:
        return (await self._resource.get(self._namespace, name)).job

    def _withdraw(self, name: str) -> None:
        task = asyncio.create_task(self._delete(name), name=f"withdraw {name}")
        self._withdrawing.add(task)
        task.add_done_callback(self._withdrawing.discard)

    async def _delete(self, name: str) -> None:
        for pause in WITHDRAW_PAUSES:
            await asyncio.sleep(pause)
            try:
                await self._resource.delete(self._namespace, name)
            except KubernetesError:
                # Not there yet, or the API server is still away.
                continue
            self._jobs.forget(name)
            logger.warning("job withdrawn: its client has been told that there is none", extra={"job": name})
            return
