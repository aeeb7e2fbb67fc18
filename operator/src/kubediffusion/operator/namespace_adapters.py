"""The LoRAAdapters of a namespace, and the jobs that wait for one which does not exist. No I/O."""

from __future__ import annotations

import datetime as dt
import itertools

from kubediffusion.operator.object_cache import ObjectCache, ObjectList
from kubediffusion.operator.snapshots import JobWithoutAdapter
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import LoRAAdapter


class NamespaceAdapters:
    """LoRAAdapters by name, and jobs in no queue for want of one.

    Each change returns the names of the adapters that came or went: jobs that name them are to be filed anew.
    """

    def __init__(self) -> None:
        self._adapters = ObjectCache[LoRAAdapter]()
        self._waiting: dict[str, GenerationJob] = {}
        self._missing_since: dict[str, dt.datetime] = {}
        """When an adapter was first missed, by its name."""

    @property
    def items(self) -> dict[str, LoRAAdapter]:
        """LoRAAdapters by name."""
        return self._adapters.items

    def update(self, adapter: LoRAAdapter) -> set[str]:
        """Keep an adapter as it is now."""
        fresh = adapter.name not in self.items
        return {adapter.name} if self._adapters.update(adapter) and fresh else set()

    def delete(self, adapter: LoRAAdapter) -> set[str]:
        """Forget a deleted adapter, and return its name if it was known: models that know it are to be decided on."""
        return {adapter.name} if self._adapters.delete(adapter) else set()

    def replace(self, adapters: ObjectList[LoRAAdapter]) -> set[str]:
        """Keep what a full list has."""
        before = set(self.items)
        self._adapters.replace(adapters)
        return before ^ self.items.keys()

    def lacks(self, job: GenerationJob) -> str | None:
        """Return the name of the first adapter of a job that does not exist; None where all do."""
        return next((asked.name for asked in job.spec.adapters or () if asked.name not in self.items), None)

    def add_waiting(self, job: GenerationJob) -> None:
        """Keep a job that lacks an adapter."""
        self._waiting[job.uid] = job

    def discard_waiting(self, uid: str) -> bool:
        """Remove a job that lacks an adapter, and return whether it was one."""
        return self._waiting.pop(uid, None) is not None

    def jobs_without_adapter(self, now: dt.datetime, most: int) -> list[JobWithoutAdapter]:
        """Return jobs that lack an adapter.

        Args:
            now: The time, from which an adapter that is first missed now is missing.
            most: How many are returned.
        """
        names = {job.uid: self.lacks(job) or "" for job in self._waiting.values()}
        self._missing_since = {name: self._missing_since.get(name, now) for name in names.values()}
        return [
            JobWithoutAdapter(job, names[job.uid], self._missing_since[names[job.uid]])
            for job in itertools.islice(self._waiting.values(), most)
        ]
