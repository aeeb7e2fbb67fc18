"""Runs batches through a diffusers pipeline's own ``__call__``."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.pipeline_facts import Task
from kubediffusion.worker.engine import (
    EngineInfo,
    ImageOutput,
    ImagePlan,
    ImageRequest,
    Monitor,
    Outcome,
    described,
)
from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.execution.accelerator import repeatable
from kubediffusion.worker.execution.adapters.conversion import read_adapter
from kubediffusion.worker.execution.adapters.pipelines import JoinedAdapters, adapted_pipeline, takes_adapters
from kubediffusion.worker.execution.adapters.weights import LoadedAdapter
from kubediffusion.worker.execution.faults import check_device, failure, is_out_of_memory, not_numbers
from kubediffusion.worker.execution.image_tasks import input_arguments, task_pipeline, with_kept_pixels
from kubediffusion.worker.execution.randomness import seeded
from kubediffusion.worker.execution.schedulers import Schedulers
from kubediffusion.worker.families.base import own_size
from kubediffusion.worker.families.calls import Callback, CallPlan, guidance_of
from kubediffusion.worker.prompts import cut_warnings, text_encoders

logger = logging.getLogger(__name__)

ADAPTER_RANK = 64
"""The most rank that the adapters of one image have together, where the worker's settings do not say."""

NAME = "diffusers"
"""What ``status.parameters.engine`` says."""


class _CallCancelled(Exception):  # noqa: N818 - it ends a call that is no longer wanted; nothing went wrong
    """Every image of the running call has been dropped."""


