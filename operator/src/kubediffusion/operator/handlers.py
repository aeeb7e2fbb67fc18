"""kopf's handlers: each takes one raw event in, typed, and reports it to the store. Nothing is decided here.

``on.event`` handlers leave no trace on the objects (no annotations, no finalizers): the state machine is in status,
and a pass decides from all that is known, not from the event that woke it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import kopf
from pydantic import ValidationError

from kubediffusion.operator.store import Store
from kubediffusion.operator.workers import BatchJob, Pod
from kubediffusion.resources import meta
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.objects import KubernetesObject

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=KubernetesObject)


def register(registry: kopf.OperatorRegistry, store: Store) -> None:
    """Register what the operator watches through kopf.

    GenerationJobs are not among them: see :func:`kubediffusion.operator.watching.watch_jobs`.

    Args:
        registry: kopf's registry of this operator; none is global.
        store: Takes what is observed.
    """
    group, version = meta.GROUP, meta.VERSION
    ours = {meta.MANAGED_BY_LABEL: meta.MANAGER, meta.COMPONENT_LABEL: meta.WORKER_COMPONENT}

    @kopf.on.event(group, version, meta.DIFFUSION_MODELS, registry=registry)
    async def diffusion_model(event: kopf.RawEvent, **_: Any) -> None:
        report(event, DiffusionModel, store.observe_model)

    @kopf.on.event(group, version, meta.LORA_ADAPTERS, registry=registry)
    async def lora_adapter(event: kopf.RawEvent, **_: Any) -> None:
        report(event, LoRAAdapter, store.observe_adapter)

    @kopf.on.event("batch", "v1", "jobs", labels=ours, registry=registry)
    async def batch_job(event: kopf.RawEvent, **_: Any) -> None:
        report(event, BatchJob, store.observe_batch_job)

    @kopf.on.event("", "v1", "pods", labels=ours, registry=registry)
    async def pod(event: kopf.RawEvent, **_: Any) -> None:
        report(event, Pod, store.observe_pod)


def report(event: kopf.RawEvent, kind: type[T], observe: Callable[[T, bool], None]) -> None:
    """Report an event as a typed object and whether that is deleted; one that cannot be read is logged and left out.

    Args:
        event: The raw event.
        kind: Class of the object.
        observe: Takes the object.
    """
    body = event["object"]
    try:
        item = kind.from_wire(body)
    except ValidationError:
        # The API server validates: this is an object from another version of the CRD. It must not stop the others.
        name = body.get("metadata", {}).get("name")
        logger.exception("cannot read %s %s; is the CRD of this version?", kind.__name__, name)
        return
    observe(item, event["type"] == "DELETED")
