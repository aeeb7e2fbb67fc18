"""GenerationJob: one request for images, from the prompt to where its PNGs lie."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from kubediffusion.resources import meta
from kubediffusion.resources.adapters import Adapters, AppliedAdapter
from kubediffusion.resources.conditions import Condition
from kubediffusion.resources.objects import CustomResource
from kubediffusion.resources.schema import Schema, Time
from kubediffusion.resources.texts import MAX_MESSAGE, MAX_NOTE, MAX_REASON, cut_to
from kubediffusion.resources.webhook import Webhook, WebhookStatus

MAX_PROMPT = 4000
MAX_GUIDANCE = 50.0
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
"""The most steps that any model may allow; DiffusionModel ``spec.limits`` is stricter."""
MAX_SIZE = 4096
MAX_INPUT_PIXELS = 8 * 1024 * 1024
"""Pixels of an image that a job begins from: one takes up to 16 bytes while the API decodes it (WebP), and the chart
gives the API 512 MiB."""
MAX_IMAGES = 16
MAX_WARNINGS = 16
MAX_CACHING_INTERVAL = 20
DEFAULT_STEPS = 50
DEFAULT_GUIDANCE = 7.5
DEFAULT_BACKOFF_LIMIT = 3
DEFAULT_STRENGTH = 0.8


class Phase(StrEnum):
    """Where a job stands. The last three are terminal."""

    PENDING = "Pending"
    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class DeletionPolicy(StrEnum):
    """What becomes of a job's images when the job is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class InputRole(StrEnum):
    """What an image is to a job that takes it as an input."""

    IMAGE = "image"
    """The job begins from it, as far as ``strength`` says."""
    MASK = "mask"
    """White where the image is painted anew, black where its pixels stay."""


class Scheduler(StrEnum):
    """Noise schedulers, by their diffusers class (https://huggingface.co/docs/diffusers/api/schedulers/overview)."""

    DDIM = "DDIMScheduler"
    DPM_SOLVER_MULTISTEP = "DPMSolverMultistepScheduler"
    EULER = "EulerDiscreteScheduler"
    EULER_ANCESTRAL = "EulerAncestralDiscreteScheduler"
    FLOW_MATCH_EULER = "FlowMatchEulerDiscreteScheduler"
    HEUN = "HeunDiscreteScheduler"
    LMS = "LMSDiscreteScheduler"
    PNDM = "PNDMScheduler"
    UNI_PC = "UniPCMultistepScheduler"


ModelName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=meta.MAX_MODEL_NAME)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, json_schema_extra={"format": "int64"})]
Size = Annotated[int, Field(ge=64, le=MAX_SIZE, multiple_of=8)]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
NegativePrompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
CachingInterval = Annotated[int, Field(ge=1, le=MAX_CACHING_INTERVAL)]
InputId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of an input's bytes as they lie in storage. Nothing else names an input: no address, no path."""


class GuidanceInterval(Schema):
    """Guidance at some of the steps only (https://arxiv.org/abs/2404.07724); the others take half the time.

    The whole, 0 to 1, is guidance as usual.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.?start.orValue(0.0) < self.?stop.orValue(1.0)",
                    "message": "start must be below stop; they are 0 and 1 when absent",
                }
            ]
        }
    )

    start: Fraction = 0.0
    """Fraction of the steps before the first with guidance; 0 when absent."""
    stop: Fraction = 1.0
    """Fraction of the steps before the first without guidance again; 1 when absent."""


class FeatureCaching(Schema):
    """The UNet's deep layers at some of the steps only (DeepCache, https://arxiv.org/abs/2312.00858)."""

    interval: CachingInterval
    """At every step of so many the whole UNet is computed, in between its outermost layers; 1 is none."""


class Acceleration(Schema):
    """Speed for quality. What is absent is not done; an empty object is none at all."""

    guidance_interval: GuidanceInterval | None = None
    """Guidance at some of the steps only."""
    feature_caching: FeatureCaching | None = None
    """The UNet's deep layers at some of the steps only."""

    @property
    def effective(self) -> Acceleration | None:
        """The parts that change anything; None when there are none."""
        interval, caching = self.guidance_interval, self.feature_caching
        if interval == GuidanceInterval():
            interval = None
        if caching is not None and caching.interval == 1:
            caching = None
        if interval is None and caching is None:
            return None
        return Acceleration(guidance_interval=interval, feature_caching=caching)


class JobInput(Schema):
    """An image that a job takes as an input. It lies in storage, under the job's namespace."""

    role: InputRole
    """What it is to the job."""
    id: InputId
    """Hash of its bytes, in hexadecimal: what POST /v1/inputs answered."""


