"""Between the HTTP API's models and the resources. Pure: no clock, no client, no environment."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from kubediffusion.api.adapter_schemas import AdapterView
from kubediffusion.api.errors import StateConflictError
from kubediffusion.api.job_cache.records import CachedJob, StoredImage
from kubediffusion.api.model_schemas import ModelView, OpenAIModel
from kubediffusion.api.schemas import (
    ImageView,
    JobError,
    JobRequest,
    JobSummary,
    JobUrls,
    JobView,
    Waiting,
)
from kubediffusion.resources import meta
from kubediffusion.resources.adapters import JobAdapter
from kubediffusion.resources.conditions import (
    Condition,
    ConditionStatus,
    EngineReason,
    JobConditionType,
    ModelConditionType,
    WaitingReason,
    find_condition,
)
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import Acceleration, GenerationJob, GenerationJobSpec, Scheduler
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.parameters import resolve_parameters

MAX_NAME = 253
AGAIN_SUFFIX = "-again"

_IDEMPOTENCY_NAMESPACE = uuid.UUID("3c1f7f0e-6f0c-5d0a-9a6b-7d1f1c0e2b55")
"""Where the names of idempotent requests live (RFC 9562, version 5). It must never change."""


def to_spec(request: JobRequest) -> GenerationJobSpec:
    """Build the spec of the job that a request asks for; what the client left out stays unset."""
    return GenerationJobSpec(**request.model_dump(exclude_none=True))


def manifest(
    name: str, spec: GenerationJobSpec, key_name: str = "", annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Build the GenerationJob to create; ``key_name`` is the API key's, empty where there is none."""
    noted = {**(annotations or {}), **({meta.CLIENT_ANNOTATION: key_name} if key_name else {})}
    return {
        "apiVersion": meta.API_VERSION,
        "kind": GenerationJob.KIND,
        "metadata": {"name": name, **({"annotations": noted} if noted else {})},
        "spec": spec.to_wire(),
    }


def idempotent_name(client: str, key: str) -> str:
    """Name the job of an ``Idempotency-Key``: the same key of the same client always gives the same job."""
    return str(uuid.uuid5(_IDEMPOTENCY_NAMESPACE, f"{client}\0{key}"))


def same_request(one: GenerationJobSpec, other: GenerationJobSpec) -> bool:
    """Return whether two specs ask for the same; fields that may have been changed since creation are not compared."""
    return one.model_dump(exclude=set(GenerationJobSpec.MUTABLE)) == other.model_dump(
        exclude=set(GenerationJobSpec.MUTABLE)
    )


def image_path(name: str, index: int, root_path: str) -> str:
    """Return the path under which clients get an image."""
    return f"{root_path}/v1/jobs/{name}/images/{index}"


def summary(job: CachedJob, queue_position: int | None, root_path: str = "") -> JobSummary:
    """Build the view of a job in a list."""
    return JobSummary(**_summary_fields(job, queue_position, root_path))


def view(
    job: CachedJob, queue_position: int | None, model: DiffusionModel | None = None, root_path: str = ""
) -> JobView:
    """Build the detailed view of a job.

    Args:
        job: The job.
        queue_position: Its place in the queue, while it waits.
        model: Its model, which says how far a worker's start has come.
        root_path: The prefix that the API is served under.
    """
    whole = job.parse()
    spec, status = whole.spec, whole.status
    scheduled = find_condition(status.conditions, JobConditionType.SCHEDULED)
    waits = scheduled is not None and scheduled.status == ConditionStatus.FALSE and not job.finished
    # What the view has of the status alone is taken from it by name.
    return JobView.model_validate(
        {
            **dict(status),
            **_summary_fields(job, queue_position, root_path),
            "request": spec,
            "cancel_requested": bool(spec.cancel),
            "suspended": job.suspended,
            "waiting": _waiting(scheduled, model) if waits and scheduled else None,
        }
    )


def _waiting(scheduled: Condition, model: DiffusionModel | None) -> Waiting:
    """Say why a job waits: its condition is written once, and its model says how far a worker's start is."""
    starts = model.status.workers.starts if model is not None else ()
    start = next((start for start in starts if start.reason != EngineReason.COMPILING), None)
    if scheduled.reason != WaitingReason.WORKER_STARTING or model is None or start is None:
        return Waiting(reason=scheduled.reason, message=scheduled.message)
    return Waiting(reason=scheduled.reason, message=f"a worker is loading model {model.name}: {start.message}")


