"""How to call a diffusers pipeline: read off the signature of its ``__call__``, which differs from family to family.

What a pipeline does not take is left out, and the job says so: an image that ignores a field must not look as if it
had obeyed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kubediffusion.worker.engine import BadModelError, ImageRequest, Shape


class Callback(StrEnum):
    """How a pipeline tells about its steps."""

    STEP_END = "callback_on_step_end"
    """``callback(pipeline, step, timestep, tensors) -> tensors``."""
    LEGACY = "callback"
    """``callback(step, timestep, latents)``, with ``callback_steps``."""
    NONE = ""
    """It does not: no progress, and a cancelled batch runs to its end."""


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
    """

    pipeline: str
    parameters: frozenset[str]
    callback: Callback
    max_sequence_length: int | None = None
    negative_needs_true_cfg: bool = False

    @classmethod
    def of(cls, pipeline: type[Any]) -> CallPlan:
        """Read the plan off a pipeline's class.

        Raises:
            BadModelError: It makes no images from text.
        """
        signature = inspect.signature(pipeline.__call__).parameters
        name = pipeline.__name__
        if "prompt" not in signature:
            raise BadModelError(f"{name} is not a text-to-image pipeline: its call takes no prompt")
        for given in ("image", "video", "mask_image", "control_image"):
            # A pipeline that takes images beside text has None as default; one that needs them has no default,
            # or checks them itself.
            if given in signature and signature[given].default is inspect.Parameter.empty:
                raise BadModelError(f"{name} is not a text-to-image pipeline: its call needs {given!r}")
        callback = next((way for way in (Callback.STEP_END, Callback.LEGACY) if way in signature), Callback.NONE)
        true_cfg = signature.get("true_cfg_scale")
        length = signature.get("max_sequence_length")
        return cls(
            pipeline=name,
            parameters=frozenset(signature),
            callback=callback,
            max_sequence_length=length.default if length is not None and isinstance(length.default, int) else None,
            negative_needs_true_cfg=true_cfg is not None and _number(true_cfg.default) <= 1,
        )

    def arguments(self, requests: tuple[ImageRequest, ...]) -> dict[str, Any]:
        """Give the keyword arguments for a batch, without generators and callback.

        Args:
            requests: Images of one shape.
        """
        shape = requests[0].shape
        negatives = [request.negative_prompt for request in requests]
        wishes: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "num_inference_steps": shape.steps,
            "guidance_scale": shape.guidance,
            "width": shape.width,
            "height": shape.height,
            # None is left out: for some pipelines it means more than an empty text.
            "negative_prompt": None if all(n is None for n in negatives) else [n or "" for n in negatives],
        }
        return {name: value for name, value in wishes.items() if value is not None and name in self.parameters}

    def ignored(self, request: ImageRequest) -> list[str]:
        """Give a warning for each field of a request that has no effect on this pipeline."""
        wanted = {
            "negativePrompt": request.negative_prompt,
            "guidanceScale": request.shape.guidance,
            "numInferenceSteps": request.shape.steps,
            "width": request.shape.width,
            "height": request.shape.height,
        }
        names = {
            "negativePrompt": "negative_prompt",
            "guidanceScale": "guidance_scale",
            "numInferenceSteps": "num_inference_steps",
        }
        ignored = [
            field
            for field, value in wanted.items()
            if value not in {None, ""} and names.get(field, field) not in self.parameters
        ]
        warnings = [f"{field} has no effect: {self.pipeline} does not take it" for field in ignored]
        interval = request.shape.acceleration is not None and request.shape.acceleration.guidance_interval is not None
        if interval and _without_guidance(request.shape):
            warnings.append("acceleration.guidanceInterval has no effect: guidanceScale is not above 1")
        if request.negative_prompt and "negative_prompt" in self.parameters:
            if self.negative_needs_true_cfg:
                warnings.append(f"negativePrompt has no effect: {self.pipeline} heeds it only with true_cfg_scale")
            elif _without_guidance(request.shape) and "guidance_scale" in self.parameters:
                warnings.append("negativePrompt has no effect: guidanceScale is not above 1")
        return warnings


def _without_guidance(shape: Shape) -> bool:
    return shape.guidance <= 1


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
