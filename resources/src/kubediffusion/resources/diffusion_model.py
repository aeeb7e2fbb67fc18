"""DiffusionModel: what to load and how to run it."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from kubediffusion.resources import meta
from kubediffusion.resources.conditions import Condition, ConditionStatus, ModelConditionType, find_condition
from kubediffusion.resources.generation_job import (
    MAX_IMAGES,
    MAX_SIZE,
    MAX_STEPS,
    Acceleration,
    Guidance,
    NegativePrompt,
    Scheduler,
    Size,
    Steps,
)
from kubediffusion.resources.model_source import ModelComponent, ModelSource, Quantization
from kubediffusion.resources.objects import CustomResource
from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.resources.schema import Schema, Time
from kubediffusion.resources.texts import MAX_NOTE, MAX_REASON, cut_to
from kubediffusion.resources.worker_settings import WorkerSettings


class TorchDtype(StrEnum):
    """In which numbers the weights are held."""

    AUTO = "auto"
    """On CUDA the 16-bit numbers that the weights are stored in, else those that suit the family; float32 on a CPU."""
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Measure(StrEnum):
    """Whether something is done that saves the device's memory and costs time."""

    AUTO = "Auto"
    """Where the model does not fit otherwise."""
    ALWAYS = "Always"
    NEVER = "Never"


class MemorySettings(Schema):
    """What is done where the device's memory is short, in this order; a model that does not fit then is refused."""

    text_encoder_offload: Measure = Measure.AUTO
    """Text encoders stay in main memory, and come to the device layer by layer when a prompt is encoded."""
    vae_tiling: Measure = Measure.AUTO
    """Images are decoded in tiles, which are blended where they meet: pixels differ a little."""
    group_offload: Measure = Measure.AUTO
    """The denoiser's blocks stay in main memory, and come to the device one after the other in each step."""
    device_mib: Annotated[int, Field(ge=1)] | None = None
    """MiB of the device's memory that the model may take, as of a device that is shared; what is free when absent."""


class CompileCacheVolume(Schema):
    """A folder on a PersistentVolumeClaim, mounted read-write: ReadWriteMany where workers run on several nodes."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253)]
    """The PersistentVolumeClaim. It must let workers write: with a ReadOnlyMany one their Pods do not start, or they
    keep nothing, as its driver has it. The claim of the source, named here too, is mounted read-write."""
    path: Annotated[str, Field(max_length=1024)] = ""
    """Folder within the volume; the root when empty."""


class CompileCacheBucket(Schema):
    """A folder in S3-compatible storage, read and written with the worker's own credentials."""

    uri: Annotated[str, Field(pattern=r"^s3://[^/]+/.+$", max_length=1024)]
    """Where the folder lies: s3://bucket/folder."""


class CompileCache(Schema):
    """Where compiled code outlives the worker that made it: exactly one of these.

    Whoever may write there runs code in the workers that read it.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.s3) != has(self.persistentVolumeClaim)",
                    "message": "exactly one of s3 and persistentVolumeClaim must be set",
                }
            ]
        }
    )

    s3: CompileCacheBucket | None = None
    persistent_volume_claim: CompileCacheVolume | None = None


class JobDefaults(Schema):
    """What a job gets that does not say otherwise."""

    num_inference_steps: Steps | None = None
    """Denoising steps; the pipeline's own when absent (50 for Stable Diffusion), or the limit where that is lower."""
    guidance_scale: Guidance | None = None
    """Guidance scale; the pipeline's own when absent (7.5 for Stable Diffusion)."""
    negative_prompt: NegativePrompt | None = None
    """What images should not show."""
    width: Size | None = None
    """Pixels; the model's own size when absent."""
    height: Size | None = None
    """Pixels; the model's own size when absent."""
    scheduler: Scheduler | None = None
    """Noise scheduler, a diffusers class; the model's own when absent."""
    prompt_weighting: bool | None = None
    """Whether weights in prompts are heeded, and long ones encoded in parts; false when absent."""
    acceleration: Acceleration | None = None
    """Speed for quality; none when absent. A job that has its own takes nothing of this one."""


class JobLimits(Schema):
    """The most that one job may ask for."""

    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 150
    """Denoising steps; 150 when absent."""
    width: Annotated[int, Field(ge=64, le=MAX_SIZE)] = 1024
    """Pixels; 1024 when absent."""
    height: Annotated[int, Field(ge=64, le=MAX_SIZE)] = 1024
    """Pixels; 1024 when absent."""
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 4
    """Images of one job; 4 when absent."""


def _default_within_limit(field: str) -> JsonDict:
    name, ordinary = JobLimits.model_fields[field].alias, JobLimits.model_fields[field].default
    return {
        "rule": f"self.?defaults.?{name}.orValue(1) <= self.?limits.?{name}.orValue({ordinary})",
        "message": f"defaults.{name} must not exceed limits.{name}, which is {ordinary} when absent",
    }


