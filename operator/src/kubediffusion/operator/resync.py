"""Lists of the cluster: the first one, which the watches go on from, and the regular ones, which find what they missed.

kopf's watch, after an outage, tells what is there and not what is gone. A job that waits needs no list: that it is gone
shows when it is bound.
"""

from __future__ import annotations

import asyncio
import logging

from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.store import Store
from kubediffusion.resources.apiserver.errors import KubernetesError

logger = logging.getLogger(__name__)


class Resync:
    """Lists the cluster into the store.

    Args:
        cluster: What is listed.
        store: Takes the lists.
        period: Seconds between two lists.

    Attributes:
        complete: Whether the first list is complete.
    """

    def __init__(self, cluster: Cluster, store: Store, period: float) -> None:
        self._cluster = cluster
        self._store = store
        self._period = period
        self.complete = False

    async def list_all(self) -> None:
        """List the whole cluster once.

        Jobs come before workers: a job's Pod that the later list does not have is surely gone.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        jobs = await self._cluster.unfinished_jobs()
        await self._list_models()
        for job in jobs.items:
            self._store.observe_job(job, deleted=False)
        await self._list_workers()
        self.complete = True

    async def run(self) -> None:
        """List models, workers and the jobs that workers have, until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            try:
                await self._list_models()
                await self._list_workers()
                await self._check_bound_jobs()
            except KubernetesError as error:
                logger.warning("cannot list the cluster anew: %s", error)
            except Exception:
                logger.exception("a defect: cannot list the cluster anew")

    async def _list_models(self) -> None:
        self._store.replace_models(await self._cluster.models())

    async def _list_workers(self) -> None:
        self._store.replace_workers(await self._cluster.batch_jobs(), await self._cluster.pods())

    async def _check_bound_jobs(self) -> None:
        """Read the jobs that are known to be bound and that the list of bound jobs lacks."""
        listed = await self._cluster.bound_jobs()
        uids = {job.uid for job in listed.items}
        for job in self._store.bound_jobs():
            newer = job.metadata.version > listed.version
            if job.uid not in uids and not newer and not self._store.is_being_written(job.uid):
                self._store.correct_job(job, await self._cluster.find_job(job))
