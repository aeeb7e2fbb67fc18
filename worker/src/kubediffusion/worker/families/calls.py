"""How to call a diffusers pipeline: read off the signature of its ``__call__``, which differs from family to family.

What a pipeline does not take is left out, and the job says so: an image that ignores a field must not look as if it
had obeyed.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from diffusers.utils.outputs import BaseOutput

from kubediffusion.resources.generation_job import DEFAULT_GUIDANCE, DEFAULT_STEPS
from kubediffusion.worker.engine import BadModelError, GuidanceKind, ImageRequest, SamplingParameters

SHARING = frozenset(
    {
        "FluxPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
    }
)
"""Classes whose images may share a call: what one shows does not depend on the others' prompts and seeds. The census
measures it; of every other class one image is made a call."""

_SAME_WITHOUT = frozenset({"StableDiffusionPipeline"})
"""Classes for which no negative prompt and an empty one are the same."""

_SPRINT_STEPS = 2
"""Steps for which Sana-Sprint has an intermediate timestep; with it, it refuses any other number."""


_IMAGES = ("image", "mask_image")
"""Parameters of calls that are given images."""


class Callback(StrEnum):
    """How a pipeline tells about its steps."""

    STEP_END = "callback_on_step_end"
    """``callback(pipeline, step, timestep, tensors) -> tensors``."""
    LEGACY = "callback"
    """``callback(step, timestep, latents)``, with ``callback_steps``."""
    NONE = ""
    """It does not: the steps of its noise scheduler are counted."""


@dataclass(frozen=True)
class CallPlan:
    """What a pipeline's call takes.

    Attributes:
        pipeline: Name of the class.
        parameters: Names of the parameters.
        callback: How it tells about its steps.
        max_sequence_length: Default of the parameter of that name: tokens that a T5-like text encoder takes.
        negative_needs_true_cfg: Its negative prompt works only with a ``true_cfg_scale`` above 1, which its default
            is not (the Flux family).
        guides_by_true_cfg: ``true_cfg_scale`` is what guides it, where there is a negative prompt (Qwen-Image).
        of_images: Its call is given an image, whose size is the size of what it makes.
        images: Name of the field of its output that holds the images.
        defaults: Steps and guidance scale of its call by default.
    """

    pipeline: str
    parameters: frozenset[str]
    callback: Callback
    max_sequence_length: int | None = None
    negative_needs_true_cfg: bool = False
    guides_by_true_cfg: bool = False
    of_images: bool = False
    images: str = "images"
    defaults: tuple[int, float] = (DEFAULT_STEPS, DEFAULT_GUIDANCE)

    @classmethod
    def of(cls, pipeline: type[Any], *, needs_image: bool = False) -> CallPlan:
        """Read the plan off a pipeline's class.

        Args:
            pipeline: The class.
            needs_image: Whether its call is given an image, and a mask where it takes one.

        Raises:
            BadModelError: It makes no images from text.
        """
        signature = inspect.signature(pipeline.__call__).parameters
        name = pipeline.__name__
        if "prompt" not in signature:
            raise BadModelError(f"{name} is not a text-to-image pipeline: its call takes no prompt")
        for needed, parameter in signature.items():
            kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if needed in {"self", "prompt", *(_IMAGES if needs_image else ())} or parameter.kind in kinds:
                continue
            if parameter.default is inspect.Parameter.empty:
                raise BadModelError(f"{name} is not a text-to-image pipeline: its call needs {needed!r}")
        callback = next((way for way in (Callback.STEP_END, Callback.LEGACY) if way in signature), Callback.NONE)
        true_cfg = signature.get("true_cfg_scale")
        # Where it is on by default, or is the only scale, it is what a guidance scale means.
        by_true_cfg = true_cfg is not None and ("guidance_scale" not in signature or _number(true_cfg.default) > 1)
        length = signature.get("max_sequence_length")
        return cls(
            pipeline=name,
            parameters=frozenset(signature),
            callback=callback,
            max_sequence_length=length.default if length is not None and isinstance(length.default, int) else None,
            negative_needs_true_cfg=true_cfg is not None and not by_true_cfg,
            guides_by_true_cfg=by_true_cfg,
            of_images=needs_image,
            images=_images(pipeline),
            defaults=_defaults(name, signature, "true_cfg_scale" if by_true_cfg else "guidance_scale"),
        )

    @property
    def takes_guidance(self) -> bool:
        """Whether its call has a guidance scale."""
        return not self.parameters.isdisjoint({"guidance_scale", "true_cfg_scale"})

    @property
    def takes_negative(self) -> bool:
        """Whether its call may heed a negative prompt."""
        return "negative_prompt" in self.parameters and not self.negative_needs_true_cfg

    @property
    def shares_calls(self) -> bool:
        """Whether images of several jobs may be made by one call."""
        return self.pipeline in SHARING

    def may_share(self, request: ImageRequest) -> object:
        """Return what images must have in common, beside their sampling parameters, to share a call."""
        return self.pipeline in _SAME_WITHOUT or request.negative_prompt is None

    def arguments(self, requests: tuple[ImageRequest, ...]) -> dict[str, Any]:
        """Return the keyword arguments of the call for a batch, without generators and callback.

        Args:
            requests: Images with the same sampling parameters.
        """
        sampling = requests[0].sampling
        negatives = [request.negative_prompt for request in requests]
        wishes: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "num_inference_steps": sampling.steps,
            "true_cfg_scale" if self.guides_by_true_cfg else "guidance_scale": sampling.guidance,
            "width": sampling.width,
            "height": sampling.height,
            # None is left out: for some pipelines it means more than an empty text.
            "negative_prompt": None if all(n is None for n in negatives) else [n or "" for n in negatives],
        }
        arguments = {name: value for name, value in wishes.items() if value is not None and name in self.parameters}
        return arguments | dict.fromkeys(self._excluded(sampling))

    def _excluded(self, sampling: SamplingParameters) -> list[str]:
        """Name the parameters whose defaults exclude what is given."""
        excluded = []
        if {"guidance_scale", "guidance_schedule"} <= self.parameters:
            excluded.append("guidance_schedule")
        if "intermediate_timesteps" in self.parameters and sampling.steps != _SPRINT_STEPS:
            excluded.append("intermediate_timesteps")
        return excluded

    def ignored(self, request: ImageRequest, guidance: GuidanceKind | None = None) -> list[str]:
        """Return a warning for each field of a request that has no effect on this pipeline.

        Args:
            request: What was asked for.
            guidance: What the guidance scale did to the image; None where that is not known.
        """
        takes_guidance = self.takes_guidance
        taken = {
            "negativePrompt": (request.negative_prompt, "negative_prompt" in self.parameters),
            "guidanceScale": (request.sampling.guidance, takes_guidance),
            "numInferenceSteps": (request.sampling.steps, "num_inference_steps" in self.parameters),
            "width": (request.sampling.width, self.of_images or "width" in self.parameters),
            "height": (request.sampling.height, self.of_images or "height" in self.parameters),
        }
        ignored = [field for field, (value, takes) in taken.items() if value not in {None, ""} and not takes]
        warnings = [f"{field} has no effect: {self.pipeline} does not take it" for field in ignored]
        if request.sampling.prompt_weighting:
            warnings.append(
                f"promptWeighting has no effect: {self.pipeline} runs through diffusers' own call here, which takes "
                "prompts as they are"
            )
        interval = (
            request.sampling.acceleration is not None and request.sampling.acceleration.guidance_interval is not None
        )
        if interval and _without_guidance(request.sampling):
            warnings.append("acceleration.guidanceInterval has no effect: guidanceScale is not above 1")
        if takes_guidance and guidance is GuidanceKind.NONE and not _without_guidance(request.sampling):
            warnings.append(f"guidanceScale has no effect: {self._why_unguided(request)}")
        if request.negative_prompt and "negative_prompt" in self.parameters:
            warnings += self._negative_warnings(request, guidance)
        return warnings

    def _why_unguided(self, request: ImageRequest) -> str:
        if self.guides_by_true_cfg and request.negative_prompt is None:
            return f"{self.pipeline} heeds it only with negativePrompt"
        return f"this model of {self.pipeline} is not guided"

    def _negative_warnings(self, request: ImageRequest, guidance: GuidanceKind | None) -> list[str]:
        if guidance is GuidanceKind.CFG:
            return []
        if self.negative_needs_true_cfg:
            return [f"negativePrompt has no effect: {self.pipeline} heeds it only with true_cfg_scale"]
        if guidance is None and not (_without_guidance(request.sampling) and "guidance_scale" in self.parameters):
            return []
        if _without_guidance(request.sampling):
            return ["negativePrompt has no effect: guidanceScale is not above 1"]
        return [f"negativePrompt has no effect: this model of {self.pipeline} computes without it"]


def guidance_of(pipeline: Any, plan: CallPlan, request: ImageRequest) -> GuidanceKind | None:
    """Return what the guidance scale did to the image of a pipeline's last call; None where the pipeline does not say.

    Args:
        pipeline: The pipeline, which has made the image.
        plan: What its call takes.
        request: What was asked for.
    """
    if plan.guides_by_true_cfg:
        guided: bool | None = request.negative_prompt is not None and not _without_guidance(request.sampling)
    else:
        guided = getattr(pipeline, "do_classifier_free_guidance", None)
    if guided:
        return GuidanceKind.CFG
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    embeds = getattr(getattr(denoiser, "config", None), "guidance_embeds", None)
    if embeds:
        return GuidanceKind.EMBEDDED
    if guided is None and "negative_prompt" in plan.parameters and not plan.negative_needs_true_cfg:
        # It may well be guided, and does not say so.
        return None
    return GuidanceKind.NONE if guided is not None or embeds is not None else None


def _defaults(name: str, signature: Mapping[str, inspect.Parameter], scale: str) -> tuple[int, float]:
    """Return steps and guidance scale of a call by default, by the name of its parameter for the scale.

    Pipelines of Stable Diffusion's UNets keep what the HTTP API documents, whatever the default of their call.
    """
    if name.startswith("StableDiffusion") and not name.startswith("StableDiffusion3"):
        return DEFAULT_STEPS, DEFAULT_GUIDANCE
    steps = signature["num_inference_steps"].default if "num_inference_steps" in signature else None
    guidance = signature[scale].default if scale in signature else None
    return (
        steps if isinstance(steps, int) and steps > 0 else DEFAULT_STEPS,
        float(guidance) if isinstance(guidance, int | float) else DEFAULT_GUIDANCE,
    )


def _images(pipeline: type[Any]) -> str:
    """Return the name of the field with the images, by the outputs that a class's call names.

    Raises:
        BadModelError: It makes something else: frames, sound, text, embeddings.
    """
    call = inspect.unwrap(pipeline.__call__)
    named = [call.__globals__.get(name) for name in call.__code__.co_names]
    outputs: list[Any] = [output for output in named if inspect.isclass(output) and issubclass(output, BaseOutput)]
    # A BaseOutput is a dataclass in all but its type.
    fields = {field.name for output in outputs for field in dataclasses.fields(output)}
    found = next((name for name in ("images", "image") if name in fields), None)
    if found is None and fields:
        made = ", ".join(sorted(fields))
        raise BadModelError(f"{pipeline.__name__} is not a text-to-image pipeline: it makes no images, but {made}")
    # One that stands for several gives what the last of them gives.
    return found or "images"


def _without_guidance(sampling: SamplingParameters) -> bool:
    return sampling.guidance <= 1


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
