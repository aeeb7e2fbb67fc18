"""The watches that the API lives on, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.records import JobRecord
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.lora_adapter import LoRAAdapter

logger = logging.getLogger(__name__)

FIRST_SYNC_SECONDS = 5.0
"""How long the start waits for the first lists. When the API server is away, serving begins without them."""


class Watches:
    """Keeps the caches current, and knows whether they were filled once.

    Args:
        namespace: Namespace to watch.
        jobs: Filled with its GenerationJobs.
        models: Filled with its DiffusionModels and LoRAAdapters.
    """

    def __init__(self, namespace: str, jobs: JobCache, models: ModelCache) -> None:
        self._namespace = namespace
        self._jobs = jobs
        self._models = models
        self._jobs_synced = asyncio.Event()
        self._failed = False

    @property
    def ready(self) -> bool:
        """Whether both collections are known in full."""
        return self._jobs_synced.is_set() and self._models.synced.is_set()

    @property
    def failed(self) -> bool:
        """Whether a watch has ended for good, which is a defect: only a restart helps."""
        return self._failed

    @asynccontextmanager
    async def running(
        self,
        jobs: Resource[JobRecord],
        models: Resource[DiffusionModel],
        adapters: Resource[LoRAAdapter],
        *others: Coroutine[Any, Any, None],
    ) -> AsyncIterator[None]:
        """Watch, and run other background work beside, for as long as the context lasts."""
        job_watch = Reflector(jobs, self._namespace, self._jobs.on_change)
        model_watch = Reflector(models, self._namespace, self._models.on_change)
        self._jobs_synced, self._models.synced = job_watch.synced, model_watch.synced
        # A role of an earlier release may not list them: requests without any are served all the same.
        adapter_watch = Reflector(adapters, self._namespace, self._models.adapters.on_change)
        self._models.adapters.synced = adapter_watch.synced
        works = (job_watch.run(), model_watch.run(), adapter_watch.run(), *others)
        tasks = [asyncio.create_task(work) for work in works]
        for task in tasks:
            task.add_done_callback(self._on_end)
        synced = asyncio.gather(job_watch.synced.wait(), model_watch.synced.wait())
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(synced, FIRST_SYNC_SECONDS)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = True
            logger.critical("background work has ended", exc_info=error)
