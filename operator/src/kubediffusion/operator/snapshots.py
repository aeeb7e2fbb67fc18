"""What a pass decides from, and what it returns: snapshots of a namespace and a model, options, a decision. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kubediffusion.operator.actions import Action
from kubediffusion.operator.workers import ObservedWorker, WorkerState
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.resources.queue_order import QueueKey, queue_key

LIVE = frozenset({WorkerState.QUEUED, WorkerState.STARTING, WorkerState.READY})
"""States of a worker that takes jobs, or will once it has started."""

NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)
"""Where a moment is not known yet: after all others."""


def order_key(job: GenerationJob) -> QueueKey[dt.datetime]:
    """Return the key by which a queue is sorted."""
    return queue_key(job.spec.priority, job.metadata.creation_timestamp or NEVER, job.name)


@dataclass(frozen=True)
class SchedulerOptions:
    """Settings of the scheduler.

    Attributes:
        batches_ahead: Batches bound to a worker at most.
        explain_after: How long a job waits before it says why.
        model_grace: How long a job waits for a model that does not exist.
    """

    batches_ahead: int = 2
    explain_after: dt.timedelta = dt.timedelta(seconds=1)
    model_grace: dt.timedelta = dt.timedelta(seconds=30)


@dataclass(frozen=True)
class JobWithoutModel:
    """An unfinished job whose model does not exist.

    Attributes:
        job: The job.
        missing_since: When the model was first missed.
    """

    job: GenerationJob
    missing_since: dt.datetime


@dataclass(frozen=True)
class JobWithoutAdapter:
    """An unfinished job that names an adapter which does not exist.

    Attributes:
        job: The job.
        adapter: Name of the adapter.
        missing_since: When the adapter was first missed.
    """

    job: GenerationJob
    adapter: str
    missing_since: dt.datetime


@dataclass(frozen=True)
class NamespaceSnapshot:
    """The jobs of a namespace that are in no model's queue.

    Attributes:
        name: Name of the namespace.
        models: Names of its DiffusionModels.
        jobs_without_model: Jobs whose model does not exist.
        suspended_jobs: Jobs that are suspended and not bound, and whose status does not say so yet.
        adapters: Names of its LoRAAdapters.
        jobs_without_adapter: Jobs that wait for an adapter which does not exist.
    """

    name: str
    models: tuple[str, ...] = ()
    jobs_without_model: tuple[JobWithoutModel, ...] = ()
    suspended_jobs: tuple[GenerationJob, ...] = ()
    adapters: tuple[str, ...] = ()
    jobs_without_adapter: tuple[JobWithoutAdapter, ...] = ()


@dataclass(frozen=True)
class ModelSnapshot:
    """What is observed of one model and its workers, for a decision.

    Attributes:
        model: The model.
        template_hash: Hash of the worker template that its workers are made from.
        waiting: Jobs that wait for it, in order of :func:`order_key`. Read lazily: a pass looks at as many as it binds.
        waiting_count: How many those are.
        waiting_slots: The places of a batch that they take.
        workers: All its workers, of any template.
        bound: Jobs that workers have, by the name of the Pod.
        jobs_at_end: How many jobs a Pod that has ended had at its end, by its name: some may be taken back by now.
        refusal: Why the API server does not take a new worker's Job; empty while it does.
        untried_hash: Hash of the template that its spec gives, while it is not known that the API server takes it;
            no worker is created meanwhile. Empty once it is known.
        adapters: LoRAAdapters of the namespace by name.
    """

    model: DiffusionModel
    template_hash: str
    waiting: Iterable[GenerationJob] = ()
    waiting_count: int = 0
    waiting_slots: int = 0
    workers: tuple[ObservedWorker, ...] = ()
    bound: Mapping[str, tuple[GenerationJob, ...]] = field(default_factory=dict)
    jobs_at_end: Mapping[str, int] = field(default_factory=dict)
    refusal: str = ""
    untried_hash: str = ""
    adapters: Mapping[str, LoRAAdapter] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Images that a worker runs together."""
        return self.model.spec.workers.max_batch_size

    def current(self, *states: WorkerState) -> list[ObservedWorker]:
        """Return the workers of today's template that are in one of the states."""
        return [w for w in self.workers if w.template_hash == self.template_hash and w.state in states]

    @property
    def pipeline(self) -> PipelineFacts | None:
        """What workers of today's template know of the pipeline, or knew last; None where none has said so far."""
        told = [w.pod.pipeline for w in self.current(*LIVE) if w.pod is not None and w.pod.pipeline is not None]
        status = self.model.status
        kept = status.pipeline if status.template_hash == self.template_hash else None
        return told[-1] if told else kept

    @property
    def informed_model(self) -> DiffusionModel:
        """The model with what is known of its pipeline now: its status may say so a second later."""
        return self.model if self.model.pipeline == self.pipeline else self.model.with_pipeline(self.pipeline)

    @property
    def loading(self) -> list[ObservedWorker]:
        """The workers of today's template that start, and with nothing known to be in their way."""
        starting = self.current(WorkerState.STARTING)
        return [w for w in starting if not (w.unscheduled or w.blocked)]

    @property
    def replicas(self) -> list[ObservedWorker]:
        """The workers that count against ``maxReplicas``, of any template.

        One that is going holds its GPU until its Pod has ended, or its node is lost.
        """
        return [w for w in self.workers if w.state in LIVE or (w.pod is not None and not w.pod.finished and not w.lost)]

    @property
    def crashes(self) -> list[ObservedWorker]:
        """The failed workers of today's template that say nothing of the model, the latest last."""
        return [w for w in self.failures if w.bad_model is None]

    @property
    def failures(self) -> list[ObservedWorker]:
        """The failed workers of today's template, the latest last."""
        failed = self.current(WorkerState.FAILED)
        # What its Job does not say yet has just happened.
        return sorted(failed, key=lambda w: (w.failed_at or NEVER, w.name))

    def slots(self, job: GenerationJob) -> int:
        """Return the places of a batch that a job takes: one that has more images runs in several, of one worker."""
        return min(job.spec.num_images or 1, self.batch)

    def load(self, worker: ObservedWorker) -> int:
        """Return the places that a worker's jobs take."""
        return sum(map(self.slots, self.jobs_of(worker)))

    def jobs_of(self, worker: ObservedWorker) -> tuple[GenerationJob, ...]:
        """Return the jobs that are bound to a worker."""
        return self.bound.get(worker.pod.metadata.name, ()) if worker.pod is not None else ()


@dataclass(frozen=True)
class Decision:
    """What to do now, and when to decide again.

    Attributes:
        actions: What to do, in this order.
        recheck_at: When to decide again if nothing changes before; None where only a change asks for it.
    """

    actions: tuple[Action, ...]
    recheck_at: dt.datetime | None = None
