"""Conditions of status, and every reason that one can carry.

The type follows ``metav1.Condition``: https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kubediffusion.resources import meta
from kubediffusion.resources.schema import Schema, Time
from kubediffusion.resources.texts import MAX_MESSAGE, MAX_REASON, cut_to


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class JobConditionType(StrEnum):
    """Condition types of a GenerationJob."""

    SCHEDULED = "Scheduled"
    """False with the reason while the job waits; True once a worker has it."""
    UPLOADED = "Uploaded"
    """False while storage refuses the finished images and the worker tries again."""
    COMPLETE = "Complete"
    FAILED = "Failed"


class ModelConditionType(StrEnum):
    """Condition types of a DiffusionModel."""

    AVAILABLE = "Available"


class AdapterConditionType(StrEnum):
    """Condition types of a LoRAAdapter."""

    READY = "Ready"
    """True while a worker of its model holds it; False with the reason where none does."""


class PodConditionType(StrEnum):
    """Condition types of a worker's Pod that are ours: its node keeps what it does not know, as for readiness gates."""

    ENGINE_READY = f"{meta.GROUP}/EngineReady"
    """How far the worker's start has come; written by the worker itself."""
    PIPELINE_KNOWN = f"{meta.GROUP}/PipelineKnown"
    """What the worker knows of the pipeline that it has loaded: its class as the reason, PipelineFacts as JSON in the
    message. Written by the worker itself."""
    ADAPTERS_KNOWN = f"{meta.GROUP}/AdaptersKnown"
    """Which adapters the worker holds and which it refuses: JSON of adapters.reports_to_json in the message. Written by
    the worker itself."""


class EngineReason(StrEnum):
    """Where a worker's start stands: False with the first four, in this order, then True with one of the last two."""

    IMPORTING = "Importing"
    """PyTorch and diffusers are imported."""
    FETCHING_MODEL = "FetchingModel"
    """The model's files are brought to the worker, or looked through where they are there."""
    LOADING_WEIGHTS = "LoadingWeights"
    """The weights go to the device."""
    WARMING_UP = "WarmingUp"
    """The weights are on the device, and the first image is made."""
    COMPILING = "Compiling"
    """The worker takes jobs, and compiles in the background."""
    READY = "Ready"
    """The worker takes jobs, and compiles nothing."""


class WaitingReason(StrEnum):
    """Why a job is not bound to a worker yet: the answer to "why is it waiting?"."""

    SUSPENDED = "Suspended"
    """``spec.suspend`` is true."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """No DiffusionModel of that name (or no default one) exists yet."""
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    """No LoRAAdapter of a name that the job asks for exists yet."""
    WORKER_STARTING = "WorkerStarting"
    """A worker is loading the model."""
    WORKER_CANNOT_START = "WorkerCannotStart"
    """A worker's container cannot be started, for example for its image or a Secret that is missing."""
    WORKERS_BUSY = "WorkersBusy"
    """Every worker has its fill and maxReplicas is reached."""
    WORKER_UNSCHEDULABLE = "WorkerUnschedulable"
    """A worker Pod finds no node, for example because no GPU is free."""
    WORKER_REFUSED = "WorkerRefused"
    """The API server does not take the worker's Job, for example for a quota or a wrong toleration."""
    WORKER_QUEUED = "WorkerQueued"
    """The worker Job is suspended until Kueue admits it."""
    WORKER_CUT_OFF = "WorkerCutOff"
    """The workers that hold the model are not ready any more, as those that do not hear the API server."""
    WORKER_BACK_OFF = "WorkerBackOff"
    """Workers of this model crashed; the next one starts after a pause."""
    INTERNAL_ERROR = "InternalError"
    """The operator failed at this job, by a defect; it tries again after a pause, and its log has the traceback."""
    RETRYING = "Retrying"
    """The worker was lost while it had this job; it is bound again."""


class JobReason(StrEnum):
    """What else a job's conditions carry, beside a :class:`WaitingReason` and the error code of a failed job."""

    BOUND = "Bound"
    """A job that had to wait has a worker (Scheduled is True)."""
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    """Storage refuses a finished image, or does not give an input, and the worker tries again (Uploaded is False)."""
    IMAGES_UPLOADED = "ImagesUploaded"
    """Every image is in storage (Complete is True; Uploaded as well, after an outage)."""
    CANCELLED = "Cancelled"
    """The job was cancelled or deleted before it finished (Failed is True)."""


