"""What is told of a pipeline once it is loaded: what jobs get that name nothing, and what they may ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kubediffusion.resources.generation_job import Scheduler
from kubediffusion.resources.pipeline_facts import PipelineDefaults, PipelineFacts
from kubediffusion.worker.engine import GuidanceKind, ImageId, ImageRequest, SamplingParameters
from kubediffusion.worker.execution.adapters.pipelines import takes_adapters
from kubediffusion.worker.execution.image_tasks import tasks_of
from kubediffusion.worker.execution.schedulers import Schedulers
from kubediffusion.worker.families.base import ModelFamily, own_size
from kubediffusion.worker.families.calls import CallPlan
from kubediffusion.worker.families.size_checks import refused_multiple
from kubediffusion.worker.prompts import text_encoders

_STRONG = SamplingParameters(steps=1, guidance=7.5)
"""Above every family's threshold of guidance."""


def facts_of(pipeline: Any, family: ModelFamily | None) -> PipelineFacts:
    """Return what is told of a pipeline.

    Args:
        pipeline: The pipeline.
        family: Its family; None for one that runs by its own call.
    """
    plan = CallPlan.of(type(pipeline))
    limits = [encoder.limit for encoder in text_encoders(pipeline.components.items(), plan.max_sequence_length)]
    offered = set(Schedulers(getattr(pipeline, "scheduler", None)).names)
    return PipelineFacts(
        name=plan.pipeline,
        defaults=_defaults_of(pipeline, plan, family),
        size_multiple=refused_multiple(pipeline) if family is None else family.size_grid(),
        prompt_tokens=min(limits, default=None),
        guidance=plan.takes_guidance if family is None else kind_of_guidance(family) is not GuidanceKind.NONE,
        negative_prompt=plan.takes_negative
        if family is None
        else family.takes_negative and kind_of_guidance(family) is GuidanceKind.CFG,
        schedulers=tuple(scheduler for scheduler in Scheduler if scheduler in offered),
        tasks=tasks_of(pipeline),
        adapters=takes_adapters(pipeline),
    )


def kind_of_guidance(family: ModelFamily) -> GuidanceKind:
    """Return what a guidance scale does to an image that has a negative prompt."""
    request = ImageRequest(ImageId("", 0, 0), "", None, 0, _STRONG)
    return family.guidance(replace(request, negative_prompt=""))


def _defaults_of(pipeline: Any, plan: CallPlan, family: ModelFamily | None) -> PipelineDefaults:
    """Return the family's defaults, else those of the pipeline's own call."""
    if family is not None:
        own, size = family.own_defaults(), family.own_size()
        steps, guidance = own.steps, own.guidance
    else:
        steps, guidance = plan.defaults
        size = own_size(pipeline)
    return PipelineDefaults(
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=None if size is None else size[0],
        height=None if size is None else size[1],
    )
