"""Workers as the operator sees them: a batch/v1 Job, its one Pod, and what they add up to."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from kubediffusion.operator.containers import (
    CONTAINER,
    NOTHING_SAID,
    ContainerStatus,
    Terminated,
    first_failure,
    why_waiting,
)
from kubediffusion.resources import meta
from kubediffusion.resources.conditions import ConditionStatus, PodConditionType
from kubediffusion.resources.failures import BAD_MODEL_EXIT_CODE, REFUSED_MODEL_EXIT_CODE
from kubediffusion.resources.objects import KubernetesObject
from kubediffusion.resources.pipeline_facts import PipelineFacts, facts_from_json
from kubediffusion.resources.schema import Schema, Time

ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of a Pod all of whose containers have ended for good."""

POD_DELAY = dt.timedelta(seconds=2)
"""A worker's Job that has no Pod so long after its creation may be kept from having one."""

LONGEST_REASON = 100
"""Characters of a worker's reason that go into a message: workers may run anybody's code."""


class PlatformCondition(Schema):
    """A condition of a Pod or a batch/v1 Job."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: Time | None = None


class PodStatus(Schema):
    """The part of a Pod's status that is read."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: tuple[PlatformCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class PodSpec(Schema):
    """The part of a Pod's spec that is read."""

    termination_grace_period_seconds: int = 30


class Pod(KubernetesObject):
    """A worker's Pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def batch_job(self) -> str:
        """Uid of the batch/v1 Job that owns it, if any: another Job may have the name of that one by now."""
        return next((owner.uid for owner in self.metadata.owner_references if owner.kind == "Job"), "")

    @property
    def outcome(self) -> str:
        """``Succeeded`` or ``Failed`` once its worker has ended for good, whatever runs beside it; empty until then.

        The worker's own container decides: one that somebody injected may run on, and the Pod with it.
        """
        if self.status.phase in ENDED:
            return self.status.phase
        if self.terminated is None:
            return ""
        return "Succeeded" if self.terminated.exit_code == 0 else "Failed"

    @property
    def finished(self) -> bool:
        """Whether its worker has ended for good."""
        return bool(self.outcome)

    @property
    def outlived_since(self) -> dt.datetime | None:
        """When its worker ended while other containers of it run on; None where none does."""
        ended = self.terminated
        return ended.finished_at if ended is not None and self.status.phase not in ENDED else None

    @property
    def terminating(self) -> bool:
        """Whether it is being deleted (``metadata.deletionTimestamp`` is set)."""
        return self.metadata.deletion_timestamp is not None

    @property
    def grace(self) -> dt.timedelta:
        """Its termination grace period."""
        return dt.timedelta(seconds=self.metadata.deletion_grace_period_seconds or 0)

    @property
    def ready(self) -> bool:
        """Whether it holds its model and can be given jobs."""
        return (
            self.status.phase == "Running"
            and not self.terminating
            and not self.finished
            and any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)
        )

    @property
    def withdrawn(self) -> bool:
        """Whether its worker, which has loaded its model and was not told to go, says that it is not ready."""
        unready = self.status.phase == "Running" and not (self.terminating or self.finished or self._container.ready)
        return unready and self.engine_ready is not None and self.engine_ready.status == ConditionStatus.TRUE

    @property
    def others_unready(self) -> str:
        """What its node says of other containers that keep it from being ready where its worker is; else empty."""
        told = next((c for c in self.status.conditions if c.type == "Ready" and c.status == "False"), None)
        return told.message if told is not None and self._container.ready and not self.terminating else ""

    @property
    def unschedulable(self) -> str:
        """Why no node takes it; empty when one did, or none was asked yet."""
        for condition in self.status.conditions:
            if condition.type == "PodScheduled" and condition.status == "False":
                return condition.message or condition.reason
        return ""

    @property
    def blocked(self) -> str:
        """Why its container cannot be started (its image, a Secret, one before it); empty where nothing is known."""
        return why_waiting(self._container, self.status.init_container_statuses)

    @property
    def engine_ready(self) -> PlatformCondition | None:
        """How far its start has come, as its worker says; None where it has not said anything."""
        return next((c for c in self.status.conditions if c.type == PodConditionType.ENGINE_READY), None)

    @property
    def pipeline(self) -> PipelineFacts | None:
        """What its worker knows of the pipeline that it has loaded; None where it has not said anything."""
        told = (c.message for c in self.status.conditions if c.type == PodConditionType.PIPELINE_KNOWN)
        return next((facts_from_json(message) for message in told), None)

    @property
    def terminated(self) -> Terminated | None:
        """How its container ended, where the node has said so."""
        return self._container.state.terminated

    @property
    def disrupted(self) -> bool:
        """Whether the platform ended it (drain, preemption, eviction), not its own doing."""
        return any(c.type == "DisruptionTarget" and c.status == "True" for c in self.status.conditions)

    @property
    def _container(self) -> ContainerStatus:
        """What the node says of its container; nothing yet where it has not said anything."""
        found = (container for container in self.status.container_statuses if container.name == CONTAINER)
        return next(found, NOTHING_SAID)


class BatchJobSpec(Schema):
    """The part of a batch/v1 Job's spec that is read."""

    suspend: bool = False