Inputs = Annotated[
    tuple[JobInput, ...],
    Field(min_length=1, max_length=len(InputRole)),
]
"""Inputs, of each role one at most."""


class GenerationJobSpec(Schema):
    """What to generate. ``prompt`` alone is enough: the DiffusionModel's defaults fill the rest."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset({"cancel", "suspend", "priority", "ttl_seconds_after_finished"})
    """The fields that may change after creation; CEL refuses a change of any other."""

    model: ModelName | None = None
    """The DiffusionModel to use; by default the one annotated kubediffusion.io/is-default, of several the newest."""
    prompt: Prompt
    """What the image shows. What exceeds the text encoder's length is cut, and status.warnings says so."""
    negative_prompt: NegativePrompt | None = None
    """What the image should not show."""
    num_inference_steps: Steps | None = None
    """Denoising steps; by default the model's, 50 for Stable Diffusion."""
    guidance_scale: Guidance | None = None
    """Guidance scale; by default the model's, 7.5 for Stable Diffusion."""
    seed: Seed | None = None
    """Noise seed of the first image; image n uses seed + n. Drawn once and kept through retries when absent."""
    width: Size | None = None
    """Pixels; by default the model's own size."""
    height: Size | None = None
    """Pixels; by default the model's own size."""
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    """Images to generate; by default 1."""
    scheduler: Scheduler | None = None
    """Noise scheduler, a diffusers class; by default the model's own."""
    prompt_weighting: bool | None = None
    """Heed weights in the prompts, such as (word:1.3), (word) and [word], and encode prompts that are longer than the
    text encoder takes in parts; for Stable Diffusion 1, 2 and XL. By default the model's, else the prompts are taken as
    they are."""
    acceleration: Acceleration | None = None
    """Speed for quality, for the pipelines that can; by default the model's, else none. An empty object is none."""
    inputs: Inputs | None = None
    """Images that it begins from, by their hash; for the pipelines that can. They are resized to the job's size."""
    strength: Fraction | None = None
    """How much of the input image is made anew, as a fraction of the steps: near 0 hardly anything, at 1 next to all;
    by default 0.8. One step is made in any case."""
    # No name would do as an example: it is not there where the document is tried.
    adapters: Annotated[Adapters | None, Field(examples=[None])] = None
    """LoRAAdapters of its model that its images are made with; for the pipelines that can."""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] | None = None
    """Higher runs first; by default 0. Equal priorities run in order of age."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """The job fails when it has not finished this long after its creation."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] | None = None
    """How often the job is run again after its worker died while it had this job alone; by default 3."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """The job is deleted this long after it finished. By default the model's, else the installation's (24 hours): the
    HTTP API writes it here when it creates the job, the operator when a job that was applied has finished."""
    deterministic: bool | None = None
    """Run in a fixed shape, so that every attempt gives the same pixels on the same kind of device."""
    deletion_policy: DeletionPolicy | None = None
    """Whether deleting the job deletes its images; by default they are retained."""
    webhook: Webhook | None = None
    """Whom to tell when it starts and ends, where the installation delivers webhooks."""
    cancel: bool | None = None
    """Set to true to cancel; it cannot be set back."""
    suspend: bool | None = None
    """While true, a job that has not started is not scheduled."""


class JobProgress(Schema):
    """How far the denoising is."""

    step: Annotated[int, Field(ge=0)]
    """Steps done."""
    total: Annotated[int, Field(ge=0)]
    """Steps in all."""
    summary: str = ""
    """Both as one word, for kubectl's table: a printer column shows one field only."""

    @classmethod
    def of(cls, step: int, total: int) -> JobProgress:
        """Make the progress after ``step`` of ``total`` denoising steps."""
        return cls(step=step, total=total, summary=f"{step}/{total}")


