"""What the parity test does with a row: steps a tiny random pipeline's images, and asks its own call for the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kubediffusion.worker.engine import EngineInfo, ImageOutput, ImageRequest
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.execution.continuous import NAME, ContinuousEngine
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.families.registry import family_of
from unit.worker.worker_builders import Recorder

CallArguments = Callable[[ImageRequest], Mapping[str, Any]]


@dataclass(frozen=True)
class FamilyRow:
    """One pipeline of one family.

    Attributes:
        name: Of the tiny model (``tests/census``), or of the row where ``build`` makes it.
        arguments: What of a request the pipeline's own call is told beside prompt, seed, size and steps.
        facts: Steps and guidance scale of an image whose job names none, and whether guidance and a negative prompt
            have an effect.
        sizes: Two sizes in pixels, width and height.
        steps: Numbers of denoising steps.
        guidance: Two guidance scales; both are used in one batch.
        schedulers: Names of further noise schedulers of diffusers that its jobs may ask for.
        build: Builds the pipeline, on the CPU in float32; None where ``name`` is a tiny model's.
    """

    name: str
    arguments: CallArguments
    facts: tuple[int, float, bool, bool]
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((64, 64), (96, 64))
    steps: tuple[int, ...] = (1, 4, 9)
    guidance: tuple[float, float] = (4.0, 2.5)
    schedulers: tuple[str, ...] = ()
    build: Callable[[], Any] | None = None


def step_engine(pipeline: Any, images: int = 4) -> ContinuousEngine:
    """Make the engine that steps a pipeline's images."""
    pipeline.set_progress_bar_config(disable=True)
    family = family_of(pipeline)
    assert isinstance(family, ModelFamily), family
    info = EngineInfo(NAME, type(pipeline).__name__, "cpu", "float32", "", {})
    return ContinuousEngine(pipeline, info, family, sizes_up_to(images, prepared=False))


def run(engine: ContinuousEngine, *requests: ImageRequest, **recorder: Any) -> dict[int, ImageOutput]:
    """Make images in one batch, and return them by index."""
    seen = Recorder(**recorder)
    engine.run(requests, seen)
    made = {index: seen.image(index) for index in seen.outcomes}
    assert [image.engine for image in made.values()] == [NAME] * len(made)
    return made


def by_own_call(pipeline: Any, row: FamilyRow, request: ImageRequest) -> np.ndarray[Any, Any]:
    """Make an image by the pipeline's own call: ``[height, width, 3]``, uint8."""
    sampling = request.sampling
    sides = {name: side for name, side in (("width", sampling.width), ("height", sampling.height)) if side is not None}
    arguments = {name: value for name, value in row.arguments(request).items() if value is not None}
    with torch.inference_mode():
        (image,) = pipeline(
            prompt=request.prompt,
            num_inference_steps=sampling.steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            **sides,
            **arguments,
        ).images
    return (image * 255).round().clip(0, 255).astype(np.uint8)


def levels(output: ImageOutput, expected: np.ndarray[Any, Any]) -> int:
    """Return the largest difference of two images, in levels of 255."""
    made = np.frombuffer(output.rgb, np.uint8).reshape(output.height, output.width, 3)
    assert made.shape == expected.shape
    assert len(np.unique(expected)) > 10
    return int(np.abs(made.astype(int) - expected.astype(int)).max())