class BatchJobStatus(Schema):
    """The part of a batch/v1 Job's status that is read."""

    conditions: tuple[PlatformCondition, ...] = ()


class BatchJob(KubernetesObject):
    """The batch/v1 Job of a worker."""

    spec: BatchJobSpec = BatchJobSpec()
    status: BatchJobStatus = BatchJobStatus()

    @property
    def model(self) -> str:
        """The DiffusionModel that it serves."""
        return self.metadata.labels.get(meta.MODEL_LABEL, "")

    def is_worker_of(self, model: str) -> bool:
        """Return whether it has the labels by which the operator lists and watches the workers of a model."""
        labels = self.metadata.labels
        return (
            labels.get(meta.MANAGED_BY_LABEL) == meta.MANAGER
            and labels.get(meta.COMPONENT_LABEL) == meta.WORKER_COMPONENT
            and self.model == model
        )

    def lacks_pod(self, now: dt.datetime) -> bool:
        """Return whether it should have a Pod by now, where none is known."""
        created = self.metadata.creation_timestamp
        ended = self.complete or self.failure is not None or self.metadata.deletion_timestamp is not None
        return not ended and not self.spec.suspend and created is not None and now - created > POD_DELAY

    @property
    def failure(self) -> PlatformCondition | None:
        """The condition that says why it failed, or None."""
        return next((c for c in self.status.conditions if c.type == "Failed" and c.status == "True"), None)

    @property
    def complete(self) -> bool:
        """Whether its Pod ended with success."""
        return any(c.type == "Complete" and c.status == "True" for c in self.status.conditions)


class WorkerState(StrEnum):
    """What a worker can be used for."""

    QUEUED = "Queued"
    """Suspended until Kueue admits it."""
    STARTING = "Starting"
    """Its Pod is not ready: it waits for a node, or loads the model."""
    READY = "Ready"
    """It can be given jobs."""
    CUT_OFF = "CutOff"
    """It was ready and says that it is not: it may not hear the API server."""
    GOING = "Going"
    """It has been told to go, or has ended well; it finishes what it runs."""
    FAILED = "Failed"
    """It crashed. It is kept as the record of it until another worker of its kind is ready."""