class PipelineEngine:
    """An engine for any text-to-image pipeline of diffusers: see :class:`kubediffusion.worker.engine.Engine`.

    Args:
        pipeline: The pipeline, on its device.
        info: What it is.
        task: What the pipeline's call makes images of; images of other tasks are made by others of its parts.
        adapter_rank: The most rank that the adapters of one image have together.

    Attributes:
        pipeline: The pipeline.
        joined_adapters: What adapters add to its components.
        encoders: Its text encoders that truncate text.
    """

    def __init__(
        self,
        pipeline: Any,
        info: EngineInfo,
        task: Task = Task.TEXT_TO_IMAGE,
        *,
        adapter_rank: int = ADAPTER_RANK,
    ) -> None:
        self.pipeline = pipeline
        self._info = replace(info, adapter_rank=adapter_rank if takes_adapters(pipeline) else 0)
        self._task = task
        self.joined_adapters = JoinedAdapters(pipeline)
        # Of the adapters that were used last.
        self._adapted: dict[tuple[ImageAdapter, ...], PipelineEngine] = {}
        # Made at their first use.
        self._task_engines: dict[Task, PipelineEngine] = {}
        self._plan = CallPlan.of(type(pipeline), needs_image=task is not Task.TEXT_TO_IMAGE)
        self._schedulers = Schedulers(getattr(pipeline, "scheduler", None))
        self.encoders = text_encoders(pipeline.components.items(), self._plan.max_sequence_length)
        # What it makes where no size is asked for, once seen.
        self._own_size: tuple[int, int] | None = None
        pipeline.set_progress_bar_config(disable=True)

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        device: torch.device = self.pipeline.device
        return device

    @property
    def schedulers(self) -> list[str]:
        """The schedulers that jobs may ask for."""
        return self._schedulers.names

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return how an image runs: with those sampled in the very same way, or alone where others may change it."""
        if not self._plan.shares_calls or request.inputs is not None:
            return ImagePlan((request.sampling, request.id), request.sampling.steps)
        key = (request.sampling, self._plan.may_share(request), request.adapters)
        return ImagePlan(key, request.sampling.steps)

    def read_adapter(self, file: Path) -> LoadedAdapter:
        """Read an adapter's file: see :meth:`kubediffusion.worker.engine.Engine.read_adapter`."""
        return read_adapter(file, self.pipeline, self._info.adapter_rank)

    def prepare_while_idle(self, _wake: Callable[[], None]) -> bool:
        """Do nothing: see :meth:`kubediffusion.worker.engine.Engine.prepare_while_idle`."""
        return False

    def run(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Make the images of one batch: see :meth:`kubediffusion.worker.engine.Engine.run`.

        When a call of several images raises, each is called alone, so that only the culprit fails; when it does not
        fit the device's memory, it is halved.
        """
        groups = self._groups(requests)
        while groups:
            group = tuple(request for request in groups.pop(0) if monitor.wanted(request.id))
            if not group:
                continue
            try:
                engine = self._with(group[0].adapters)._for(group[0].task)  # noqa: SLF001 - of the same class
                outcomes = engine._call(group, monitor)  # noqa: SLF001 - as above
            except _CallCancelled:
                continue
            except JobFailure as refusal:
                outcomes = [refusal] * len(group)
            except Exception as error:  # noqa: BLE001 - what a pipeline raises is the outcome of its images
                # The text of the error goes to the status of the job alone.
                logger.warning("the pipeline raised", extra={"images": len(group), **described(error)})
                check_device(self.device, error)
                if len(group) > 1:
                    half = len(group) // 2 if is_out_of_memory(error) else 1
                    groups[0:0] = [group[start : start + half] for start in range(0, len(group), half)]
                    continue
                outcomes = [failure(error)]
            for request, outcome in zip(group, outcomes, strict=True):
                monitor.ended(request.id, outcome)

    def _groups(self, requests: tuple[ImageRequest, ...]) -> list[tuple[ImageRequest, ...]]:
        """Split a batch into those that may share a call.

        Some pipelines (Stable Diffusion XL) take zeros where there is no negative prompt, which is not what an empty
        one gives; others pad prompts to the longest. A job's picture must not depend on its neighbours.
        """
        groups: dict[object, tuple[ImageRequest, ...]] = {}
        for request in requests:
            key = self.plan(request).key
            groups[key] = (*groups.get(key, ()), request)
        return list(groups.values())

    def _for(self, task: Task) -> PipelineEngine:
        """Return the engine whose pipeline's call makes images of a task.

        Raises:
            JobFailure: diffusers has none for this pipeline.
        """
        if task is self._task:
            return self
        if task not in self._task_engines:
            pipeline = task_pipeline(self._with_own_scheduler(), task)
            if pipeline is None:
                raise JobFailure(ErrorCode.PIPELINE_FAILED, f"inputs: {self._plan.pipeline} has no task {task}")
            self._task_engines[task] = PipelineEngine(pipeline, self._info, task)
        return self._task_engines[task]

    def _with(self, adapters: tuple[ImageAdapter, ...]) -> PipelineEngine:
        """Return the engine whose pipeline has the layers of some adapters; that of the last ones is kept."""
        if not adapters:
            return self
        if adapters not in self._adapted:
            # Before the next is made: they hold memory of the device.
            self._adapted.clear()
            pipeline = adapted_pipeline(self._with_own_scheduler(), self.joined_adapters.of(adapters))
            self._adapted[adapters] = PipelineEngine(pipeline, self._info, self._task)
        return self._adapted[adapters]

    def _with_own_scheduler(self) -> Any:
        """Return the pipeline with the scheduler that it was loaded with.

        What is built of the pipeline would else take that of the last call for its own.
        """
        if (own := self._schedulers.get(None)) is not None:
            self.pipeline.scheduler = own
        return self.pipeline

    def _call(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> list[Outcome]:
        sampling = requests[0].sampling
        scheduler = self._schedulers.get(sampling.scheduler)
        if sampling.acceleration is not None:
            raise self._refused(type(scheduler).__name__)
        if scheduler is not None:
            self.pipeline.scheduler = scheduler
        arguments = self._plan.arguments(requests)
        inputs = requests[0].inputs
        if inputs is None:
            self._complete_size(arguments)
        else:
            arguments |= input_arguments(inputs, sampling.strength or 0.0, sampling.steps, self._plan.parameters)
        if "generator" in self._plan.parameters:
            # Noise from a generator of its own on the CPU: the same on every device, in any batch.
            arguments["generator"] = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        if "output_type" in self._plan.parameters:
            arguments["output_type"] = "np"
        note = self._note(requests, monitor)
        arguments |= self._callback(note)
        exactly = repeatable(self.device) if sampling.deterministic else contextlib.nullcontext()
        counted = self._steps_counted(note) if self._plan.callback is Callback.NONE else contextlib.nullcontext()
        with torch.inference_mode(), exactly, counted, seeded(requests[0].seed, self.device):
            output = self.pipeline(**arguments)
        images = getattr(output, self._plan.images)
        if len(images) != len(requests):
            raise JobFailure(ErrorCode.PIPELINE_FAILED, f"{self._plan.pipeline} made {len(images)} images, not 1 each")
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        outcomes = [
            self.outcome(
                request,
                image if flagged or request.inputs is None else with_kept_pixels(image, request.inputs),
                bool(flagged),
                type(scheduler).__name__,
                [
                    *cut_warnings(request, self.encoders),
                    *self._plan.ignored(request, guidance_of(self.pipeline, self._plan, request)),
                ],
            )
            for request, image, flagged in zip(requests, images, flags, strict=True)
        ]
        if sampling.width is None and sampling.height is None and isinstance(outcomes[0], ImageOutput):
            self._own_size = outcomes[0].width, outcomes[0].height
        return outcomes

    def _refused(self, scheduler: str) -> JobFailure:
        return JobFailure(
            ErrorCode.PIPELINE_FAILED,
            f"acceleration: {self._plan.pipeline} with {scheduler} runs through diffusers' own call, which has none of "
            "it; it is for Stable Diffusion 1, 2 and XL with a scheduler such as DPMSolverMultistepScheduler, "
            "EulerDiscreteScheduler or DDIMScheduler, and featureCaching for their UNets alone. Leave it out; where "
            "the model's defaults ask for it, give an empty one",
        )

    def _complete_size(self, arguments: dict[str, Any]) -> None:
        """Add the other side where a job names one: Stable Diffusion's call ignores a side that comes alone."""
        given = {side: arguments[side] for side in ("width", "height") if side in arguments}
        if len(given) != 1:
            return
        own = self._own_size or own_size(self.pipeline) or (next(iter(given.values())),) * 2
        arguments |= {"width": own[0], "height": own[1]} | given

    def _note(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> Callable[[int], None]:
        """Return what is called with the index of each step that is done."""
        steps = requests[0].sampling.steps

        def note(index: int) -> None:
            if not any(monitor.wanted(request.id) for request in requests):
                raise _CallCancelled
            # Some schedulers call the model more often than there are steps (Heun, PNDM's first steps).
            timesteps = getattr(getattr(self.pipeline, "scheduler", None), "timesteps", ())
            calls = max(int(getattr(self.pipeline, "num_timesteps", None) or len(timesteps) or steps), 1)
            done = min((index + 1) * steps // calls, steps)
            for request in requests:
                monitor.stepped(request.id, done, steps)

        return note

    def _callback(self, note: Callable[[int], None]) -> dict[str, Any]:
        def on_step_end(_pipeline: Any, index: int, _timestep: Any, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
            note(index)
            return tensors

        def on_step(index: int, _timestep: Any, _latents: Any) -> None:
            note(index)

        if self._plan.callback is Callback.STEP_END:
            arguments: dict[str, Any] = {"callback_on_step_end": on_step_end}
            if "callback_on_step_end_tensor_inputs" in self._plan.parameters:
                arguments["callback_on_step_end_tensor_inputs"] = []
            return arguments
        if self._plan.callback is Callback.LEGACY:
            return {"callback": on_step, "callback_steps": 1}
        return {}

    @contextlib.contextmanager
    def _steps_counted(self, note: Callable[[int], None]) -> Iterator[None]:
        """Count the steps of the noise scheduler meanwhile, where the pipeline's call has no callback for them."""
        scheduler = getattr(self.pipeline, "scheduler", None)
        if scheduler is None:
            yield
            return
        step, done = scheduler.step, 0

        # Pipelines look at its signature.
        @functools.wraps(step)
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            result = step(*arguments, **options)
            note(done)
            done += 1
            return result

        scheduler.step = counted
        try:
            yield
        finally:
            del scheduler.step

    def outcome(
        self, request: ImageRequest, image: Any, flagged: bool, scheduler: str, warnings: Sequence[str]
    ) -> Outcome:
        """Return the outcome of an image.

        Args:
            request: What was asked for.
            image: Its pixels, ``[height, width, channels]``: 0 to 255, or floating-point numbers from 0 to 1.
            flagged: Whether the safety checker flagged it.
            scheduler: The diffusers class that was used.
            warnings: What had no effect, and what of the prompts was cut.
        """
        pixels = np.asarray(image)
        if pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] not in {1, 2, 3, 4}):
            return JobFailure(
                ErrorCode.PIPELINE_FAILED,
                f"{self._plan.pipeline} gave an array of shape {list(pixels.shape)}, which is no image",
            )
        if pixels.dtype != np.uint8:
            if not np.isfinite(pixels).all():
                return not_numbers(self._info.torch_dtype)
            pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        # Grey becomes RGB, and an alpha channel is left out.
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]
        height, width = pixels.shape[:2]
        told = [*warnings]
        for side, asked, got in (("width", request.sampling.width, width), ("height", request.sampling.height, height)):
            if asked is not None and asked != got and side in self._plan.parameters:
                told.append(f"{side} is {got}, not {asked}: {self._plan.pipeline} rounds sizes")
        if (request.sampling.width is None) != (request.sampling.height is None):
            side, got = ("width", width) if request.sampling.width is None else ("height", height)
            told.append(f"{side} is {got}, the model's own, as the other side was given alone")
        return ImageOutput(
            width=width,
            height=height,
            rgb=np.ascontiguousarray(pixels).tobytes(),
            scheduler=scheduler,
            flagged=flagged,
            warnings=tuple(told),
            engine=self._info.name,
        )
