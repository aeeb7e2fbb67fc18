"""Accepts jobs: what is asked of a request before its GenerationJob is created."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from kubediffusion.api import translate
from kubediffusion.api.client_limits.rates import RateLimiter
from kubediffusion.api.creation import JobCreator
from kubediffusion.api.errors import InvalidRequestError, TooManyRequestsError, problem
from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.schemas import JobRequest
from kubediffusion.api.settings import Settings
from kubediffusion.resources.generation_job import GenerationJobSpec
from kubediffusion.resources.parameters import check_limits
from kubediffusion.resources.task_ids import new_task_id
from kubediffusion.resources.time_to_live import time_to_live

logger = logging.getLogger(__name__)


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
        # Every way to create a job counts against one rate.
        self._creations = RateLimiter(settings.rate_limit, "Too many jobs created: at most {limit}.")

    async def submit(
        self,
        request: JobRequest,
        client: str,
        key_name: str,
        idempotency_key: str | None,
        annotations: Mapping[str, str] | None = None,
    ) -> CachedJob:
        """Accept a job; as :meth:`kubediffusion.api.service.JobService.submit`."""
        self._creations.hit(client)
        spec = translate.to_spec(request)
        if idempotency_key is None:
            name = new_task_id()
        else:
            name = translate.idempotent_name(key_name, idempotency_key)
            if (known := self._jobs.get(name)) is not None:
                _check_same_request(known, spec, annotations)
                return known
        model = self._models.usable(spec.model)
        if errors := [problem(error.field, error.message) for error in check_limits(spec, model)]:
            raise InvalidRequestError(errors)
        self._check_key_limits(spec, key_name)
        self._check_room()
        ttl = time_to_live(spec, model, self._settings.default_ttl_seconds)
        named = spec.model_copy(update={"ttl_seconds_after_finished": ttl})
        body = translate.manifest(name, named, key_name, annotations)
        job, fresh = await self._creator.create(name, body, repeatable=idempotency_key is not None)
        self._jobs.remember(job)
        if idempotency_key is not None and not fresh:
            _check_same_request(job, spec, annotations)
        extra = {"job": name, "client": client}
        if self._settings.log_prompts:
            extra["prompt"] = spec.prompt
        logger.info("job accepted", extra=extra)
        return job

    def _check_room(self) -> None:
        cap = self._settings.max_unfinished_jobs
        if cap and self._jobs.unfinished >= cap:
            raise TooManyRequestsError(f"{cap} jobs are unfinished already; try again when some have finished.", 5)

    def _check_key_limits(self, spec: GenerationJobSpec, key_name: str) -> None:
        limits = self._settings.limits_of(key_name)
        if spec.priority is not None and spec.priority > limits.max_priority:
            message = (
                f"{spec.priority} exceeds the highest priority that this client may ask for, {limits.max_priority}"
            )
            raise InvalidRequestError([problem("priority", message)])
        cap = limits.max_unfinished_jobs
        if key_name and cap and self._jobs.unfinished_of(key_name) >= cap:
            message = f"{cap} jobs of this API key are unfinished already; try again when some have finished."
            raise TooManyRequestsError(message, 5)


def _check_same_request(known: CachedJob, spec: GenerationJobSpec, annotations: Mapping[str, str] | None) -> None:
    whole = known.parse()
    if not translate.same_request(whole.spec, spec) or whole.metadata.annotations != (annotations or {}):
        message = "This key has been used with another request; choose a new key for a new job"
        raise InvalidRequestError([problem("Idempotency-Key", message, "idempotency_key_reused", where="header")])
