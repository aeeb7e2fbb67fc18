"""Jobs, models and errors as the client shows them, from the objects of the Kubernetes API; and the way back. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from pydantic.alias_generators import to_camel

from kubediffusion.client import errors
from kubediffusion.client.requests import Spec, snake_case
from kubediffusion.client.views import AdapterView, ImageView, JobView, ModelView, Waiting
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubernetesError,
    NotFoundError,
)
from kubediffusion.resources.conditions import ConditionStatus, JobConditionType, ModelConditionType, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModel, JobDefaults
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobSpec
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.parameters import resolve_parameters
from kubediffusion.resources.transitions import TERMINAL

_LONG_AGO = dt.datetime.fromtimestamp(0, dt.UTC)
_DENIED = re.compile(r"\bdenied (the )?request\b")
"""How an admission policy or a webhook says no to an object, whatever its status."""

NOT_ALLOWED = "whoever runs the cluster gives the role `edit` in the namespace"


def manifest(name: str, spec: Spec) -> dict[str, Any]:
    """Build the GenerationJob of a spec whose fields have their names in snake_case."""
    return {
        "apiVersion": meta.API_VERSION,
        "kind": GenerationJob.KIND,
        "metadata": {"name": name},
        "spec": _camel_case(spec),
    }


def asks_for(spec: GenerationJobSpec, wanted: Spec) -> bool:
    """Return whether a job is what a spec asks for, apart from fields that may have been changed since its creation."""
    immutable = GenerationJobSpec.model_fields.keys() - GenerationJobSpec.MUTABLE
    other = GenerationJobSpec.from_wire(_camel_case(wanted))
    return spec.model_dump(include=set(immutable)) == other.model_dump(include=set(immutable))


def job_view(job: GenerationJob) -> JobView:
    """Build the view of a job. Nobody has counted the jobs before it."""
    spec, status = job.spec, job.status
    scheduled = find_condition(status.conditions, JobConditionType.SCHEDULED)
    waits = scheduled is not None and scheduled.status == ConditionStatus.FALSE and status.phase not in TERMINAL
    return JobView.model_validate(
        {
            # What the view has of the status under the same name.
            **dict(status),
            "name": job.name,
            "model": spec.model,
            "prompt": spec.prompt,
            "priority": spec.priority or 0,
            "created_at": job.metadata.creation_timestamp or _LONG_AGO,
            "progress": status.progress.summary if status.progress else None,
            "images": [ImageView.model_validate(dict(image)) for image in status.images],
            "request": spec,
            "cancel_requested": bool(spec.cancel),
            "suspended": bool(spec.suspend),
            "waiting": Waiting(reason=scheduled.reason, message=scheduled.message) if waits and scheduled else None,
            "started_at": status.start_time,
            "completed_at": status.completion_time,
        }
    )


def model_view(model: DiffusionModel) -> ModelView:
    """Build the view of a model."""
    condition = find_condition(model.status.conditions, ModelConditionType.AVAILABLE)
    # The defaults as a job without any wish gets them; the prompt and the seed do not matter here.
    defaults = resolve_parameters(GenerationJobSpec(prompt="-"), model, seed=0).model_dump(mode="json")
    return ModelView.model_validate(
        {
            **dict(model.status),
            "name": model.name,
            "default": model.is_default,
            "available": model.unavailable is None,
            "reason": condition.reason if condition else "",
            "message": condition.message if condition else "",
            "limits": model.spec.limits,
            "defaults": {name: defaults.get(name) for name in JobDefaults.model_fields},
        }
    )


def adapter_view(adapter: LoRAAdapter) -> AdapterView:
    """Build the view of an adapter."""
    condition, status = adapter.readiness, adapter.status
    known = status.observed_generation == adapter.metadata.generation
    return AdapterView(
        name=adapter.name,
        model=adapter.spec.model,
        scale=adapter.spec.scale,
        trigger_words=adapter.spec.trigger_words,
        ready=condition is not None and condition.status == ConditionStatus.TRUE,
        reason=condition.reason if condition else "",
        message=condition.message if condition else "",
        rank=status.rank if known else None,
        digest=status.digest if known else None,
    )


def error_of(error: KubernetesError) -> errors.KubeDiffusionError:
    """Build the error of a refusal of the API server."""
    status = error.status or None
    match error:
        case InvalidError():
            return errors.InvalidRequestError(_problems(error), status=status)
        case ForbiddenError() if "exceeded quota" in error.message:
            return errors.TooManyRequestsError(error.message, status=status)
        case _ if _DENIED.search(error.message):
            return errors.InvalidRequestError(_problems(error), status=status)
        case NotFoundError():
            return errors.NotFoundError(error.message, status=status)
        case ConflictError():
            return errors.ConflictError(error.message, status=status)
    if error.status in {401, 403} or error.reason == "NoCredentials":
        return errors.PermissionDeniedError(error.message, remedy=NOT_ALLOWED, status=status)
    if error.status == 0:
        return errors.UnreachableError(error.message, remedy="does `kubectl version` reach the cluster?")
    return errors.UnavailableError(error.message, status=status, retry_after=error.retry_after)


def _problems(error: KubernetesError) -> list[errors.FieldProblem]:
    causes = error.details.get("causes") or [{"message": error.message}]
    return [_problem(cause.get("field", ""), cause.get("message", "")) for cause in causes]


def _problem(field: str, message: str) -> errors.FieldProblem:
    # An admission policy and strict decoding have no field to name, and say it in their message instead.
    found = re.match(r"spec\.([\w.]+)", field) or re.search(r"\bspec\.(\w+(?:\.\w+)*)", message)
    return errors.FieldProblem(snake_case(found[1]) if found else None, message)


def _camel_case(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {to_camel(name): _camel_case(field) for name, field in value.items()}
    return [_camel_case(item) for item in value] if isinstance(value, list | tuple) else value
