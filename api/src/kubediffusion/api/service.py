"""What the API does, whatever the route: submit, read, list, cancel, delete."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile

from kubediffusion.api import translate
from kubediffusion.api.access.audit import AuditAction, audit
from kubediffusion.api.access.identity import Identity
from kubediffusion.api.client_limits.lookups import JobLookups
from kubediffusion.api.client_limits.rates import RateLimiter
from kubediffusion.api.creation import JobCreator
from kubediffusion.api.errors import (
    ApiError,
    ImageNotFoundError,
    StateConflictError,
    TaskNotFoundError,
)
from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.job_cache.records import AgeKey, CachedJob, JobRecord, StoredImage
from kubediffusion.api.metrics import Metrics
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.schemas import JobRequest, JobSummary, JobView
from kubediffusion.api.settings import Settings
from kubediffusion.api.submission import JobSubmitter
from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.generation_job import Phase

logger = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
"""What the API server takes as an object's name (RFC 1123 subdomain), roughly: nothing else can exist."""

MAX_NAME = 253

SLICE = 100
"""Jobs that a list looks at before other requests have their turn."""

MOST_LOOKED_AT = 20_000
"""Jobs that a list looks at for one page; one that ends there has what was found, and goes on in the next."""

GONE = "its client has gone"
"""Who cancels a job that nobody waits for any more."""

CLOSE_SECONDS = 2.0
"""How long a stop waits for the cancellation of jobs whose clients have gone."""


