"""Accepts jobs: what is asked of a request before its GenerationJob is created."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kubediffusion.api import translate
from kubediffusion.api.access.audit import AuditAction, audit
from kubediffusion.api.access.identity import Identity
from kubediffusion.api.client_limits.rates import RateLimiter, RatesByLimit
from kubediffusion.api.creation import JobCreator
from kubediffusion.api.errors import ApiError, InvalidRequestError, RefusedJobsError, TooManyRequestsError, problem
from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.schemas import JobRequest
from kubediffusion.api.settings import Settings
from kubediffusion.api.webhook_urls import AllowedHosts, refusal
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.generation_job import GenerationJobSpec
from kubediffusion.resources.parameters import check_limits
from kubediffusion.resources.task_ids import new_task_id
from kubediffusion.resources.time_to_live import time_to_live

logger = logging.getLogger(__name__)

CONCURRENCY = 8
"""Jobs of one request that are created at the same time."""


class _AcceptedJob(NamedTuple):
    """A job that may be created.

    Attributes:
        name: Its name.
        spec: What was asked for.
        annotations: As :meth:`JobSubmitter.submit` has them.
        body: The GenerationJob to create.
        known: The job that the idempotency key has already; then there is none to create.
        repeatable: Whether it has an idempotency key.
    """

    name: str
    spec: GenerationJobSpec
    annotations: Mapping[str, str] | None
    body: dict[str, Any]
    known: CachedJob | None
    repeatable: bool


class JobSubmitter:
    """Accepts the jobs of one namespace.

    Args:
        settings: Settings of the API.
        jobs: GenerationJobs as the watch shows them.
        models: DiffusionModels as the watch shows them.
        creator: Creates the jobs that are accepted.
    """

    def __init__(self, settings: Settings, jobs: JobCache, models: ModelCache, creator: JobCreator) -> None:
        self._settings = settings
        self._jobs = jobs
        self._models = models
        self._creator = creator
        self._allowed_hosts = AllowedHosts(settings.webhook_allowed_hosts)
        # Every way to create a job counts against one rate.
        self._creations = RatesByLimit("Too many jobs created: at most {limit}.")

    def rate_headers(self, identity: Identity) -> dict[str, str]:
        """Return the headers that tell a caller how many jobs it may create, and what is left of them."""
        return self._rate_of(identity).headers(identity.client)

    async def submit(
        self,
        request: JobRequest,
        identity: Identity,
        idempotency_key: str | None,
        annotations: Mapping[str, str] | None = None,
    ) -> CachedJob:
        """Accept a job; as :meth:`kubediffusion.api.service.JobService.submit`."""
        self._rate_of(identity).hit(identity.client)
        accepted = self._accept(request, identity, idempotency_key, annotations)
        self._check_room(1 if accepted.known is None else 0, identity)
        return await self._create(accepted, identity)

    async def submit_all(
        self, requests: Sequence[JobRequest], identity: Identity, idempotency_key: str | None
    ) -> list[CachedJob | ApiError | KubernetesError]:
        """Accept several jobs, or none of them: what can be known beforehand of one stops all.

        Args:
            requests: What to generate.
            identity: Who asks; each job counts against the rate.
            idempotency_key: With the place in the list it is the idempotency key of each job.

        Returns:
            For each request its job, or why the API server refused it after all.

        Raises:
            InvalidRequestError: A job is refused, or there are more than the rate ever lets pass.
            UnavailableError: A model cannot be used.
            TooManyRequestsError: They are too many jobs, for the rate or beside those that are unfinished.
        """
        self._rate_of(identity).hit(identity.client, len(requests))
        accepted, refused = [], {}
        for place, request in enumerate(requests):
            # No key that a client may send has such a character in it.
            key = None if idempotency_key is None else f"{idempotency_key}\0{place}"
            try:
                accepted.append(self._accept(request, identity, key, None))
            except InvalidRequestError as error:
                refused[place] = error
        if refused:
            raise RefusedJobsError(refused)
        self._check_room(sum(job.known is None for job in accepted), identity)
        places = asyncio.Semaphore(CONCURRENCY)

        async def create(job: _AcceptedJob) -> CachedJob | ApiError | KubernetesError:
            async with places:
                try:
                    return await self._create(job, identity)
                except (ApiError, KubernetesError) as error:
                    return error

        return await asyncio.gather(*map(create, accepted))

    def _accept(
        self,
        request: JobRequest,
        identity: Identity,
        idempotency_key: str | None,
        annotations: Mapping[str, str] | None,
    ) -> _AcceptedJob:
        spec = translate.to_spec(request)
        repeatable = idempotency_key is not None
        if idempotency_key is None:
            name = new_task_id()
        else:
            name = translate.idempotent_name(identity.subject, idempotency_key)
            if (known := self._jobs.get(name)) is not None:
                _check_same_request(known, spec, annotations)
                return _AcceptedJob(name, spec, annotations, {}, known, repeatable)
        identity.check_model(spec.model)
        model = self._models.usable(spec.model)
        if errors := [problem(error.field, error.message) for error in check_limits(spec, model)]:
            raise InvalidRequestError(errors)
        self._models.adapters.check(spec, model)
        identity.check_priority(spec.priority)
        self._check_webhook(spec)
        ttl = time_to_live(spec, model, self._settings.default_ttl_seconds)
        named = spec.model_copy(update={"ttl_seconds_after_finished": ttl})
        body = translate.manifest(name, named, identity.subject, annotations)
        return _AcceptedJob(name, spec, annotations, body, None, repeatable)

    async def _create(self, accepted: _AcceptedJob, identity: Identity) -> CachedJob:
        if accepted.known is not None:
            return accepted.known
        job, fresh = await self._creator.create(accepted.name, accepted.body, repeatable=accepted.repeatable)
        self._jobs.remember(job)
        if accepted.repeatable and not fresh:
            _check_same_request(job, accepted.spec, accepted.annotations)
        extra = audit(AuditAction.CREATE, accepted.name, identity)
        if self._settings.log_prompts:
            extra["prompt"] = accepted.spec.prompt
        logger.info("job accepted", extra=extra)
        return job

    def _check_room(self, count: int, identity: Identity) -> None:
        """Check that there may be ``count`` more unfinished jobs.

        Raises:
            TooManyRequestsError: They would be too many unfinished ones, of the API key or of the namespace.
        """
        subject, cap = identity.subject, identity.limits.max_unfinished_jobs
        if count and subject and cap and self._jobs.unfinished_of(subject) + count > cap:
            message = f"{_so_many(self._jobs.unfinished_of(subject), cap)} of this API key are unfinished already"
            raise TooManyRequestsError(f"{message}; try again when some have finished.", 5)
        cap = self._settings.max_unfinished_jobs
        if count and cap and self._jobs.unfinished + count > cap:
            message = f"{_so_many(self._jobs.unfinished, cap)} are unfinished already"
            raise TooManyRequestsError(f"{message}; try again when some have finished.", 5)

    def _rate_of(self, identity: Identity) -> RateLimiter:
        return self._creations.limiter(identity.limits.rate_limit)

    def _check_webhook(self, spec: GenerationJobSpec) -> None:
        """Check what can be known of a webhook before anything is sent: the deliverer knows what its name resolves to.

        Raises:
            InvalidRequestError: Nobody delivers webhooks here, or the address or the Secret may not be used.
        """
        if spec.webhook is None:
            return
        names = [name.strip() for name in self._settings.webhook_secrets.split(",")]
        if not self._settings.webhooks:
            message = "This installation delivers no webhooks; leave it out, and wait, poll or follow the job's events"
        elif (reason := refusal(spec.webhook.url, self._allowed_hosts)) is not None:
            message = f"url: {reason}"
        elif spec.webhook.secret_name not in {None, *names}:
            message = f"secret_name: it must be one of {', '.join(names)}"
        else:
            return
        raise InvalidRequestError([problem("webhook", message)])


def _so_many(unfinished: int, cap: int) -> str:
    """Say how many jobs there are under a cap that has no room for what was asked."""
    return f"{cap} jobs" if unfinished >= cap else f"{unfinished} jobs of at most {cap}"


def _check_same_request(known: CachedJob, spec: GenerationJobSpec, annotations: Mapping[str, str] | None) -> None:
    whole = known.parse()
    # The same client may come by another of the API's names.
    kept, asked = (
        {key: value for key, value in noted.items() if key != meta.PREDICTIONS_URL_ANNOTATION}
        for noted in (whole.metadata.annotations, annotations or {})
    )
    if not translate.same_request(whole.spec, spec) or kept != asked:
        message = "This key has been used with another request; choose a new key for a new job"
        raise InvalidRequestError([problem("Idempotency-Key", message, "idempotency_key_reused", where="header")])