def _summary_fields(job: CachedJob, queue_position: int | None, root_path: str) -> dict[str, Any]:
    return {
        "name": job.name,
        "phase": job.phase,
        "model": job.model,
        "prompt": job.prompt,
        "priority": job.priority,
        "created_at": dt.datetime.fromtimestamp(job.created, dt.UTC),
        "progress": job.progress,
        "worker": job.worker,
        "queue_position": queue_position,
        "images": [_image_view(job.name, image, root_path) for image in job.images],
        "error": JobError(code=job.error_code, message=job.error_message or "") if job.error_code else None,
        "warnings": list(job.warnings),
        "urls": _urls(job, root_path),
    }


def _urls(job: CachedJob, root_path: str) -> JobUrls:
    path = f"{root_path}/v1/jobs/{job.name}"
    images = [image_path(job.name, image.index, root_path) for image in job.images]
    # Not by its constructor, whose own first argument is called self.
    return JobUrls.model_validate(
        {
            "self": path,
            "cancel": f"{path}/cancel",
            "events": f"{path}/events",
            "recipe": f"{path}/recipe",
            "images": images,
        }
    )


def _image_view(name: str, image: StoredImage, root_path: str) -> ImageView:
    kept = {field: getattr(image, field) for field in StoredImage.__slots__}
    return ImageView.model_validate({**kept, "path": image_path(name, image.index, root_path)})


def openai_model(model: DiffusionModel) -> OpenAIModel:
    """Build the view of a model for OpenAI's clients."""
    created = model.metadata.creation_timestamp
    return OpenAIModel(
        id=model.name, created=int(created.timestamp()) if created else 0, owned_by=model.metadata.namespace or ""
    )


def adapter_view(adapter: LoRAAdapter) -> AdapterView:
    """Build the view of an adapter."""
    condition, status = adapter.readiness, adapter.status
    known = status if status.observed_generation == adapter.metadata.generation else None
    return AdapterView(
        name=adapter.name,
        model=adapter.spec.model,
        scale=adapter.spec.scale,
        trigger_words=list(adapter.spec.trigger_words),
        ready=condition is not None and condition.status == ConditionStatus.TRUE,
        reason=condition.reason if condition else None,
        message=condition.message if condition else None,
        rank=known.rank if known else None,
        digest=known.digest if known else None,
    )


def model_view(model: DiffusionModel, adapters: Iterable[LoRAAdapter] = ()) -> ModelView:
    """Build the view of a model, with its adapters."""
    condition = find_condition(model.status.conditions, ModelConditionType.AVAILABLE)
    # The defaults as a job without any wish gets them; the prompt and the seed do not matter here.
    defaults = resolve_parameters(GenerationJobSpec(prompt="-"), model, seed=0)
    return ModelView.model_validate(
        {
            **dict(model.status),
            "name": model.name,
            "default": model.is_default,
            "available": model.unavailable is None,
            "reason": condition.reason if condition else None,
            "message": condition.message if condition else None,
            "limits": model.spec.limits,
            "defaults": defaults,
            "tasks": [] if model.pipeline is None else model.pipeline.tasks,
            "adapters": [adapter_view(adapter) for adapter in adapters],
        }
    )


def recipe_manifest(job: GenerationJob, model: DiffusionModel | None = None) -> dict[str, Any]:
    """Build the GenerationJob that names all that a job was really run with, of which pixels depend on.

    The values are those of ``status.parameters``, which the worker writes into each PNG as well.

    Args:
        job: The job.
        model: Its model, as it is now; None where it is gone.

    Raises:
        StateConflictError: No worker has had the job: its defaults and its seed are not resolved.
    """
    ran = job.status.parameters
    if ran is None:
        raise StateConflictError(f"The job has no recipe yet: it is {job.status.phase}.")
    shared = ran.model_fields_set & GenerationJobSpec.model_fields.keys()
    known = {field: value for field in shared if (value := getattr(ran, field)) is not None}
    if ran.adapters is not None:
        # Not by their digests: no job can ask for one.
        known["adapters"] = [JobAdapter(name=each.name, scale=each.scale) for each in ran.adapters]
    # A model may have a scheduler of its own that no job can ask for; it has it again.
    if ran.scheduler not in set(Scheduler):
        known.pop("scheduler", None)
    pipeline = model.pipeline if model is not None else None
    if pipeline is not None and ran.pipeline in {None, pipeline.name} and not pipeline.negative_prompt:
        # It had no effect, and a job that names one is refused; the model's own, if that was it, is there again.
        known.pop("negative_prompt", None)
    # None at all, whatever the model's default may be by then.
    known.setdefault("acceleration", Acceleration())
    known.setdefault("prompt_weighting", False)
    spec = GenerationJobSpec(prompt=job.spec.prompt, **known)
    return {
        "apiVersion": meta.API_VERSION,
        "kind": GenerationJob.KIND,
        "metadata": {"name": job.name[: MAX_NAME - len(AGAIN_SUFFIX)].rstrip("-.") + AGAIN_SUFFIX},
        "spec": spec.to_wire(),
    }
