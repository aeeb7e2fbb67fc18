"""AUTOMATIC1111's web UI API over the same jobs: its ``txt2img``, and the text that it puts into images. Pure.

The fields are those of ``/sdapi/v1/txt2img``, as in
https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. Fields that are not here are ignored, as its clients
send dozens that they leave at their defaults; those that would change the picture are refused.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from http.client import responses
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kubediffusion.api.doors.a1111.loras import hashes, with_loras, without_loras
from kubediffusion.api.doors.a1111.schemas import A1111Lora, A1111Model, A1111Sampler
from kubediffusion.api.doors.common import FieldNames
from kubediffusion.api.errors import ApiError, InvalidRequestError, Problem, problem
from kubediffusion.api.schemas import EXAMPLE_PROMPT, JobRequest
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import (
    MAX_SEED,
    GenerationJob,
    Guidance,
    NegativePrompt,
    Prompt,
    Scheduler,
    Size,
    Steps,
)
from kubediffusion.resources.lora_adapter import LoRAAdapter

FIELD_NAMES = FieldNames(
    {
        "num_inference_steps": "steps",
        "guidance_scale": "cfg_scale",
        "num_images": "batch_size",
        "scheduler": "sampler_name",
        "model": "override_settings.sd_model_checkpoint",
        "inputs": "init_images",
        "adapters": "prompt",
    }
)

SAMPLERS: dict[str, Sequence[Scheduler]] = {
    "DDIM": (Scheduler.DDIM,),
    "DPM++ 2M": (Scheduler.DPM_SOLVER_MULTISTEP,),
    "Euler": (Scheduler.EULER, Scheduler.FLOW_MATCH_EULER),
    "Euler a": (Scheduler.EULER_ANCESTRAL,),
    "Heun": (Scheduler.HEUN,),
    "LMS": (Scheduler.LMS,),
    "PLMS": (Scheduler.PNDM,),
    "UniPC": (Scheduler.UNI_PC,),
}
"""Samplers of the web UI, and what they are in diffusers; of several, what runs the model."""

BY_NAME = {name.lower(): schedulers for name, schedulers in SAMPLERS.items()} | {
    scheduler.value.lower(): (scheduler,) for scheduler in Scheduler
}
BY_SCHEDULER = {scheduler.value: name for name, schedulers in SAMPLERS.items() for scheduler in schedulers}

NOT_MADE = {
    "enable_hr": "There is no second pass here; ask for the size by width and height",
    "restore_faces": "Faces are not restored here; leave it out",
    "tiling": "Images that tile cannot be made here; leave it out",
}
"""The fields that may not be true, and what to do."""


def _without_additional(schema: dict[str, Any]) -> None:
    """Have the document say of other settings what it says of other fields: nothing."""
    schema.pop("additionalProperties", None)


class OverrideSettings(BaseModel):
    """Settings of one request; others are ignored."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, json_schema_extra=_without_additional)

    sd_model_checkpoint: Annotated[str, Field(max_length=400)] | None = None
    """A DiffusionModel, one of ``GET /sdapi/v1/sd-models``; the default model when absent."""