class Image(Schema):
    """One uploaded image. It is listed only after storage has confirmed it."""

    index: Annotated[int, Field(ge=0)]
    """Its place among the job's images, from 0."""
    uri: str
    """Where it lies: s3://bucket/key."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the PNG's bytes, in hexadecimal."""
    bytes: Annotated[int, Field(ge=0)]
    """Size of the PNG."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seed: Seed
    """The noise seed that it was made from."""
    flagged: bool = False
    """The safety checker flagged it, and it has been blanked."""


class Parameters(Schema):
    """The recipe as it was really run: every default and the seed resolved, and what ran it."""

    model: str
    """The DiffusionModel."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_scale: float
    """Classifier-free guidance."""
    seed: Seed
    """Noise seed of the first image."""
    num_images: int
    """Images generated."""
    negative_prompt: str | None = None
    """What the image should not show."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    scheduler: str | None = None
    """Noise scheduler, a diffusers class."""
    prompt_weighting: bool | None = None
    """Whether weights in the prompts were heeded, and long ones encoded in parts; absent where not."""
    deterministic: bool = False
    """Whether it ran in a fixed shape."""
    acceleration: Acceleration | None = None
    """Speed for quality; absent when there was none."""
    inputs: tuple[JobInput, ...] | None = None
    """Images that it began from; absent when there were none."""
    strength: float | None = None
    """How much of the input image was made anew; absent where there was none."""
    adapters: tuple[AppliedAdapter, ...] | None = None
    """Adapters that it was made with; absent when there were none."""
    model_revision: str | None = None
    """The revision of the weights that were loaded."""
    pipeline: str | None = None
    """The diffusers pipeline class."""
    engine: str | None = None
    """What drove the denoising."""
    device: str | None = None
    """What it ran on."""
    torch_dtype: str | None = None
    """In which numbers the weights were held."""
    quantization: dict[str, str] | None = None
    """Components whose weights were held in fewer bits, and how."""
    memory: tuple[str, ...] | None = None
    """What was done to save the device's memory, as spec.memory of the model names it; absent where nothing was."""
    versions: dict[str, str] | None = None
    """Versions of the libraries that decide pixels, by package name."""


class JobError(Schema):
    """Why a job failed."""

    code: Annotated[str, cut_to(MAX_REASON)]
    """One of the documented codes, for programs."""
    message: Annotated[str, cut_to(MAX_MESSAGE)]
    """For people: the field or part, the reason, the remedy."""


class Timings(Schema):
    """Seconds spent."""

    queue: float | None = None
    """From creation to the first denoising step of the attempt that finished."""
    inference: float | None = None
    """In the pipeline, shared with the batch."""
    upload: float | None = None
    """From the pixels to storage's confirmation of the last image."""


class GenerationJobStatus(Schema):
    """Where the job stands. Written by the operator and by the worker that ``worker`` names, never by users."""

    phase: Phase = Phase.PENDING
    """Where the job stands."""
    conditions: tuple[Condition, ...] = ()
    """Complete and Failed say how it ended; Scheduled, why it waits; Uploaded, whether storage takes its images."""
    worker: str | None = None
    """The Pod that the job is bound to."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """Counts bindings. Every report of a worker is fenced by it."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Attempts that ended with the death of a worker that had this job alone; compared with spec.backoffLimit."""
    suspects: Annotated[int, Field(ge=2)] | None = None
    """How many jobs, this one among them, its worker had when it died; absent when that never happened. They run again
    with at most half as many together, until the one that makes its worker die runs alone."""
    progress: JobProgress | None = None
    """How far the denoising is."""
    images: tuple[Image, ...] = ()
    """The uploaded images."""
    parameters: Parameters | None = None
    """The recipe as it was really run."""
    error: JobError | None = None
    """Why it failed or was cancelled."""
    warnings: tuple[Annotated[str, cut_to(MAX_NOTE)], ...] = ()
    """What the reader of the image should know, for example a prompt that was cut."""
    queued_at: Time | None = None
    """When it began to wait for a worker."""
    start_time: Time | None = None
    """When the attempt that runs began."""
    completion_time: Time | None = None
    """When it finished."""
    timings: Timings | None = None
    """Seconds spent."""
    webhook: WebhookStatus | None = None
    """How far the telling of its receiver has come, written by the deliverer; absent until something was sent."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of. Absent once the job has finished: no change of the spec
    has an effect on it then."""

    def without_generation(self) -> GenerationJobStatus:
        """Return the status of a finished job, which holds for every later generation of its spec.

        Its time to live may still be changed. ``kubectl wait`` and kstatus take a status that names an older generation
        than the object has for one that is yet to come, and wait for ever.
        """
        conditions = tuple(item.model_copy(update={"observed_generation": None}) for item in self.conditions)
        return self.model_copy(update={"conditions": conditions, "observed_generation": None})


class GenerationJob(CustomResource[GenerationJobSpec, GenerationJobStatus]):
    """A request for images, and where it stands. Its name is the task id of the HTTP API."""

    model_config = ConfigDict(title="GenerationJob")

    KIND: ClassVar[str] = "GenerationJob"
    PLURAL: ClassVar[str] = meta.GENERATION_JOBS

    kind: str = KIND
    status: GenerationJobStatus = GenerationJobStatus()
