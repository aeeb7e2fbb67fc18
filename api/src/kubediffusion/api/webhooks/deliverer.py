"""Delivers what jobs owe: reads the job, sends the message, writes how it went. Nothing that counts is in memory."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kubediffusion.api.job_cache.records import PAGE_SIZE, JobRecord
from kubediffusion.api.webhook_urls import host_and_port
from kubediffusion.api.webhooks.attempts import due_time, status_after
from kubediffusion.api.webhooks.metrics import Metrics
from kubediffusion.api.webhooks.payloads import (
    event_payload,
    message_id,
    prediction_payload,
    predictions_url,
    serialised,
)
from kubediffusion.api.webhooks.queue import DeliveryQueue, Owed
from kubediffusion.api.webhooks.sender import Answer, WebhookSender
from kubediffusion.api.webhooks.settings import WebhookSettings
from kubediffusion.api.webhooks.signing import SecretKeys, SigningError, signature_headers
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobSpec, GenerationJobStatus
from kubediffusion.resources.merge_patch import merge_patch
from kubediffusion.resources.owed_webhooks import owed_event
from kubediffusion.resources.webhook import WebhookEvent, WebhookStatus

logger = logging.getLogger(__name__)

WITH_A_WEBHOOK = "spec.webhook.url!="
"""Field selector of the jobs that have one: the API server tells of no others."""

_NO_SPEC = GenerationJobSpec(prompt="-")
_NO_STATUS = GenerationJobStatus()

DEFECT_PAUSE = 60.0
"""Seconds until a delivery is tried again that a defect, or the API server's refusal, has ended."""

DRAIN_SECONDS = 20.0
"""How long deliveries that are under way may take when the process stops."""


def owed_by(job: GenerationJob) -> Owed | None:
    """Return what a job owes; None where it owes nothing."""
    event = owed_event(job.spec, job.status)
    if event is None or job.spec.webhook is None or job.metadata.deletion_timestamp is not None:
        return None
    try:
        receiver = "{}:{}".format(*host_and_port(job.spec.webhook.url))
    except ValueError:
        receiver = ""
    due = due_time(job.status.webhook, event)
    metadata = job.metadata
    moment = due.timestamp() if due else 0.0
    return Owed(metadata.namespace, job.name, job.uid, metadata.version, receiver, moment)


@dataclass(frozen=True)
class _Delivery:
    """One attempt: the job as it is, and the event."""

    record: JobRecord
    job: GenerationJob
    event: WebhookEvent


