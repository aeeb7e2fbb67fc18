"""What a pass can decide to do. Plain values: the scheduler returns them, :mod:`.executor` carries them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelStatus
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.lora_adapter import LoRAAdapter, LoRAAdapterStatus


@dataclass(frozen=True)
class Bind:
    """Bind a job to a worker's Pod. Costs one status write.

    Attributes:
        job: As it was seen.
        model: The model that it runs on, whose defaults are resolved now.
        pod: Name of the Pod.
        costs_retry: Whether the attempt before counts against ``backoffLimit``.
        suspect_group_size: Among how many jobs it is suspected to make its worker die; 0 when it is not.
        adapters: The LoRAAdapters that it names, by name, whose scales are resolved now.
    """

    job: GenerationJob
    model: DiffusionModel
    pod: str
    costs_retry: bool = False
    suspect_group_size: int = 0
    adapters: Mapping[str, LoRAAdapter] = field(default_factory=dict)


@dataclass(frozen=True)
class Requeue:
    """Take a job from a worker back to the queue. Costs one status write."""

    job: GenerationJob
    costs_retry: bool
    reason: str
    message: str
    suspect_group_size: int = 0


@dataclass(frozen=True)
class Finish:
    """End a job as Failed or Cancelled. Costs one status write."""

    job: GenerationJob
    phase: Phase
    code: ErrorCode | None
    message: str
    costs_retry: bool = False


@dataclass(frozen=True)
class Explain:
    """Say why a job waits, in its Scheduled condition. Costs one status write."""

    job: GenerationJob
    reason: str
    message: str


@dataclass(frozen=True)
class HoldImages:
    """Put the finalizer on a job whose images go with it, before it can have any. Costs one write."""

    job: GenerationJob


@dataclass(frozen=True)
class SetAside:
    """Keep a job at which a decision failed out of its queue, until it is tried again. Costs one status write.

    Attributes:
        job: As it was seen.
        error: What was raised.
    """

    job: GenerationJob
    error: Exception


@dataclass(frozen=True)
class _OfModel:
    """What concerns one model."""

    model: DiffusionModel

    @property
    def namespace(self) -> str:
        """The namespace that the action concerns."""
        return self.model.metadata.namespace


@dataclass(frozen=True)
class CreateWorker(_OfModel):
    """Create a worker's batch/v1 Job. Costs one write; that it exists already is success."""

    template_hash: str
    ordinal: int


@dataclass(frozen=True)
class TryWorker(_OfModel):
    """Ask the API server whether it takes a worker's batch/v1 Job, without creating it. Costs one request, no write."""

    template_hash: str


@dataclass(frozen=True)
class DeleteWorker:
    """Delete a worker's batch/v1 Job, and with it its Pod. Costs one write."""

    namespace: str
    name: str
    uid: str
    reason: str


@dataclass(frozen=True)
class DeletePod(_OfModel):
    """Delete the Pod of a worker that is of no more use, so that its Job ends. Costs one write.

    Attributes:
        model: The model that it serves, which an Event tells why.
        name: Name of the Pod.
        uid: Uid of the Pod.
        crash: How its worker ended, while other containers of it run on; None where it has not ended.
        stalled_seconds: For how long its start has made no progress; None where it has ended.
    """

    name: str
    uid: str
    crash: str | None = None
    stalled_seconds: int | None = None


@dataclass(frozen=True)
class ReportModel(_OfModel):
    """Write a model's status. Costs one status write, at most one a second a model."""

    status: DiffusionModelStatus


@dataclass(frozen=True)
class ReportAdapter:
    """Write an adapter's status. Costs one status write, at most one a second an adapter."""

    adapter: LoRAAdapter
    status: LoRAAdapterStatus

    @property
    def namespace(self) -> str:
        """The namespace that the write concerns."""
        return self.adapter.metadata.namespace


JobAction = Bind | Requeue | Finish | Explain | HoldImages | SetAside
WorkerAction = CreateWorker | TryWorker | DeleteWorker | DeletePod | ReportModel | ReportAdapter
Action = JobAction | WorkerAction
