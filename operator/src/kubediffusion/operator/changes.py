"""What the store tells the loop: which jobs and namespaces have changed, and at which objects it failed."""

from __future__ import annotations

from dataclasses import dataclass, field

from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.objects import KubernetesObject


@dataclass(frozen=True)
class JobChange:
    """The change of a GenerationJob.

    Attributes:
        uid: Its uid.
        before: The unfinished job that was known; None where none was.
        after: The job now; None when it is gone.
    """

    uid: str
    before: GenerationJob | None
    after: GenerationJob | None


@dataclass(frozen=True)
class ObservationError:
    """An object at which the store failed, by a defect; it stays as it was known before.

    Attributes:
        item: The object.
        error: What was raised.
    """

    item: KubernetesObject
    error: Exception


@dataclass(frozen=True)
class Changes:
    """What has changed since the loop last asked.

    Attributes:
        namespaces: Names of the namespaces in which something did, in the order in which it did.
        jobs: Changes of jobs, in their order.
        deleted_models: DiffusionModels that are gone.
        deleted_adapters: LoRAAdapters that are gone.
        errors: Objects that could not be taken in.
    """

    namespaces: dict[str, None] = field(default_factory=dict)
    jobs: list[JobChange] = field(default_factory=list)
    deleted_models: list[DiffusionModel] = field(default_factory=list)
    deleted_adapters: list[LoRAAdapter] = field(default_factory=list)
    errors: list[ObservationError] = field(default_factory=list)
