"""Writes how far the worker's start has come to a condition of its own Pod.

A node keeps conditions that it does not know, as those of readiness gates, and the operator watches its workers' Pods
anyway: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-readiness-gate. Nothing depends on the
condition: a worker that may not write it, or cannot now, starts all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from dataclasses import dataclass

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.resource import STRATEGIC_MERGE_PATCH
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.conditions import ConditionStatus, EngineReason, PodConditionType
from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.resources.schema import format_time

logger = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two writes at least; of the stages between, the last is written."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0

_AFTER_START = frozenset({EngineReason.COMPILING, EngineReason.READY})


@dataclass(frozen=True)
class _Stage:
    status: ConditionStatus
    reason: EngineReason
    message: str


class StartReport:
    """Writes the condition of this worker's Pod; :meth:`set_stage` is an :data:`OnStage`.

    Belongs to the event loop in which it is made.

    Args:
        client: The API server.
        namespace: Namespace of the Pod.
        pod: Name of the Pod.
        period: Seconds between two writes at least.
    """

    def __init__(self, client: KubernetesClient, namespace: str, pod: str, period: float = PERIOD) -> None:
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        self._period = period
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._stage: _Stage | None = None
        self._after_start = (EngineReason.READY, "the worker takes jobs")
        self._pipeline: PipelineFacts | None = None
        self._pipeline_since = dt.datetime.now(dt.UTC)
        self._ready = asyncio.Event()
        self._warned = False

    def set_stage(self, reason: EngineReason, message: str) -> None:
        """Set the stage of the start. Thread-safe; returns at once.

        Args:
            reason: The stage.
            message: The stage for people.
        """
        # The loop may be closed: the model still loads while the process ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_stage, reason, message)

    def set_pipeline(self, facts: PipelineFacts) -> None:
        """Tell what is known of the pipeline, with the stage that is written next: the worker takes jobs after it."""
        self._pipeline, self._pipeline_since = facts, dt.datetime.now(dt.UTC)

    def set_ready(self) -> None:
        """Set the condition to true: the worker takes jobs."""
        self._ready.set()
        self._set(ConditionStatus.TRUE, *self._after_start)

    async def run(self) -> None:
        """Write the condition whenever it changes, until cancelled; errors are logged."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        written: _Stage | None = None
        since = dt.datetime.now(dt.UTC)
        while True:
            await self._changed.wait()
            self._changed.clear()
            stage = self._stage
            if stage is None or stage == written:
                continue
            if written is None or written.status is not stage.status:
                since = dt.datetime.now(dt.UTC)
            try:
                await self._write(stage, since)
            except KubernetesError as error:
                self._warn(error)
                if error.transient:
                    self._changed.set()
                    await asyncio.sleep(error.retry_after or backoff.next_pause())
            except Exception:
                logger.exception("a defect: how far the start has come cannot be shown")
            else:
                written = stage
                backoff.reset()
                await self._pause()

    async def _pause(self) -> None:
        """Wait until the next write is due; readiness is written at once."""
        if self._ready.is_set():
            await asyncio.sleep(self._period)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), self._period)

    def _set_stage(self, reason: EngineReason, message: str) -> None:
        if reason in _AFTER_START:
            # Set before the worker takes jobs, it holds only from then on.
            self._after_start = (reason, message)
            if self._ready.is_set():
                self._set(ConditionStatus.TRUE, reason, message)
        elif not self._ready.is_set():
            self._set(ConditionStatus.FALSE, reason, message)

    def _set(self, status: ConditionStatus, reason: EngineReason, message: str) -> None:
        stage = _Stage(status, reason, message)
        if stage != self._stage:
            logger.info("start: %s", message, extra={"stage": reason})
            self._stage = stage
            self._changed.set()

    async def _write(self, stage: _Stage, since: dt.datetime) -> None:
        condition = {
            "type": PodConditionType.ENGINE_READY,
            "status": stage.status,
            "reason": stage.reason,
            "message": stage.message,
            "lastTransitionTime": format_time(since),
        }
        conditions = [condition]
        if self._pipeline is not None:
            conditions.append(
                {
                    "type": PodConditionType.PIPELINE_KNOWN,
                    "status": ConditionStatus.TRUE,
                    "reason": self._pipeline.name,
                    "message": self._pipeline.to_json(),
                    "lastTransitionTime": format_time(self._pipeline_since),
                }
            )
        # Conditions are merged by their type: those of others stay.
        patch = {"status": {"conditions": conditions}}
        await self._client.request("PATCH", self._path, body=patch, content_type=STRATEGIC_MERGE_PATCH)

    def _warn(self, error: KubernetesError) -> None:
        """Log, once, that the condition cannot be written; an older role does not allow it, for example."""
        if not self._warned:
            self._warned = True
            logger.warning("the Pod's status does not show how far the start has come: %s", error)