class Deliverer:
    """Delivers the webhooks of some namespaces while :meth:`run` runs.

    Args:
        client: The connection.
        settings: Settings of the process.
        sender: Sends the messages.
        metrics: Where attempts are counted.
    """

    def __init__(
        self, client: KubernetesClient, settings: WebhookSettings, sender: WebhookSender, metrics: Metrics
    ) -> None:
        self._client = client
        self._settings = settings
        self._sender = sender
        self._metrics = metrics
        self._keys = SecretKeys(client, settings.secret_list, unsigned=settings.webhook_unsigned)
        path = f"/apis/{meta.API_VERSION}"
        self._records = Resource(client, JobRecord, path, meta.GENERATION_JOBS)
        # Of each job that is watched, what it owes is all that is kept.
        self._jobs = Resource(
            client, GenerationJob, path, meta.GENERATION_JOBS, page_size=PAGE_SIZE, transform=_slim_job
        )
        self._queue = DeliveryQueue()
        self._deliveries: set[asyncio.Task[None]] = set()
        metrics.owed.set_function(lambda: len(self._queue))

    async def run(self) -> None:
        """Watch jobs, and deliver what they owe, until cancelled; what is under way then may come to its end."""
        self._queue = DeliveryQueue()
        namespaces: Sequence[str | None] = self._settings.namespace_list or [None]
        try:
            async with asyncio.TaskGroup() as group:
                for namespace in namespaces:
                    reflector = Reflector(
                        self._jobs, namespace, self.observe, field_selector=WITH_A_WEBHOOK, remember=_metadata_alone
                    )
                    group.create_task(reflector.run())
                group.create_task(self._dispatch())
        finally:
            await self._drain()

    def observe(self, job: GenerationJob, deleted: bool) -> None:
        """Note what a job owes, as the watch shows it."""
        owed = None if deleted else owed_by(job)
        if owed is None:
            self._queue.remove(job.uid)
        else:
            self._queue.put(owed)

    async def _dispatch(self) -> None:
        while True:
            owed = await self._queue.get()
            task = asyncio.create_task(self._deliver(owed), name=f"deliver {owed.namespace}/{owed.name}")
            self._deliveries.add(task)
            task.add_done_callback(self._deliveries.discard)

    async def _drain(self) -> None:
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=DRAIN_SECONDS)
        for task in self._deliveries:
            task.cancel()

    async def _deliver(self, owed: Owed) -> None:
        """Make one attempt, whatever comes of it: nothing of one job stops the others."""
        fields = {"job": owed.name, "namespace": owed.namespace, "receiver": owed.receiver}
        pause = None
        try:
            pause = await self._attempt(owed, fields)
        except NotFoundError:
            self._queue.remove(owed.uid)
        except KubernetesError as error:
            logger.warning("cannot read what a webhook owes, trying again: %s", error, extra=fields)
            pause = error.retry_after or DEFECT_PAUSE / 10
        except Exception:
            logger.exception("a defect: a webhook is not delivered, trying again", extra=fields)
            pause = DEFECT_PAUSE
        finally:
            if pause is not None:
                self._queue.postpone(owed, pause)
            self._queue.done(owed)

    async def _attempt(self, owed: Owed, fields: dict[str, Any]) -> float | None:
        """Send what a job owes now, and write how it went; return the seconds after which to look again, if any."""
        record = await self._records.get(owed.namespace, owed.name)
        job = record.job.parse()
        now_owed = owed_by(job) if job.uid == owed.uid else None
        event = owed_event(job.spec, job.status)
        if now_owed is None or event is None:
            return None
        if now_owed.due > time.time():
            # The watch had shown an older version.
            self._queue.put(now_owed)
            return None
        began = time.monotonic()
        answer = await self._send(_Delivery(record, job, event))
        self._queue.sent(owed)
        seconds = time.monotonic() - began
        moment = dt.datetime.now(dt.UTC)
        told = status_after(job.status.webhook, event, answer, moment, self._settings.webhook_retry_seconds)
        self._note(job, event, answer, told, seconds, fields)
        written = await self._write(job, told, fields)
        if written is not None and (then_owed := owed_by(written)) is not None:
            self._queue.put(then_owed)
        return None

    async def _send(self, delivery: _Delivery) -> Answer:
        job = delivery.job
        assert job.spec.webhook is not None  # noqa: S101 - it owes something
        try:
            keys = await self._keys.of(job.metadata.namespace, job.spec.webhook.secret_name)
        except SigningError as error:
            # Somebody may yet create it.
            return Answer(None, f"nothing was sent: {error}")
        body = serialised(await self._payload(delivery))
        identity = message_id(job.uid, delivery.event)
        headers = signature_headers(identity, dt.datetime.now(dt.UTC), body, keys)
        headers["Content-Type"] = "application/json"
        return await self._sender.send(job.spec.webhook.url, headers, body.encode())

    async def _payload(self, delivery: _Delivery) -> dict[str, Any]:
        job, cached = delivery.job, delivery.record.job
        url = predictions_url(job)
        if url is None:
            return event_payload(cached, job, delivery.event, self._settings.root_path)
        ran = job.status.parameters
        name = ran.model if ran else job.spec.model
        model: DiffusionModel | None = None
        if name is not None:
            try:
                model = await self._client.diffusion_models.get(job.metadata.namespace, name)
            except NotFoundError:
                logger.debug("the model of a prediction is gone", extra={"job": job.name})
        return prediction_payload(cached, job, model, url)

    def _note(
        self,
        job: GenerationJob,
        event: WebhookEvent,
        answer: Answer,
        told: WebhookStatus,
        seconds: float,
        fields: dict[str, Any],
    ) -> None:
        """Count and log an attempt; of the address its host alone."""
        outcome = "given_up" if told.failure else "failed" if answer.problem else "delivered"
        self._metrics.attempts.labels(outcome).inc()
        self._metrics.attempt_seconds.observe(seconds)
        said = {**fields, "event": str(event), "attempt": told.attempts, "status": answer.status}
        said["seconds"] = round(seconds, 3)
        if outcome == "delivered":
            happened = job.status.completion_time if event is WebhookEvent.COMPLETED else job.status.start_time
            if happened is not None:
                self._metrics.delay.observe((dt.datetime.now(dt.UTC) - happened).total_seconds())
            logger.info("webhook delivered", extra=said)
        elif told.failure is not None:
            logger.warning("webhook given up: %s", told.failure.message, extra=said)
        else:
            logger.warning("webhook not delivered, trying again: %s", answer.problem, extra=said)

    async def _write(self, job: GenerationJob, told: WebhookStatus, fields: dict[str, Any]) -> GenerationJob | None:
        """Write how an attempt went until that is there; return the job as it is then, None where it is gone.

        What was delivered and is not written would be sent again, so that this waits for the API server as long as the
        process lives.
        """
        before = job.status.webhook.to_wire() if job.status.webhook else {}
        patch = {"metadata": {"uid": job.uid}, "status": {"webhook": merge_patch(before, told.to_wire())}}
        backoff = Backoff(0.2, DEFECT_PAUSE)
        while True:
            try:
                return await self._jobs.patch(job.metadata.namespace, job.name, patch, subresource="status")
            except (NotFoundError, ConflictError):
                # Of this name there may be another job by now.
                return None
            except KubernetesError as error:
                logger.warning("cannot write how a webhook went, trying again: %s", error, extra=fields)
                pause = backoff.next_pause()
                await asyncio.sleep(error.retry_after or pause)


def _slim_job(job: GenerationJob) -> GenerationJob:
    """Return a job without what it takes to draw it: no more than what it owes is read of it."""
    metadata = job.metadata.model_copy(update={"labels": {}, "annotations": {}, "owner_references": ()})
    spec = _NO_SPEC.model_copy(update={"webhook": job.spec.webhook})
    kept = {name: getattr(job.status, name) for name in ("phase", "start_time", "completion_time", "webhook")}
    return job.model_copy(update={"metadata": metadata, "spec": spec, "status": _NO_STATUS.model_copy(update=kept)})


def _metadata_alone(job: GenerationJob) -> GenerationJob:
    """Return what the watch needs to tell of a deletion."""
    return job.model_copy(update={"spec": _NO_SPEC, "status": _NO_STATUS})
