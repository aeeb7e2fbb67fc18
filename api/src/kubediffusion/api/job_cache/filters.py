"""Which jobs a client wants to see of all."""

from __future__ import annotations

from dataclasses import dataclass

from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.resources.generation_job import Phase


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list or a stream shows; None, and no labels, for all.

    Attributes:
        phases: Only jobs in these phases.
        model: Only jobs of this model.
        labels: Only jobs that have all of these labels, with these values; any value where it is None.
        created_after: Only jobs of this age or younger, in seconds since the epoch; lists alone know it.
        created_before: Only jobs that are older; lists alone know it.
        client: Only jobs that this caller created over HTTP.
        text: Only jobs whose prompt has this text in it, in upper case or lower; lists alone know it.
    """

    phases: frozenset[Phase] | None = None
    model: str | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    created_after: float | None = None
    created_before: float | None = None
    text: str | None = None
    client: str | None = None

    def matches(self, job: CachedJob, default_model: str | None) -> bool:
        """Return whether a job is one of them; ``default_model`` is the model of jobs that name none."""
        if self.phases is not None and job.phase not in self.phases:
            return False
        if self.model is not None and (job.model or default_model) != self.model:
            return False
        return self.matches_labels(job)

    def matches_content(self, job: CachedJob) -> bool:
        """Return whether a job has the labels, and the text in its prompt: what no index of the cache knows."""
        return self.matches_labels(job) and (self.text is None or self.text.casefold() in job.prompt.casefold())

    def matches_labels(self, job: CachedJob) -> bool:
        """Return whether a job has the labels, and is its owner's."""
        if self.client is not None and job.client != self.client:
            return False
        return all(
            any(key == name and value in {None, found} for name, found in job.labels) for key, value in self.labels
        )