@dataclass(frozen=True)
class ObservedWorker:
    """A batch/v1 Job with the Pod that it has now.

    Attributes:
        job: The batch/v1 Job.
        pod: Its latest Pod, if there is one.
        idle_since: When the last job left it; None while it has any.
        node_lost_at: When its node is taken for lost, since nobody has told of the Pod's end; None for never.
        node_lost: Whether that moment has passed.
        cut_off_at, given_up_at, cut_off, given_up: When :mod:`.cut_off` has it so, None for never; whether it is so.
        warning: What the last Warning Event says of its Job or Pod while no container of it runs; empty without one.
        progress_at: When its start was last seen to make progress; None where it does not start, or waits for a node.
    """

    job: BatchJob
    pod: Pod | None
    idle_since: dt.datetime | None = None
    node_lost_at: dt.datetime | None = None
    node_lost: bool = False
    cut_off_at: dt.datetime | None = None
    given_up_at: dt.datetime | None = None
    cut_off: bool = False
    given_up: bool = False
    warning: str = ""
    progress_at: dt.datetime | None = None

    @property
    def name(self) -> str:
        """Name of the batch/v1 Job."""
        return self.job.metadata.name

    @property
    def template_hash(self) -> str:
        """Hash of the template that it was made from."""
        return self.job.metadata.labels.get(meta.TEMPLATE_HASH_LABEL, "")

    @cached_property
    def state(self) -> WorkerState:
        """What it can be used for; found once, as a pass asks for it many times."""
        if self.job.metadata.deletion_timestamp is not None or self.job.complete or self.lost:
            return WorkerState.GOING
        if self.job.failure is not None or (self.pod is not None and self.pod.outcome == "Failed"):
            # The Pod is known to have failed a moment before its Job is; a disrupted one is replaced by its Job.
            disrupted = self.job.failure is None and self.pod is not None and self.pod.disrupted
            return WorkerState.STARTING if disrupted else WorkerState.FAILED
        if self.job.spec.suspend:
            return WorkerState.QUEUED
        if self.pod is not None and (self.pod.terminating or self.pod.outcome == "Succeeded"):
            # Told to go by somebody else (a drain): its Job says nothing of that before the Pod has ended.
            return WorkerState.GOING
        if self.cut_off:
            return WorkerState.CUT_OFF
        return WorkerState.READY if self.pod is not None and self.pod.ready else WorkerState.STARTING

    @property
    def lost(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.node_lost or self.given_up

    @property
    def unscheduled(self) -> str:
        """Why no node takes its Pod; empty when one did, or none was asked yet."""
        return self.pod.unschedulable if self.pod is not None else ""

    @property
    def blocked(self) -> str:
        """What keeps its Pod from being created, or its container from being started; empty where nothing is known."""
        if self.pod is None:
            return self.warning
        return self.pod.blocked or (self.warning if self.pod.status.phase == "Pending" else "")

    @property
    def awaits_node(self) -> bool:
        """Whether no node has taken it yet: Kueue holds it, its Pod is not created, or no node has room for that."""
        if self.state is WorkerState.STARTING:
            return self.pod is None or bool(self.unscheduled)
        return self.state is WorkerState.QUEUED

    @property
    def between_pods(self) -> bool:
        """Whether the platform ended its Pod (a drain cut it short), and its Job has not made the next one yet."""
        return self.state is WorkerState.STARTING and self.pod is not None and self.pod.finished

    @property
    def told_to_terminate(self) -> bool:
        """Whether it was told to go (drained, preempted, deleted), so that its end is not its death.

        An eviction by its own node is none of these: the memory or disk that the node lacked may be what a job took.
        """
        if self.pod is None or self.job.complete:
            return self.job.complete
        told = self.pod.terminating or self.pod.disrupted
        # It ends well only when it is told to end.
        return self.pod.outcome == "Succeeded" or (told and self.pod.status.reason != "Evicted")

    @property
    def failed_at(self) -> dt.datetime | None:
        """When it failed, as its Job says."""
        return self.job.failure.last_transition_time if self.job.failure is not None else None

    @property
    def bad_model(self) -> str | None:
        """What the worker said of a model that cannot be loaded; None when that is not why it ended."""
        ended = self.pod.terminated if self.pod is not None else None
        if ended is not None and ended.exit_code in {BAD_MODEL_EXIT_CODE, REFUSED_MODEL_EXIT_CODE}:
            return ended.message.strip() or "the worker gave no reason; see its log"
        if ended is None and self.job.failure is not None and self.job.failure.reason == "PodFailurePolicy":
            return self.job.failure.message
        return None

    @property
    def doubtful(self) -> bool:
        """Whether another worker has to find the same before the model counts as bad: a service refused it."""
        ended = self.pod.terminated if self.pod is not None else None
        return ended is not None and ended.exit_code == REFUSED_MODEL_EXIT_CODE

    @property
    def crash(self) -> str:
        """How it ended, in words, for people."""
        ended = self.pod.terminated if self.pod is not None else None
        if ended is not None:
            how = ended.how
            start = self.pod.engine_ready if self.pod is not None else None
            if start is not None and start.status == ConditionStatus.FALSE:
                how += f" (its start had come to {start.reason[:LONGEST_REASON]})"
            return how
        if self.pod is not None and (before := first_failure(self.pod.status.init_container_statuses)):
            return before
        return self.job.failure.message if self.job.failure is not None else "its Pod is gone"
