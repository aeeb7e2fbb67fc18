"""Kubernetes Events: what a person reads at the end of ``kubectl describe``.

An Event is a write, so there is none on the ordinary way of a job, where status says it all: only for what someone
would ask about. They are best effort, as everywhere in Kubernetes: one that cannot be written is dropped. Those of one
namespace, which may be many, or slow for a webhook of its own, keep no other's waiting.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from kubediffusion.operator.actions import DeletePod, Explain, JobAction, ReportAdapter, ReportModel, Requeue
from kubediffusion.operator.fair_queue import FairQueue
from kubediffusion.operator.model_status import pod_deletion_reason
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.conditions import (
    AdapterConditionType,
    AdapterReason,
    ConditionStatus,
    JobReason,
    ModelConditionType,
    ModelReason,
    WaitingReason,
    find_condition,
)
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.schema import format_time
from kubediffusion.resources.texts import shorten_note

logger = logging.getLogger(__name__)

MOST_WAITING = 500
"""Events of a namespace that wait to be written; more are dropped, since they only come in a flood."""

WRITERS = 4
"""Events that are written at the same time, each of another namespace."""

PARAMETERS_ADJUSTED = "ParametersAdjusted"
"""Reason of an Event that no condition carries: the job ran with other parameters than it asked for."""

UNREMARKABLE = frozenset({AdapterReason.LOADED, AdapterReason.NOT_LOADED, AdapterReason.MODEL_NOT_FOUND})
"""Reasons of an adapter's condition that make no Event."""


@dataclass(frozen=True)
class Event:
    """An Event about an object.

    Attributes:
        about: The object.
        kind: ``type`` of the Event.
        reason: A word for programs.
        message: A sentence for people.
    """

    about: GenerationJob | DiffusionModel | LoRAAdapter
    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def log_fields(job: GenerationJob) -> dict[str, str]:
    """Return the fields of a line of the log about a job."""
    return {"job": job.name, "namespace": job.metadata.namespace}


class EventRecorder:
    """Writes Events in the background.

    Args:
        client: The connection.
        instance: Name of this operator's Pod.
    """

    def __init__(self, client: KubernetesClient, instance: str) -> None:
        self._client = client
        self._instance = instance
        self._queue = FairQueue[Event](1)

    def record(self, *events: Event) -> None:
        """Queue Events to be written; those that find no room in the queue are dropped."""
        for event in events:
            namespace = event.about.metadata.namespace
            if self._queue.waiting(namespace) >= MOST_WAITING:
                logger.warning("too many events of %s wait, one is dropped: %s", namespace, event.reason)
            else:
                self._queue.put(namespace, event)

    async def run(self) -> None:
        """Write Events until cancelled, those of a namespace in their order."""
        async with asyncio.TaskGroup() as writers:
            for _ in range(WRITERS):
                writers.create_task(self._write_all())

    async def _write_all(self) -> None:
        while True:
            namespace, event = await self._queue.get()
            try:
                path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
                body = event_body(event, self._instance, dt.datetime.now(dt.UTC))
                await self._client.request("POST", path, body=body)
            except KubernetesError as error:
                logger.warning("event %s of %s is lost: %s", event.reason, event.about.name, error)
            except Exception:
                logger.exception("a defect: event %s of %s is lost", event.reason, event.about.name)
            finally:
                self._queue.done(namespace)


def event_body(event: Event, instance: str, now: dt.datetime) -> dict[str, Any]:
    """Return the manifest of an Event.

    Args:
        event: What to tell.
        instance: Name of this operator's Pod.
        now: The time to write.
    """
    metadata = event.about.metadata
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        # Named as client-go does: the object's name and something unique.
        "metadata": {
            "name": f"{metadata.name[:200].rstrip('-.')}.{uuid.uuid4().hex[:16]}",
            "namespace": metadata.namespace,
        },
        "eventTime": format_time(now),
        "type": event.kind,
        "reason": event.reason,
        "action": event.reason,
        "note": shorten_note(event.message),
        "reportingController": f"{meta.GROUP}/operator",
        "reportingInstance": instance,
        "regarding": {
            "apiVersion": meta.API_VERSION,
            "kind": event.about.KIND,
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
        },
    }


def events_of_job_write(action: JobAction, job: GenerationJob) -> list[Event]:
    """Return the Events of an action on a job that was written.

    Args:
        action: The action.
        job: The job as it is since.
    """
    match action:
        case Requeue():
            return [Event(job, "Warning" if action.costs_retry else "Normal", action.reason, action.message)]
        case Explain():
            return [Event(job, "Normal", action.reason, action.message)]
        case _:
            return []


def events_of_job_end(job: GenerationJob) -> list[Event]:
    """Return the Events of a job that has ended."""
    events: list[Event] = []
    error = job.status.error
    if job.status.phase is Phase.FAILED and error is not None:
        events.append(Event(job, "Warning", error.code, error.message))
    elif job.status.phase is Phase.CANCELLED and error is not None:
        events.append(Event(job, "Normal", JobReason.CANCELLED, error.message))
    return events + [Event(job, "Warning", PARAMETERS_ADJUSTED, warning) for warning in job.status.warnings]


def events_of_model_report(action: ReportModel) -> list[Event]:
    """Return the Event of a model that can be used now, or no longer; nothing where that has not changed."""
    before = find_condition(action.model.status.conditions, ModelConditionType.AVAILABLE)
    after = find_condition(action.status.conditions, ModelConditionType.AVAILABLE)
    if after is None or (before is not None and before.reason == after.reason):
        return []
    bad = after.status == ConditionStatus.FALSE or after.reason == ModelReason.INTERNAL_ERROR
    return [Event(action.model, "Warning" if bad else "Normal", after.reason, after.message)]


def events_of_adapter_report(action: ReportAdapter) -> list[Event]:
    """Return the Event of an adapter that workers refuse since, or whose source they cannot read; else nothing.

    That it is loaded, and not any more, changes with every worker, and nobody asks.
    """
    before = find_condition(action.adapter.status.conditions, AdapterConditionType.READY)
    after = find_condition(action.status.conditions, AdapterConditionType.READY)
    if after is None or after.reason in UNREMARKABLE or (before is not None and before.reason == after.reason):
        return []
    return [Event(action.adapter, "Warning", after.reason, after.message)]


def worker_refused(model: DiffusionModel, message: str) -> Event:
    """Return the Event of a model of which the API server takes no worker."""
    return Event(model, "Warning", WaitingReason.WORKER_REFUSED, message)


def pod_deleted(action: DeletePod) -> Event:
    """Return the Event of a model of which a worker's Pod was deleted."""
    message = f"Pod {action.name} was deleted: {pod_deletion_reason(action)}"
    return Event(action.model, "Warning", ModelReason.WORKER_FAILED, message)
