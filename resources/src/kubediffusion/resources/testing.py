"""Builders of resources, for the tests of the parts and of those who build on them.

Every builder gives a valid object with fixed times; keyword arguments name what a test is about.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, TypeVar

from kubediffusion.resources import meta
from kubediffusion.resources.diffusion_model import (
    DiffusionModel,
    DiffusionModelSpec,
    JobDefaults,
    JobLimits,
)
from kubediffusion.resources.generation_job import (
    GenerationJob,
    GenerationJobSpec,
    GenerationJobStatus,
    Parameters,
    Phase,
)
from kubediffusion.resources.lora_adapter import AdapterSource, LoRAAdapter, LoRAAdapterSpec, LoRAAdapterStatus
from kubediffusion.resources.model_source import ModelSource
from kubediffusion.resources.objects import ObjectMeta
from kubediffusion.resources.worker_settings import WorkerSettings

NOW = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
"""The time in tests."""
NAMESPACE = "studio"

T = TypeVar("T")


def present(value: T | None) -> T:
    """Return a value that a test knows to be there."""
    if value is None:
        raise AssertionError("a value is missing")
    return value


def _metadata(name: str, age: float, **more: Any) -> ObjectMeta:
    """Build the metadata of an object that was created ``age`` seconds before :data:`NOW`."""
    return ObjectMeta(
        name=name,
        namespace=NAMESPACE,
        uid=f"uid-{name}",
        resource_version="1",
        generation=1,
        creation_timestamp=NOW - dt.timedelta(seconds=age),
        **more,
    )


def job(name: str = "job", *, age: float = 10, status: GenerationJobStatus | None = None, **spec: Any) -> GenerationJob:
    """Build a GenerationJob that was created ``age`` seconds before :data:`NOW`.

    Args:
        name: Its name; its uid is derived from it.
        age: Seconds since its creation.
        status: Its status; Pending when not given.
        **spec: Fields of its spec.
    """
    return GenerationJob(
        metadata=_metadata(name, age),
        spec=GenerationJobSpec(**{"prompt": "a fox in the snow", **spec}),
        status=status or GenerationJobStatus(),
    )


def bound_job(
    name: str = "job", *, worker: str, phase: Phase = Phase.SCHEDULED, retries: int = 0, age: float = 10, **spec: Any
) -> GenerationJob:
    """Build a GenerationJob that a worker's Pod has."""
    parameters = Parameters(
        model="emoji", num_inference_steps=25, guidance_scale=7.5, seed=7, num_images=spec.get("num_images") or 1
    )
    status = GenerationJobStatus(
        phase=phase, worker=worker, attempt=retries + 1, retries=retries, parameters=parameters
    )
    return job(name, age=age, status=status, **spec)


def model(
    name: str = "emoji",
    *,
    default: bool = True,
    limits: JobLimits | None = None,
    defaults: JobDefaults | None = None,
    **workers: Any,
) -> DiffusionModel:
    """Build a DiffusionModel.

    Args:
        name: Its name.
        default: Whether it carries the default annotation.
        limits: The most that a job may ask for.
        defaults: What a job gets that does not say otherwise.
        **workers: Fields of ``spec.workers``.
    """
    return DiffusionModel(
        metadata=_metadata(name, 3600, annotations={meta.DEFAULT_MODEL_ANNOTATION: "true"} if default else {}),
        spec=DiffusionModelSpec(
            source=ModelSource(path="/models/emoji"),
            limits=limits or JobLimits(),
            defaults=defaults or JobDefaults(),
            workers=WorkerSettings(**workers),
        ),
    )


def adapter(
    name: str = "crayon", *, of: str = "emoji", status: LoRAAdapterStatus | None = None, **spec: Any
) -> LoRAAdapter:
    """Build a LoRAAdapter.

    Args:
        name: Its name; its uid is derived from it.
        of: Name of the model that it is for.
        status: Its status; empty when not given.
        **spec: More fields of its spec.
    """
    return LoRAAdapter(
        metadata=_metadata(name, 3600),
        spec=LoRAAdapterSpec(**{"model": of, "source": AdapterSource(path="/adapters"), **spec}),
        status=status or LoRAAdapterStatus(),
    )
