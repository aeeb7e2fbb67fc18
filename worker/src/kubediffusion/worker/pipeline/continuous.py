"""The engine for the UNet pipelines that it knows: batches at the level of denoising steps (continuous batching).

Everything else, and every scheduler that has no table, runs through the pipeline's own call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.engine import EngineInfo, ImageTask, Monitor, Plan, Shape, Ticket
from kubediffusion.worker.pipeline.accelerator import Beside, repeatable
from kubediffusion.worker.pipeline.batch import Batch, Row, first_row
from kubediffusion.worker.pipeline.compiling import Compiler
from kubediffusion.worker.pipeline.decoding import Decoder
from kubediffusion.worker.pipeline.engine import NAME as STATIC
from kubediffusion.worker.pipeline.engine import PipelineEngine, own_size, warm_up
from kubediffusion.worker.pipeline.families import HIDDEN_STATES, Conditions, Family, Frame
from kubediffusion.worker.pipeline.features import divisible
from kubediffusion.worker.pipeline.preparation import Preparation
from kubediffusion.worker.pipeline.running import Machine, RunningBatch
from kubediffusion.worker.pipeline.schedulers import Schedulers
from kubediffusion.worker.pipeline.stepping import EagerSteps, GraphedSteps, Steps
from kubediffusion.worker.pipeline.tables import Table, count_calls, make_table
from kubediffusion.worker.pipeline.transfers import to_device
from kubediffusion.worker.pipeline.variants import Course, variants
from kubediffusion.worker.slots import sizes_up_to
from kubediffusion.worker.stages import OnStage, ignore_stage
from kubediffusion.worker.throughput import admitted

NAME = "continuous"
"""What ``status.parameters.engine`` says."""

_MACHINES = 4
"""Frames for which tensors and graphs are kept; jobs of one model seldom ask for more sizes."""

_ENCODED = 16
"""Prompts whose encoding is kept: the images of a job share theirs."""

_GUIDED = 7.5
"""Any guidance scale that computes with and without the prompt, as most jobs do."""

_MEASURED = 3
"""Calls of an image from which on its batch's steps are timed: see :class:`Pace`."""

_TRIAL_STEPS = 6
"""Steps with which a scheduler is tried: enough for the deepest look back."""


