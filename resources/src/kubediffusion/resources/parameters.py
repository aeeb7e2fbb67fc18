"""The parameters that a job runs with: its spec checked against the model's limits, defaults and seed resolved."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_SEED,
    GenerationJobSpec,
    Parameters,
)


@dataclass(frozen=True)
class FieldError:
    """One value that a model's limits refuse.

    Attributes:
        field: Path of the field in Python's spelling, for example ``num_inference_steps``.
        message: The reason and the remedy, for people.
    """

    field: str
    message: str


def check_limits(spec: GenerationJobSpec, model: DiffusionModel) -> Iterator[FieldError]:
    """Yield each field of ``spec`` that exceeds the model's limits; none when the model accepts the job."""
    for field, limit in model.spec.limits.model_dump().items():
        value = getattr(spec, field)
        if value is not None and value > limit:
            yield FieldError(
                field, f"{value} exceeds the limit {limit} of model {model.name!r}; ask for at most {limit}"
            )
    seed, images = spec.seed, spec.num_images or 1
    if seed is not None and seed > MAX_SEED - images + 1:
        yield FieldError(
            "seed", f"image {images - 1} would use seed {seed + images - 1}, beyond {MAX_SEED}; lower the seed"
        )


def draw_seed() -> int:
    """Draw the seed of a job that names none: 32 bits, which every tool can show without loss."""
    return secrets.randbits(32)


def resolve_parameters(spec: GenerationJobSpec, model: DiffusionModel, seed: int) -> Parameters:
    """Resolve the parameters of a job: each from its spec, else the model's defaults, else the project's.

    Width, height and scheduler stay None where neither spec nor defaults have them: the pipeline's own are used then,
    and the worker reports them.

    Args:
        spec: Spec of the job.
        model: The model that it is bound to.
        seed: Seed of a job that names none.
    """
    defaults = model.spec.defaults
    acceleration = spec.acceleration if spec.acceleration is not None else defaults.acceleration
    # A limit below the project's default lowers the default: nobody asked for that many steps.
    steps = min(DEFAULT_STEPS, model.spec.limits.num_inference_steps)
    return Parameters(
        model=model.name,
        num_inference_steps=spec.num_inference_steps or defaults.num_inference_steps or steps,
        guidance_scale=_first(spec.guidance_scale, defaults.guidance_scale, DEFAULT_GUIDANCE),
        seed=seed if spec.seed is None else spec.seed,
        num_images=spec.num_images or 1,
        negative_prompt=spec.negative_prompt if spec.negative_prompt is not None else defaults.negative_prompt,
        width=spec.width or defaults.width,
        height=spec.height or defaults.height,
        scheduler=spec.scheduler or defaults.scheduler,
        deterministic=bool(spec.deterministic),
        acceleration=acceleration.effective if acceleration is not None else None,
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
