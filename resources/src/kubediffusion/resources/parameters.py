"""The parameters that a job runs with: its spec checked against the model's limits, defaults and seed resolved."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kubediffusion.resources.adapters import DEFAULT_SCALE, AppliedAdapter
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import (
    DEFAULT_STRENGTH,
    MAX_SEED,
    GenerationJobSpec,
    Parameters,
)
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.pipeline_facts import PipelineDefaults, PipelineFacts, task_of


@dataclass(frozen=True)
class FieldError:
    """One value that a model refuses.

    Attributes:
        field: Path of the field in Python's spelling, for example ``num_inference_steps``.
        message: The reason and the remedy, for people.
    """

    field: str
    message: str


def check_limits(spec: GenerationJobSpec, model: DiffusionModel) -> Iterator[FieldError]:
    """Yield each field of ``spec`` that the model refuses by its limits, or by what is known of its pipeline."""
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
    if model.pipeline is not None:
        yield from _check_size(spec, model, model.pipeline)
        yield from _check_scheduler(spec, model, model.pipeline)
        yield from _check_negative_prompt(spec, model, model.pipeline)
        yield from _check_inputs(spec, model, model.pipeline)
    if spec.adapters and model.pipeline is not None and model.pipeline.adapters is False:
        yield FieldError("adapters", f"model {model.name!r} takes none: {model.pipeline.name} cannot; leave them out")


def check_adapters(
    spec: GenerationJobSpec, model: DiffusionModel, adapters: Mapping[str, LoRAAdapter], template_hash: str | None
) -> Iterator[FieldError]:
    """Yield the problem of each adapter that a job names and cannot have.

    Args:
        spec: Spec of the job.
        model: The model that it runs on.
        adapters: LoRAAdapters of the job's namespace by name.
        template_hash: Names the model's worker template of today: what workers of another one refused says nothing.
    """
    names = [asked.name for asked in spec.adapters or ()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield FieldError("adapters", f"{twice[0]!r} is named {names.count(twice[0])} times; name it once")
    for asked in spec.adapters or ():
        adapter = adapters.get(asked.name)
        if adapter is None or adapter.spec.model != model.name:
            known = (
                ", ".join(sorted(each.name for each in adapters.values() if each.spec.model == model.name)) or "none"
            )
            what = "no such LoRAAdapter" if adapter is None else f"it is for model {adapter.spec.model!r}"
            yield FieldError("adapters", f"{asked.name!r}: {what}; those of model {model.name!r}: {known}")
        elif adapter.refusal is not None and adapter.status.template_hash == template_hash:
            why = adapter.refusal.message or adapter.refusal.reason
            yield FieldError("adapters", f"{asked.name!r} cannot be used ({adapter.refusal.reason}): {why}")


def _check_size(spec: GenerationJobSpec, model: DiffusionModel, pipeline: PipelineFacts) -> Iterator[FieldError]:
    """Yield each side of a job's images that is off the pipeline's grid, or missing beside the other."""
    multiple, defaults, own = pipeline.size_multiple, model.spec.defaults, pipeline.defaults
    if multiple is None:
        return
    asked = {"width": spec.width, "height": spec.height}
    sides = {"width": spec.width or defaults.width, "height": spec.height or defaults.height}
    missing = [side for side, value in sides.items() if value is None]
    if len(missing) == 1:
        (other,) = sides.keys() - missing
        size = "" if own.width is None or own.height is None else f", {own.width} by {own.height}"
        yield FieldError(
            missing[0],
            f"missing beside {other} {sides[other]}; give both, or neither for the own size of model "
            f"{model.name!r}{size}",
        )
    for side, value in asked.items():
        if value is not None and value % multiple:
            fitting = f"{value // multiple * multiple} or {(value // multiple + 1) * multiple}"
            yield FieldError(
                side, f"{value} is no multiple of {multiple}, as model {model.name!r} needs; ask for {fitting}"
            )


def _check_scheduler(spec: GenerationJobSpec, model: DiffusionModel, pipeline: PipelineFacts) -> Iterator[FieldError]:
    """Yield the scheduler of a job that cannot run the pipeline."""
    if spec.scheduler is not None and pipeline.schedulers and spec.scheduler not in pipeline.schedulers:
        yield FieldError(
            "scheduler",
            f"{spec.scheduler} cannot run model {model.name!r}; ask for {', '.join(sorted(pipeline.schedulers))}, "
            "or for none",
        )


def _check_negative_prompt(
    spec: GenerationJobSpec, model: DiffusionModel, pipeline: PipelineFacts
) -> Iterator[FieldError]:
    """Yield the negative prompt of a job whose pipeline has no guidance by one.

    An empty one asks for nothing: many clients send it always.
    """
    if spec.negative_prompt and not pipeline.negative_prompt:
        yield FieldError(
            "negative_prompt",
            f"model {model.name!r} takes none: {pipeline.name} is not guided by it here; leave it out",
        )


def _check_inputs(spec: GenerationJobSpec, model: DiffusionModel, pipeline: PipelineFacts) -> Iterator[FieldError]:
    """Yield the inputs of a job where the pipeline has no task for them."""
    task = task_of(spec.inputs or ())
    if pipeline.tasks and task not in pipeline.tasks:
        known = ", ".join(pipeline.tasks)
        yield FieldError("inputs", f"model {model.name!r} has no task {task}; it has {known}. Ask for another model")


def draw_seed() -> int:
    """Draw the seed of a job that names none: 32 bits, which every tool can show without loss."""
    return secrets.randbits(32)


def resolve_parameters(
    spec: GenerationJobSpec, model: DiffusionModel, seed: int, adapters: Mapping[str, LoRAAdapter] | None = None
) -> Parameters:
    """Resolve the parameters of a job: each from its spec, else the model's spec, else the pipeline's own.

    Where nobody has told of the pipeline yet, Stable Diffusion's documented defaults stand for its own: the worker
    that the job is bound to knows better (:func:`resolve_again`). Width, height and scheduler stay None where neither
    spec has them: the pipeline's own are used then, and the worker reports them.

    Args:
        spec: Spec of the job.
        model: The model that it is bound to.
        seed: Seed of a job that names none.
        adapters: The LoRAAdapters that it names, by name; those that are not given count as they were trained.
    """
    defaults, own = model.spec.defaults, _own_defaults(model)
    acceleration = spec.acceleration if spec.acceleration is not None else defaults.acceleration
    weighting = spec.prompt_weighting if spec.prompt_weighting is not None else defaults.prompt_weighting
    # A limit below the pipeline's default lowers the default: nobody asked for that many steps.
    steps = min(own.num_inference_steps, model.spec.limits.num_inference_steps)
    return Parameters(
        model=model.name,
        num_inference_steps=spec.num_inference_steps or defaults.num_inference_steps or steps,
        guidance_scale=_first(spec.guidance_scale, defaults.guidance_scale, own.guidance_scale),
        seed=seed if spec.seed is None else spec.seed,
        num_images=spec.num_images or 1,
        negative_prompt=spec.negative_prompt if spec.negative_prompt is not None else defaults.negative_prompt,
        width=spec.width or defaults.width,
        height=spec.height or defaults.height,
        scheduler=spec.scheduler or defaults.scheduler,
        prompt_weighting=True if weighting else None,
        deterministic=bool(spec.deterministic),
        acceleration=acceleration.effective if acceleration is not None else None,
        inputs=spec.inputs,
        strength=_first(spec.strength, DEFAULT_STRENGTH) if spec.inputs else None,
        adapters=_applied(spec, adapters or {}),
    )


def resolve_again(parameters: Parameters, spec: GenerationJobSpec, model: DiffusionModel) -> Parameters:
    """Return a recipe whose defaults are the pipeline's own, where it was resolved before anybody knew them.

    Only what the job leaves open, and what stands in the recipe for want of knowledge, is resolved again.

    Args:
        parameters: The recipe, as it was resolved at binding.
        spec: Spec of the job.
        model: The model, with its pipeline.
    """
    known = resolve_parameters(spec, model, parameters.seed)
    guessed = resolve_parameters(spec, model.with_pipeline(None), parameters.seed)
    fields = ("num_inference_steps", "guidance_scale")
    open_fields = [field for field in fields if getattr(parameters, field) == getattr(guessed, field)]
    return parameters.model_copy(update={field: getattr(known, field) for field in open_fields})


def _applied(spec: GenerationJobSpec, adapters: Mapping[str, LoRAAdapter]) -> tuple[AppliedAdapter, ...] | None:
    """Return the adapters of a job with their scales; None where it names none."""

    def scale(name: str) -> float:
        return adapters[name].spec.scale if name in adapters else DEFAULT_SCALE

    asked = spec.adapters or ()
    return tuple(AppliedAdapter(name=each.name, scale=_first(each.scale, scale(each.name))) for each in asked) or None


def _own_defaults(model: DiffusionModel) -> PipelineDefaults:
    return PipelineDefaults() if model.pipeline is None else model.pipeline.defaults


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