class ContinuousEngine:
    """An engine that fills the slots of a running batch: see :class:`kubediffusion.worker.engine.Engine`.

    Args:
        pipeline: The pipeline, on its device.
        info: What it is.
        family: What is known of its class.
        max_images: The most images in a batch.
        compiler: Compiles in the background; None for no compilation.
    """

    def __init__(
        self, pipeline: Any, info: EngineInfo, family: Family, max_images: int, compiler: Compiler | None = None
    ) -> None:
        self._pipeline = pipeline
        self._info = info
        self._family = family
        self._device: torch.device = pipeline.device
        self._sizes = sizes_up_to(max_images, prepared=self._device.type == "cuda")
        self._compiler = compiler
        self._static = PipelineEngine(pipeline, replace(info, name=STATIC))
        self._schedulers = Schedulers(pipeline.scheduler)
        self._decoder = Decoder(pipeline, family, compiler)
        self._beside = Beside(self._device)
        self._machines: dict[Frame, Machine] = {}
        self._encoded: dict[tuple[str, str | None, Frame], Conditions] = {}
        self._tables: dict[tuple[str | None, int], Table | None] = {}
        self._linear: dict[str | None, bool] = {}
        self._known_calls: dict[tuple[str | None, int], int | None] = {}
        self._preparation: Preparation | None = None

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    @property
    def schedulers(self) -> list[str]:
        """The schedulers that jobs may ask for."""
        return self._schedulers.names

    def warm_up(self, progress: OnStage = ignore_stage) -> None:
        """Make an image on a CUDA device, alone and uncompiled: what the first job needs is then prepared.

        Args:
            progress: Told that it begins.
        """
        if self._device.type != "cuda":
            return
        progress(EngineReason.WARMING_UP, "the weights are on the device; the first image is made")
        warm_up(self)
        machine = self._machine(self._frame(Shape(steps=1, guidance=_GUIDED)))
        self._preparation = Preparation(machine, self._decoder, self._compiler, self._device)

    def rest(self, wake: Callable[[], None]) -> bool:
        """Prepare what later jobs need: see :meth:`kubediffusion.worker.engine.Engine.rest`."""
        if self._preparation is None:
            return False
        if self._compiler is not None and self._compiler.busy:
            # Called at once where it has just ended.
            self._compiler.when_free(wake)
            return False
        with torch.inference_mode():
            return self._preparation.proceed()

    def plan(self, shape: Shape) -> Plan:
        """Tell how images of a shape run: see :meth:`kubediffusion.worker.engine.Engine.plan`."""
        calls = self._calls(shape)
        if calls is None:
            return self._static.plan(shape)
        frame = self._frame(shape)
        if shape.acceleration is None:
            return Plan(frame, calls, joins=not shape.deterministic, admit=partial(self._admit, frame, calls))
        if shape.acceleration.feature_caching is not None and not divisible(self._pipeline.unet):
            # Which refuses it.
            return self._static.plan(shape)
        return Plan(Course(frame, shape.acceleration, shape.scheduler, shape.steps), calls)

    def _admit(self, frame: Frame, calls: int, waiting: int, overdue: int = 0, /) -> int:
        """Tell how many begin a batch together."""
        machine = self._machines.get(frame)
        # A batch of so few calls measures nothing: a size without a time would stay so, and be chosen for ever.
        if machine is None or not waiting or calls < _MEASURED:
            return waiting
        return admitted(0, waiting, machine.sizes, machine.times.known, overdue)

    def run(self, tasks: tuple[ImageTask, ...], monitor: Monitor) -> None:
        """Make the images of one batch: see :meth:`kubediffusion.worker.engine.Engine.run`."""
        plan = self.plan(tasks[0].shape)
        if not isinstance(plan.key, Frame | Course):
            self._static.run(tasks, monitor)
            return
        frame = plan.key if isinstance(plan.key, Frame) else plan.key.frame
        course = () if isinstance(plan.key, Frame) else variants(plan.key.acceleration, plan.calls, guided=frame.guided)
        exactly = repeatable(self._device) if frame.deterministic else contextlib.nullcontext()
        with torch.inference_mode(), exactly:
            RunningBatch(
                machine=self._machine(frame),
                prepare=lambda task: self._prepare(task, frame),
                calls=lambda task: self._calls(task.shape) or task.shape.steps,
                decoder=self._decoder,
                static=self._static,
                name=self._info.name,
                monitor=monitor,
                course=course,
                between=None if frame.deterministic or self._preparation is None else self._preparation.capture,
            ).run(tasks)

    def _calls(self, shape: Shape) -> int | None:
        """Tell how often the model is called for an image; None when the pipeline's own call has to make it."""
        wish = (shape.scheduler, shape.steps)
        if wish not in self._known_calls:
            try:
                self._known_calls[wish] = self._count_calls(*wish)
            except Exception:  # noqa: BLE001 - the pipeline's call meets the same, and tells the job
                self._known_calls[wish] = None
        return self._known_calls[wish]

    def _count_calls(self, name: str | None, steps: int) -> int | None:
        scheduler = self._schedulers.get(name)
        if name not in self._linear:
            trial = make_table(scheduler, _TRIAL_STEPS, from_start=self._family.from_start)
            self._linear[name] = trial is not None
        return count_calls(scheduler, steps) if self._linear[name] else None

    def _frame(self, shape: Shape) -> Frame:
        own = own_size(self._pipeline) or (shape.width or shape.height or 0, shape.height or shape.width or 0)
        return Frame(
            width=shape.width or own[0],
            height=shape.height or own[1],
            guided=shape.guidance > 1,
            deterministic=shape.deterministic,
        )

    def _machine(self, frame: Frame) -> Machine:
        """Give what is prepared for a frame, and forget what was used longest ago."""
        machine = self._machines.pop(frame, None)
        if machine is None:
            kept = None if self._preparation is None else self._preparation.machine
            while len(self._machines) >= _MACHINES:
                del self._machines[next(other for other, made in self._machines.items() if made is not kept)]
            sizes = (1,) if frame.deterministic else self._sizes
            nothing = ImageTask(Ticket("", 0, 0), "", None, 0, Shape(steps=1, guidance=1))
            example = self._beside.run(lambda: self._row(nothing, frame, 1.0))
            batch = Batch(self._pipeline.unet, sizes[-1], example)
            graphs = self._device.type == "cuda" and not frame.deterministic
            steps: Steps = GraphedSteps(batch, self._compiler) if graphs else EagerSteps(batch)
            machine = Machine(batch, steps, sizes, plain=frame.deterministic)
        self._machines[frame] = machine
        return machine

    def _prepare(self, task: ImageTask, frame: Frame) -> tuple[Table, Row] | None:
        wish = (task.shape.scheduler, task.shape.steps)
        if wish not in self._tables:
            scheduler = self._schedulers.get(task.shape.scheduler)
            self._tables[wish] = make_table(scheduler, task.shape.steps, from_start=self._family.from_start)
        table = self._tables[wish]
        if table is None:
            return None
        return table, self._beside.run(lambda: self._row(task, frame, table.initial))

    def _row(self, task: ImageTask, frame: Frame, scale: float) -> Row:
        conditions = self._conditions(task, frame)
        factor = self._pipeline.vae_scale_factor
        size = (self._pipeline.unet.config.in_channels, frame.height // factor, frame.width // factor)
        # As the pipeline's call makes it: on the CPU, so that it is the same on every device, and in its numbers.
        noise = torch.randn(
            (1, *size), generator=torch.Generator("cpu").manual_seed(task.seed), dtype=conditions[HIDDEN_STATES].dtype
        )
        return first_row(to_device(noise, self._device) * scale, conditions)

    def _conditions(self, task: ImageTask, frame: Frame) -> Conditions:
        known = (task.prompt, task.negative_prompt, frame)
        if known not in self._encoded:
            while len(self._encoded) >= _ENCODED:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[known] = self._family.conditions(task, frame)
        return self._encoded[known]