class JobService:
    """The jobs of one namespace.

    Args:
        settings: Settings of the API.
        resource: GenerationJobs at the API server.
        jobs: GenerationJobs as the watch shows them.
        models: DiffusionModels as the watch shows them.
        metrics: Where creations and lookups are counted.
    """

    def __init__(
        self,
        settings: Settings,
        resource: Resource[JobRecord],
        jobs: JobCache,
        models: ModelCache,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._namespace = settings.namespace
        self._resource = resource
        self._jobs = jobs
        self._models = models
        self._metrics = metrics
        self._creator = JobCreator(resource, settings.namespace, jobs, metrics)
        self._submitter = JobSubmitter(settings, jobs, models, self._creator)
        self._cancellations: set[asyncio.Task[None]] = set()
        self._lookups = JobLookups(
            self._look_up,
            RateLimiter(settings.unknown_task_limit, "Too many requests for task ids that do not exist; slow down."),
        )

    async def close(self) -> None:
        """End what runs in the background, and let what is nearly done come to its end."""
        self._creator.close()
        if self._cancellations:
            await asyncio.wait(self._cancellations, timeout=CLOSE_SECONDS)
        for task in self._cancellations:
            task.cancel()

    def rate_headers(self, identity: Identity) -> dict[str, str]:
        """Return the headers that tell a caller how many jobs it may create, and what is left of them."""
        return self._submitter.rate_headers(identity)

    async def submit(
        self,
        request: JobRequest,
        identity: Identity,
        idempotency_key: str | None,
        annotations: Mapping[str, str] | None = None,
    ) -> CachedJob:
        """Accept a job: once this returns, it exists in the cluster.

        Args:
            request: What to generate.
            identity: Who asks, and whose the job and the idempotency key are.
            idempotency_key: Two requests of a caller with the same idempotency key are one job.
            annotations: What the job keeps for the door that it came in by, such as how its images are handed out.

        Raises:
            InvalidRequestError: The model, its limits or the caller's refuse it, or the idempotency key belongs to
                another request.
            UnavailableError: The model cannot be used.
            TooManyRequestsError: The client has created too many jobs, or there are too many unfinished ones.
            KubernetesError: The API server refused it; there is no such job.
        """
        return await self._submitter.submit(request, identity, idempotency_key, annotations)

    async def submit_all(
        self, requests: Sequence[JobRequest], identity: Identity, idempotency_key: str | None
    ) -> list[CachedJob | ApiError | KubernetesError]:
        """Accept several jobs; as :meth:`kubediffusion.api.submission.JobSubmitter.submit_all`."""
        return await self._submitter.submit_all(requests, identity, idempotency_key)

    async def read(self, name: str, identity: Identity) -> CachedJob:
        """Return a job, also one that another replica accepted a moment ago.

        Args:
            name: Its name.
            identity: Who asks.

        Raises:
            TaskNotFoundError: There is none that the caller sees.
            TooManyRequestsError: This client has asked for too many jobs that do not exist.
            KubernetesError: It is not known here, and the API server cannot be asked.
        """
        job = await self._read(name, identity.client)
        identity.check_sees(job)
        return job

    async def _read(self, name: str, client: str) -> CachedJob:
        if (job := self._jobs.get(name)) is not None:
            return job
        if len(name) > MAX_NAME or not NAME.fullmatch(name):
            raise TaskNotFoundError
        found = await self._lookups.find(name, client)
        if found is None:
            raise TaskNotFoundError
        return found

    async def wait(self, job: CachedJob, seconds: float) -> CachedJob:
        """Return a job once it has finished, or as it is when ``seconds`` have passed.

        It costs the API server nothing: the watch brings the change.

        Raises:
            TaskNotFoundError: It was deleted meanwhile.
        """
        try:
            with self._metrics.waiting_requests.track_inprogress():
                async with asyncio.timeout(seconds):
                    end = await self._jobs.wait_until(job.name, lambda job: job.finished)
        except TimeoutError:
            end = self._jobs.get(job.name)
        if end is None:
            raise TaskNotFoundError
        return end

    async def page(
        self, wanted: JobFilter, limit: int, before: AgeKey | None
    ) -> tuple[list[JobSummary], AgeKey | None]:
        """List jobs, newest first.

        Args:
            wanted: Which jobs.
            limit: How many jobs at most.
            before: Where the last page ended.

        Returns:
            The jobs, and where the next page begins; None when there is none.
        """
        jobs, end = await self.newest(wanted, limit, before)
        return [translate.summary(job, self._position(job), self._settings.root_path) for job in jobs], end

    async def newest(
        self, wanted: JobFilter, limit: int, before: AgeKey | None
    ) -> tuple[list[CachedJob], AgeKey | None]:
        """List jobs as they are in the cache; as :meth:`page`.

        A filter that few jobs match has many looked at: other requests have their turn in between.
        """
        if wanted.created_before is not None:
            end = AgeKey(wanted.created_before, "")
            before = end if before is None else min(before, end)
        found: list[CachedJob] = []
        for _ in range(MOST_LOOKED_AT // SLICE):
            newest = self._jobs.newest_first(before, wanted.phases, wanted.model, self._models.default_name)
            recent = takewhile(lambda job: job.created >= (wanted.created_after or 0), newest)
            looked_at = list(islice(recent, SLICE))
            for job in filter(wanted.matches_content, looked_at):
                if len(found) == limit:
                    return found, found[-1].age_key
                found.append(job)
            if len(looked_at) < SLICE:
                return found, None
            before = looked_at[-1].age_key
            await asyncio.sleep(0)
        return found, before

    def view(self, job: CachedJob) -> JobView:
        """Build the detailed view of a job."""
        return translate.view(job, self._position(job), self._models.find(job.model), self._settings.root_path)

    def view_tag(self, job: CachedJob) -> str:
        """Return the weak entity tag of the detailed view of a job: all that it depends on, alike on every replica."""
        tag = str(job.version)
        if job.phase is Phase.PENDING:
            model = self._models.find(job.model)
            tag += f"-{self._position(job) or 0}-{model.metadata.version if model else 0}"
        return f'W/"{tag}"'

    def image(self, job: CachedJob, index: int) -> StoredImage:
        """Find an image of a job.

        Raises:
            ImageNotFoundError: It has none of that index, or none yet.
        """
        image = next((image for image in job.images if image.index == index), None)
        if image is None:
            raise ImageNotFoundError(f"The job has no image {index}; it is {job.phase}.")
        return image

    async def cancel(self, name: str, identity: Identity) -> CachedJob:
        """Ask for a job to be cancelled: a waiting job is at once, a running one at its next step.

        Raises:
            TaskNotFoundError: There is none that the caller sees.
            StateConflictError: It has finished already.
            KubernetesError: The API server refused it.
        """
        return await self._cancel(await self.read(name, identity), audit(AuditAction.CANCEL, name, identity))

    async def _cancel(self, job: CachedJob, noted: Mapping[str, str]) -> CachedJob:
        name = job.name
        if job.finished:
            raise StateConflictError(f"The job has finished already: it is {job.phase}.")
        try:
            record = await self._resource.patch(self._namespace, name, {"spec": {"cancel": True}})
        except NotFoundError:
            self._jobs.forget(name)
            raise TaskNotFoundError from None
        self._jobs.remember(record.job)
        logger.info("job cancelled by a client", extra=noted)
        return record.job

    def abandon(self, job: CachedJob, identity: Identity) -> None:
        """Have a job cancelled whose only client has gone: nobody will ever ask for its images."""
        noted = audit(AuditAction.CANCEL, job.name, identity) | {"client": GONE}
        task = asyncio.create_task(self._cancel_quietly(job.name, noted), name=f"abandon {job.name}")
        self._cancellations.add(task)
        task.add_done_callback(self._cancellations.discard)

    async def _cancel_quietly(self, name: str, noted: Mapping[str, str]) -> None:
        try:
            await self._cancel(await self._read(name, GONE), noted)
        except (StateConflictError, TaskNotFoundError):
            # It has ended, or is gone, which is as well.
            return
        except KubernetesError as error:
            # It ends by its deadline.
            logger.warning("cannot cancel a job whose client has gone: %s", error, extra={"job": name})

    async def delete(self, name: str, identity: Identity) -> None:
        """Delete a job; its images go with it if its ``deletionPolicy`` says so.

        Raises:
            TaskNotFoundError: There is none that the caller sees.
            KubernetesError: The API server refused it.
        """
        if not NAME.fullmatch(name):
            raise TaskNotFoundError
        # Whoever sees every job need not read one to delete it.
        uid = None if identity.owner is None else (await self.read(name, identity)).uid
        try:
            await self._resource.delete(self._namespace, name, uid)
        except NotFoundError:
            self._jobs.forget(name)
            raise TaskNotFoundError from None
        # Gone; or held by its finalizer for a while, which the watch will say.
        self._jobs.forget(name)
        logger.info("job deleted by a client", extra=audit(AuditAction.DELETE, name, identity))

    def _position(self, job: CachedJob) -> int | None:
        return self._jobs.queue_position(job, self._models.default_name)

    async def _look_up(self, name: str) -> CachedJob | None:
        # The watch may have brought it while this read waited for its turn.
        if (known := self._jobs.get(name)) is not None:
            return known
        try:
            job = (await self._resource.get(self._namespace, name)).job
        except NotFoundError:
            self._metrics.lookups.labels("no").inc()
            return None
        self._metrics.lookups.labels("yes").inc()
        self._jobs.remember(job)
        return job
