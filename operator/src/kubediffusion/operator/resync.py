"""Lists of the cluster: the first one, which the watches go on from, and the regular ones, which find what they missed.

kopf's watch, after an outage, tells what is there and not what is gone. A job that waits needs no list: that it is gone
shows when it is bound.
"""

from __future__ import annotations

import asyncio
import logging

from kubediffusion.operator import metrics
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.store import Store
from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError
from kubediffusion.resources.generation_job import GenerationJob

logger = logging.getLogger(__name__)


class Resync:
    """Lists the cluster into the store, each managed namespace by itself.

    A namespace that may not be listed (it was deleted, or its RoleBinding was) is named, and tried again with the next
    lists; the others go on.

    Args:
        cluster: What is listed.
        store: Takes the lists.
        period: Seconds between two lists.
    """

    def __init__(self, cluster: Cluster, store: Store, period: float) -> None:
        self._cluster = cluster
        self._store = store
        self._period = period
        self._listed: set[str | None] = set()
        self._refused: dict[str, str] = {}
        """Why a namespace may not be listed."""

    def problem(self) -> str | None:
        """Return why the operator can do nothing yet; None once each namespace is listed or refused, and one listed."""
        known = self._listed | self._refused.keys()
        if self._listed and known.issuperset(self._cluster.scopes):
            return None
        return self.refusals() or "the first list of the cluster is not complete"

    def refusals(self) -> str | None:
        """Return which namespaces may not be listed, and why; None where all may."""
        return "; ".join(f"namespace {name}: {why}" for name, why in sorted(self._refused.items())) or None

    async def list_all(self) -> None:
        """List the whole cluster once.

        Raises:
            KubernetesError: The API server is away, or refuses every namespace.
        """
        for scope in self._cluster.scopes:
            if scope not in self._listed:
                await self._list(scope)
        if not self._listed:
            raise KubernetesError(403, "Forbidden", self.refusals() or "no namespace can be listed")

    async def run(self) -> None:
        """List models, workers and the jobs that workers have, until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            for scope in self._cluster.scopes:
                try:
                    await self._list(scope)
                except KubernetesError as error:
                    logger.warning("cannot list the cluster anew: %s", error)
                except Exception:
                    logger.exception("a defect: cannot list the cluster anew")

    async def _list(self, scope: str | None) -> None:
        try:
            if scope in self._listed:
                await self._list_models(scope)
                await self._list_workers(scope)
                await self._check_bound_jobs(scope)
            else:
                await self._list_first(scope)
        except KubernetesError as error:
            if error.transient or scope is None:
                raise
            self._mark_refused(scope, error)
        else:
            self._mark_listable(scope)

    async def _list_first(self, scope: str | None) -> None:
        """List jobs before workers: a job's Pod that the later list does not have is surely gone."""
        jobs = await self._cluster.unfinished_jobs(scope)
        await self._list_models(scope)
        for job in jobs.items:
            self._store.observe_job(job, deleted=False)
        await self._list_workers(scope)

    async def _list_models(self, scope: str | None) -> None:
        # Before the jobs that name them.
        self._store.replace_adapters(await self._cluster.adapters(scope), scope)
        self._store.replace_models(await self._cluster.models(scope), scope)

    async def _list_workers(self, scope: str | None) -> None:
        self._store.replace_workers(await self._cluster.batch_jobs(scope), await self._cluster.pods(scope), scope)

    async def _check_bound_jobs(self, scope: str | None) -> None:
        """Read the jobs that are known to be bound and that the list of bound jobs lacks."""
        listed = await self._cluster.bound_jobs(scope)
        uids = {job.uid for job in listed.items}
        for job in self._store.bound_jobs(scope):
            newer = job.metadata.version > listed.version
            if job.uid not in uids and not newer and not self._store.is_being_written(job.uid):
                self._store.correct_job(job, await self._read(job))

    async def _read(self, job: GenerationJob) -> GenerationJob | None:
        try:
            return await self._cluster.get_job(job.metadata.namespace, job.name, job.uid)
        except NotFoundError:
            return None

    def _mark_refused(self, namespace: str, error: KubernetesError) -> None:
        # What it had is listed as at the start once it may be again.
        self._listed.discard(namespace)
        metrics.REFUSED_NAMESPACES.labels(namespace).set(1)
        if self._refused.get(namespace) != error.message:
            self._refused[namespace] = error.message
            logger.error("namespace %s cannot be listed, the others go on: %s", namespace, error)

    def _mark_listable(self, scope: str | None) -> None:
        self._listed.add(scope)
        if scope is None:
            return
        metrics.REFUSED_NAMESPACES.labels(scope).set(0)
        if self._refused.pop(scope, None) is not None:
            logger.info("namespace %s can be listed again", scope)
