"""LoRAAdapter: low-rank changes to a model's weights, which jobs name beside a prompt."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from kubediffusion.resources import meta
from kubediffusion.resources.adapters import DEFAULT_SCALE, AdapterScale, Digest, Rank
from kubediffusion.resources.conditions import (
    REFUSED_ADAPTER,
    AdapterConditionType,
    Condition,
    ConditionStatus,
    find_condition,
)
from kubediffusion.resources.generation_job import ModelName
from kubediffusion.resources.model_source import (
    ONE_LOCATION,
    SAFETENSORS_FILE,
    HubRepository,
    PersistentVolumeClaimSource,
    S3Source,
)
from kubediffusion.resources.objects import CustomResource
from kubediffusion.resources.schema import Schema
from kubediffusion.resources.texts import cut_to

MAX_TRIGGER_WORDS = 16
MAX_HOLDERS = 8
"""Workers that an adapter's status names at most."""
SHORT_DIGEST = 12
"""Characters of a digest that tell two adapters apart in a table."""


class AdapterSource(Schema):
    """Where the adapter's weights lie: exactly one of the four places.

    It has no credentials of its own: a worker reads it with what its model's workers have, which are the token of the
    model's source, their S3 credentials and the volumes that they mount.
    """

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [ONE_LOCATION]})

    hugging_face: HubRepository | None = None
    """A repository of the Hugging Face Hub, read with the token of the model's source, if that has one."""
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """A folder on a PersistentVolumeClaim that the model's workers mount: that of its source, or of a component."""
    s3: S3Source | None = None
    """A folder in S3-compatible storage, read with the worker's own credentials."""
    path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A folder of the worker's image or machine."""
    file: Annotated[str, Field(pattern=SAFETENSORS_FILE, max_length=1024)] | None = None
    """The weights' file, by its path within the source; by default the only safetensors file in the folder, of several
    pytorch_lora_weights.safetensors."""


class LoRAAdapterSpec(Schema):
    """What to load, and for which model."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.model == oldSelf.model",
                    "message": "spec.model cannot be changed: weights fit one model; create another LoRAAdapter",
                    "fieldPath": ".model",
                }
            ]
        }
    )

    model: ModelName
    """The DiffusionModel that it changes, of the same namespace."""
    source: AdapterSource
    scale: AdapterScale = DEFAULT_SCALE
    """How strongly it counts in a job that does not say; 1 when absent."""
    trigger_words: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=MAX_TRIGGER_WORDS)
    ] = ()
    """Words that the adapter was trained with, for people to put into their prompts. Nothing puts them there."""


class LoRAAdapterStatus(Schema):
    """What the operator observes of the adapter, by what the model's workers tell of it."""

    conditions: tuple[Condition, ...] = ()
    """Ready says whether a worker holds it, and why not where it is refused."""
    digest: Digest | None = None
    """SHA-256 of the weights' file, in hexadecimal, as it was loaded last."""
    short_digest: str | None = None
    """The digest's beginning, for kubectl's table: a printer column shows one field whole."""
    rank: Rank | None = None
    """The largest rank of its layers."""
    workers: tuple[Annotated[str, cut_to(253)], ...] = ()
    """Pods of workers that hold it now; the first 8 by name."""
    template_hash: str | None = None
    """Names the worker template of the model that this status speaks of."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""


class LoRAAdapter(CustomResource[LoRAAdapterSpec, LoRAAdapterStatus]):
    """A LoRA adapter of a DiffusionModel that GenerationJobs of its namespace can name."""

    model_config = ConfigDict(title="LoRAAdapter")

    KIND: ClassVar[str] = "LoRAAdapter"
    PLURAL: ClassVar[str] = meta.LORA_ADAPTERS

    kind: str = KIND
    status: LoRAAdapterStatus = LoRAAdapterStatus()

    @property
    def readiness(self) -> Condition | None:
        """The condition Ready; None while the status speaks of an earlier spec, or nobody has said anything."""
        if self.status.observed_generation != self.metadata.generation:
            return None
        return find_condition(self.status.conditions, AdapterConditionType.READY)

    @property
    def refusal(self) -> Condition | None:
        """The condition that says why the model's workers refuse the adapter; None while they do not.

        An adapter that no worker has loaded yet is not refused: the first job that names it is what loads it.
        """
        condition = self.readiness
        if condition is None or condition.status != ConditionStatus.FALSE or condition.reason not in REFUSED_ADAPTER:
            return None
        return condition