class Txt2ImgRequest(BaseModel):
    """What to draw, as the web UI's clients say it. ``prompt`` alone is enough; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    prompt: Annotated[Prompt, Field(examples=[EXAMPLE_PROMPT])]
    """What the image shows. ``<lora:NAME:SCALE>`` in it names an adapter of ``GET /sdapi/v1/loras``."""
    negative_prompt: NegativePrompt | None = None
    """What the image should not show."""
    steps: Steps | None = None
    """Denoising steps; the model's own number when absent."""
    cfg_scale: Guidance | None = None
    """How closely to follow the prompt; the model's own when absent."""
    width: Size | None = None
    """Pixels; the model's own size when absent."""
    height: Size | None = None
    """Pixels; the model's own size when absent."""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
    """Noise seed of the first image; -1, the default, draws one."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Images, times ``n_iter``: together up to the model's limit."""
    n_iter: Annotated[int, Field(ge=1)] = 1
    """Times ``batch_size``: how the images are divided is for the worker to decide."""
    sampler_name: Annotated[str, Field(max_length=100)] | None = None
    """A name of ``GET /sdapi/v1/samplers``; the model's own scheduler when absent."""
    sampler_index: Annotated[str, Field(max_length=100)] | None = None
    """The same where ``sampler_name`` is absent."""
    scheduler: Annotated[str, Field(max_length=100)] | None = None
    """``automatic`` alone: the schedule of the noise is the model's."""
    override_settings: OverrideSettings | None = None
    """Which model."""
    enable_hr: bool | None = None
    """``true`` is refused."""
    restore_faces: bool | None = None
    """``true`` is refused."""
    tiling: bool | None = None
    """``true`` is refused."""
    script_name: str | None = None
    """Refused: there are no scripts."""
    alwayson_scripts: dict[str, Any] | None = None
    """Refused unless empty: there are no scripts."""

    @property
    def ignored_settings(self) -> set[str]:
        """The names of settings that are sent and have no effect here."""
        return set((self.override_settings and self.override_settings.model_extra) or ())

    def understood(self) -> dict[str, Any]:
        """Return the request without what has no effect, as JSON has it."""
        return self.model_dump(mode="json", exclude={"override_settings": self.ignored_settings})

    @property
    def warnings(self) -> list[str]:
        """A sentence for each setting that has no effect, as it would change the picture in the web UI."""
        return [f"override_settings.{name[:100]} has no effect here" for name in sorted(self.ignored_settings)]

    @property
    def refused(self) -> list[Problem]:
        """What this server cannot do."""
        problems = [problem(name, message) for name, message in NOT_MADE.items() if getattr(self, name)]
        if self.script_name:
            problems.append(problem("script_name", "There are no scripts here; leave it out"))
        problems += [
            problem("alwayson_scripts", f"There is no script {name[:100]!r} here; leave it out")
            for name in self.alwayson_scripts or {}
        ]
        if self.scheduler and self.scheduler.lower() != "automatic":
            problems.append(problem("scheduler", "It must be automatic; the schedule of the noise is the model's"))
        return problems

    @property
    def checkpoint(self) -> str | None:
        """The model that is asked for; None for the default one."""
        return (self.override_settings and self.override_settings.sd_model_checkpoint) or None


def job_request(request: Txt2ImgRequest, model: DiffusionModel | None, deadline_seconds: int) -> JobRequest:
    """Build the request of a job.

    Args:
        request: What the client sent.
        model: The model that it names, or the default one; None where there is none.
        deadline_seconds: After which the job ends: its client is not waited for any longer.

    Raises:
        InvalidRequestError: A field has a value that cannot be had.
    """
    problems = request.refused
    sampler = request.sampler_name or request.sampler_index
    scheduler = None
    if sampler and sampler.lower() not in BY_NAME:
        where = "sampler_name" if request.sampler_name else "sampler_index"
        problems.append(problem(where, f"There is no sampler {sampler!r}; ask for {', '.join(SAMPLERS)}"))
    elif sampler:
        scheduler = _scheduler(BY_NAME[sampler.lower()], model)
    if problems:
        raise InvalidRequestError(problems)
    prompt, adapters = without_loras(request.prompt)
    return FIELD_NAMES.job_request(
        {
            "prompt": prompt,
            "adapters": adapters or None,
            "negative_prompt": request.negative_prompt or None,
            "model": request.checkpoint,
            "num_inference_steps": request.steps,
            "guidance_scale": request.cfg_scale,
            "width": request.width,
            "height": request.height,
            "seed": None if request.seed == -1 else request.seed,
            "num_images": request.batch_size * request.n_iter,
            "scheduler": scheduler,
            "active_deadline_seconds": deadline_seconds,
        }
    )


def _scheduler(schedulers: Sequence[Scheduler], model: DiffusionModel | None) -> Scheduler:
    known = model.pipeline.schedulers if model is not None and model.pipeline is not None else ()
    return next((scheduler for scheduler in schedulers if scheduler in known), schedulers[0])