class ModelReason(StrEnum):
    """Why a DiffusionModel is available, or is not."""

    READY = "Ready"
    """At least one worker holds the model."""
    SCALED_TO_ZERO = "ScaledToZero"
    """It has been loaded before; the next job starts a worker."""
    NOT_YET_LOADED = "NotYetLoaded"
    """No worker has loaded this generation of the spec so far (status Unknown)."""
    LOAD_FAILED = "LoadFailed"
    """The pipeline cannot be loaded from its source; correct the spec."""
    WORKER_FAILED = "WorkerFailed"
    """Workers crash before they are ready; tried again after a pause."""
    WORKER_CANNOT_START = "WorkerCannotStart"
    """No worker has loaded this spec so far, and the container of the one that should cannot be started."""
    INTERNAL_ERROR = "InternalError"
    """The operator failed at this model, by a defect (status Unknown); it tries again after a pause."""


class AdapterReason(StrEnum):
    """Why a LoRAAdapter is ready, or is not."""

    LOADED = "Loaded"
    """At least one worker holds it."""
    NOT_LOADED = "NotLoaded"
    """No worker holds it now; the next job that names it has one load it."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """No DiffusionModel of that name exists."""
    FETCH_FAILED = "FetchFailed"
    """The source could not be read for now; tried again with the next job that names it."""
    SOURCE_NOT_FOUND = "SourceNotFound"
    """There is no such file in its source, or its source is nothing that the model's workers can read."""
    NOT_SAFETENSORS = "NotSafetensors"
    """The file is no safetensors file."""
    UNKNOWN_KEYS = "UnknownKeys"
    """The file has weights that are not an adapter's, or of layers that cannot take one."""
    WRONG_BASE_MODEL = "WrongBaseModel"
    """Its layers have other shapes than the model's: it was trained for another."""
    RANK_TOO_LARGE = "RankTooLarge"
    """Its rank is above what the model's workers take."""
    NOT_SUPPORTED = "NotSupported"
    """The model's pipeline takes no adapters."""


REFUSED_ADAPTER = frozenset(AdapterReason) - {
    AdapterReason.LOADED,
    AdapterReason.NOT_LOADED,
    AdapterReason.MODEL_NOT_FOUND,
    AdapterReason.FETCH_FAILED,
    AdapterReason.SOURCE_NOT_FOUND,
}
"""Reasons that stay until adapter or model are changed: a job that names such an adapter fails before a worker has it.
The others lie elsewhere, and may pass."""


class Condition(Schema):
    """One condition, in the shape of ``metav1.Condition``."""

    type: Annotated[str, Field(max_length=316), cut_to(316)]
    """What it speaks of."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    reason: Annotated[str, Field(max_length=MAX_REASON), cut_to(MAX_REASON)]
    """Why, as one word for programs."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE), cut_to(MAX_MESSAGE)] = ""
    """Why, for people."""
    last_transition_time: Time
    """When status last changed."""
    observed_generation: int | None = None
    """The generation of the spec that it speaks of."""


def find_condition(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """Return the condition of a type; None where there is none."""
    return next((condition for condition in conditions if condition.type == kind), None)


def with_condition(
    conditions: tuple[Condition, ...],
    kind: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    now: dt.datetime,
    observed_generation: int | None = None,
) -> tuple[Condition, ...]:
    """Set one condition and return all; the very same tuple when nothing changed, so that nobody writes it.

    ``lastTransitionTime`` moves only when ``status`` does, as the API conventions ask.
    """
    old = find_condition(conditions, kind)
    new = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=now,
        observed_generation=observed_generation,
    )
    if old is None:
        return (*conditions, new)
    # Compared as they are built, so that a message which was cut is not written again and again.
    if (old.status, old.reason, old.message) == (new.status, new.reason, new.message) and (
        observed_generation is None or old.observed_generation == observed_generation
    ):
        return conditions
    if old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    return tuple(new if condition.type == new.type else condition for condition in conditions)
