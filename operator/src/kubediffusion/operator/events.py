"""Kubernetes Events: what a person reads at the end of ``kubectl describe``.

An Event is a write, so there is none on the ordinary way of a job, where status says it all: only for what someone
would ask about. They are best effort, as everywhere in Kubernetes: one that cannot be written is dropped.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from kubediffusion.resources import meta
from kubediffusion.resources.base import format_time
from kubediffusion.resources.client import KubernetesClient, KubernetesError
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob

logger = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Events that wait to be written; more are dropped, since they only come in a flood."""

MOST_NOTE = 1024
"""Bytes of a note; the API server says characters, counts bytes and refuses an Event that has more."""


@dataclass(frozen=True)
class Event:
    """One thing worth telling about an object."""

    about: GenerationJob | DiffusionModel
    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


class EventRecorder:
    """Write Events in the background.

    Args:
        client: The connection.
        instance: Name of this operator's Pod.
    """

    def __init__(self, client: KubernetesClient, instance: str) -> None:
        self._client = client
        self._instance = instance
        self._queue: asyncio.Queue[Event] = asyncio.Queue(MOST_WAITING)

    def record(self, event: Event) -> None:
        """Have an Event written soon."""
        if self._queue.full():
            logger.warning("too many events wait, one is dropped: %s", event.reason)
            return
        self._queue.put_nowait(event)

    async def run(self) -> None:
        """Write Events until cancelled."""
        while True:
            event = await self._queue.get()
            namespace = event.about.metadata.namespace
            try:
                path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
                await self._client.request("POST", path, body=self._body(event, dt.datetime.now(dt.UTC)))
            except KubernetesError as error:
                logger.warning("event %s of %s is lost: %s", event.reason, event.about.name, error)

    def _body(self, event: Event, now: dt.datetime) -> dict[str, Any]:
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
            "note": event.message.encode()[:MOST_NOTE].decode(errors="ignore"),
            "reportingController": f"{meta.GROUP}/operator",
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": meta.API_VERSION,
                "kind": event.about.KIND,
                "namespace": metadata.namespace,
                "name": metadata.name,
                "uid": metadata.uid,
            },
        }