def infotexts(job: GenerationJob) -> dict[int, str]:
    """Write what other programs read in an image's chunk ``parameters``, by the image's index.

    The form is the web UI's: the prompt, the negative prompt on a line of its own, and the parameters on the last one.
    """
    return {image.index: _infotext(job, image.seed, image.width, image.height) for image in job.status.images}


def _infotext(job: GenerationJob, seed: int, width: int, height: int) -> str:
    ran = job.status.parameters
    parameters: dict[str, object] = {}
    if ran is not None:
        parameters["Steps"] = ran.num_inference_steps
        if ran.scheduler is not None:
            parameters["Sampler"] = BY_SCHEDULER.get(ran.scheduler, ran.scheduler)
        parameters["CFG scale"] = f"{ran.guidance_scale:g}"
    parameters |= {"Seed": seed, "Size": f"{width}x{height}"}
    adapters = (ran and ran.adapters) or ()
    if ran is not None:
        parameters["Model"] = ran.model
    if known := hashes(adapters):
        parameters["Lora hashes"] = known
    parameters["Version"] = "KubeDiffusion"
    lines = [with_loras(job.spec.prompt, adapters)]
    if negative := _negative_prompt(job):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in parameters.items()))
    return "\n".join(lines)


def _negative_prompt(job: GenerationJob) -> str:
    ran = job.status.parameters
    return (ran.negative_prompt if ran else job.spec.negative_prompt) or ""


def info(job: GenerationJob, texts: Mapping[int, str], batch_size: int) -> str:
    """Write ``info`` of a response: what was made, as JSON.

    Args:
        job: The job, which has succeeded.
        texts: Its :func:`infotexts`.
        batch_size: As the client asked for it.
    """
    ran, images = job.status.parameters, job.status.images
    seeds = [image.seed for image in images]
    ended = job.status.completion_time or dt.datetime.now(dt.UTC)
    fields = {
        "prompt": job.spec.prompt,
        "all_prompts": [job.spec.prompt] * len(images),
        "negative_prompt": _negative_prompt(job),
        "all_negative_prompts": [_negative_prompt(job)] * len(images),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(images),
        "subseed_strength": 0,
        "width": images[0].width,
        "height": images[0].height,
        "sampler_name": BY_SCHEDULER.get(ran.scheduler, ran.scheduler) if ran and ran.scheduler else None,
        "cfg_scale": ran.guidance_scale if ran else None,
        "steps": ran.num_inference_steps if ran else None,
        "batch_size": batch_size,
        "restore_faces": False,
        "sd_model_name": ran.model if ran else job.spec.model,
        "sd_model_hash": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [texts[image.index] for image in images],
        "styles": [],
        "job_timestamp": ended.strftime("%Y%m%d%H%M%S"),
        "version": "KubeDiffusion",
    }
    return json.dumps(fields)


def a1111_error(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error as the web UI has them: 401 also for a key that is not valid."""
    status, detail = 401 if error.status == 403 else error.status, error.detail
    text = "; ".join(map(_sentence, detail)) if isinstance(detail, list) else detail
    return status, {"error": error.code or responses.get(status, "Error"), "detail": detail, "body": "", "errors": text}


def _sentence(entry: Problem) -> str:
    field = ".".join(map(str, entry["loc"][1:]))
    return f"{field}: {entry['msg']}" if field else str(entry["msg"])


def samplers() -> list[A1111Sampler]:
    """List the samplers."""
    return [
        A1111Sampler(name=name, aliases=[scheduler.value for scheduler in schedulers])
        for name, schedulers in SAMPLERS.items()
    ]


def model_view(model: DiffusionModel) -> A1111Model:
    """Build the view of a model."""
    return A1111Model(title=model.name, model_name=model.name, filename=model.name)


def lora_view(adapter: LoRAAdapter) -> A1111Lora:
    """Build the view of an adapter."""
    about = {"model": adapter.spec.model, "trigger_words": list(adapter.spec.trigger_words)}
    return A1111Lora(name=adapter.name, alias=adapter.name, path=adapter.name, metadata=about)