class DiffusionModelSpec(Schema):
    """What to load and how to run it. A change of the source or of the worker Pod replaces the workers."""

    model_config = ConfigDict(
        json_schema_extra={
            # A default that jobs may not ask for themselves would be run by every job that asks for nothing.
            "x-kubernetes-validations": [
                *(_default_within_limit(field) for field in ("num_inference_steps", "width", "height")),
                {
                    "rule": "!has(self.compileCache) || self.?compile.orValue(false)",
                    "message": (
                        "compileCache has nothing to keep while nothing is compiled: set compile to true, "
                        "or remove compileCache"
                    ),
                },
            ]
        }
    )

    source: ModelSource
    components: Annotated[
        tuple[ModelComponent, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """Components that come from elsewhere, or are held in other numbers: another VAE, a transformer in GGUF, a text
    encoder in float8."""
    torch_dtype: TorchDtype = TorchDtype.AUTO
    quantization: Quantization = Quantization.NONE
    """In how few bits the denoiser's weights are held. A repository that is stored so names its method here, too."""
    memory: MemorySettings = MemorySettings()
    """What is done where the device's memory is short."""
    safety_checker: bool = False
    """Run the pipeline's own safety checker: a flagged image is blanked and marked."""
    use_safetensors: bool = True
    """Refuse weights in any other format: pickled weights can run code. False allows them."""
    trust_remote_code: bool = False
    """Allow the repository's own Python code to run in the worker."""
    compile: bool = False
    """Compile the denoiser, and the decoder where it runs apart, with torch.compile."""
    compile_cache: CompileCache | None = None
    """Keep what was compiled for workers to come. Without it each worker compiles anew, for minutes."""
    defaults: JobDefaults = JobDefaults()
    limits: JobLimits = JobLimits()
    workers: WorkerSettings = WorkerSettings()
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Time to live of jobs of this model that name none; by default what the installation has, 24 hours."""


MAX_STARTS = 8
"""Starts that a model's status tells of at most: the others differ little from these."""


class WorkerStart(Schema):
    """How far the start of one worker has come."""

    worker: Annotated[str, Field(max_length=253), cut_to(253)]
    """Its Pod; its Job while that has no Pod."""
    reason: Annotated[str, Field(max_length=MAX_REASON), cut_to(MAX_REASON)]
    """Where it stands, for programs: Importing, FetchingModel, LoadingWeights, WarmingUp, Compiling; or what keeps its
    Pod from starting, as in a waiting job's condition."""
    message: Annotated[str, Field(max_length=MAX_NOTE), cut_to(MAX_NOTE)] = ""
    """Where it stands, for people."""
    since: Time
    """When it came there, as the operator saw it."""


class WorkerCounts(Schema):
    """Workers by what they do."""

    ready: int = 0
    """Workers that hold the model."""
    busy: int = 0
    """Those of them that run jobs."""
    starting: int = 0
    """Workers that are not ready yet."""
    starts: tuple[WorkerStart, ...] = ()
    """How far they have come, the oldest first; then those that are ready and still compile. The first 8 are named."""


class DiffusionModelStatus(Schema):
    """What the operator observes of the model. Counts are refreshed at most once a second."""

    conditions: tuple[Condition, ...] = ()
    """Available says whether the model can be used."""
    workers: WorkerCounts = WorkerCounts()
    """Workers by what they do."""
    queued: int = 0
    """Jobs that wait for a worker."""
    revision: str | None = None
    """The revision that was loaded last, as the workers report it."""
    pipeline: PipelineFacts | None = None
    """What is known of the model's pipeline, as the worker reported that loaded it last."""
    selector: str | None = None
    """Label selector of the model's worker Pods, for the scale subresource."""
    template_hash: str | None = None
    """Names the worker template that this status speaks of."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""


class DiffusionModel(CustomResource[DiffusionModelSpec, DiffusionModelStatus]):
    """A diffusion model that GenerationJobs of its namespace can use."""

    model_config = ConfigDict(title="DiffusionModel")

    KIND: ClassVar[str] = "DiffusionModel"
    PLURAL: ClassVar[str] = meta.DIFFUSION_MODELS

    kind: str = KIND
    status: DiffusionModelStatus = DiffusionModelStatus()

    @property
    def is_default(self) -> bool:
        """Whether jobs without ``spec.model`` use this one."""
        return self.metadata.annotations.get(meta.DEFAULT_MODEL_ANNOTATION) == "true"

    @property
    def pipeline(self) -> PipelineFacts | None:
        """What is known of the pipeline; None while the status speaks of an earlier spec, or nobody has loaded it."""
        return self.status.pipeline if self.status.observed_generation == self.metadata.generation else None

    def with_pipeline(self, facts: PipelineFacts | None) -> Self:
        """Return the model with what is known of its pipeline now."""
        known = {"pipeline": facts, "observed_generation": self.metadata.generation}
        return self.model_copy(update={"status": self.status.model_copy(update=known)})

    @property
    def unavailable(self) -> Condition | None:
        """The condition that says why the model cannot be used, or None while it may be.

        A model that no worker has loaded yet is not unavailable: the first job is what loads it.
        """
        condition = find_condition(self.status.conditions, ModelConditionType.AVAILABLE)
        return condition if condition is not None and condition.status == ConditionStatus.FALSE else None


def choose_model(models: dict[str, DiffusionModel], name: str | None) -> DiffusionModel | None:
    """Return the model of a job: the named one, or the default; None where there is none.

    Of several with the default annotation the newest is the default, of equally old ones the first by name, as
    Kubernetes chooses among storage classes.

    Args:
        models: DiffusionModels of the job's namespace by name.
        name: ``spec.model`` of the job.
    """
    if name is not None:
        return models.get(name)
    defaults = [model for model in models.values() if model.is_default]
    return min(defaults, key=lambda m: (-_seconds(m.metadata.creation_timestamp), m.name), default=None)


def _seconds(moment: dt.datetime | None) -> float:
    return moment.timestamp() if moment is not None else 0.0
