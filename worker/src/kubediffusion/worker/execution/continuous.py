"""The engine for the pipelines that a family knows: batches at the level of denoising steps (continuous batching).

Every scheduler that is not linear runs through the pipeline's own call.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine import (
    BatchKey,
    EngineInfo,
    EngineLostError,
    ImageId,
    ImagePlan,
    ImageRequest,
    InputImage,
    LockstepKey,
    Monitor,
    Outcome,
    SamplingParameters,
    described,
)
from kubediffusion.worker.engine.forward_mode import Features, ForwardMode, forward_modes
from kubediffusion.worker.engine.loop import EngineLoop, LoopHooks
from kubediffusion.worker.engine.scheduler import StepScheduler
from kubediffusion.worker.engine.throughput import count_entering
from kubediffusion.worker.execution.accelerator import PrefetchStream, repeatable
from kubediffusion.worker.execution.adapters.preparation import AdapterPreparation
from kubediffusion.worker.execution.adapters.slots import AdapterSlots
from kubediffusion.worker.execution.adapters.weights import LoadedAdapter
from kubediffusion.worker.execution.coefficients import SchedulerCoefficients, count_calls, read_coefficients
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.decoding import Decoder
from kubediffusion.worker.execution.faults import check_device, failure
from kubediffusion.worker.execution.generic import ADAPTER_RANK, PipelineEngine
from kubediffusion.worker.execution.generic import NAME as STATIC
from kubediffusion.worker.execution.graphs import GraphedFunction
from kubediffusion.worker.execution.interruption import Interruption
from kubediffusion.worker.execution.local_executor import ImageFunctions, LocalExecutor, PreparedBatch
from kubediffusion.worker.execution.preparation import Preparation
from kubediffusion.worker.execution.prepared_batches import PreparedBatches
from kubediffusion.worker.execution.previewing import Previewer
from kubediffusion.worker.execution.schedulers import Schedulers
from kubediffusion.worker.execution.slots import SlotState, SlotTensors, first_row
from kubediffusion.worker.execution.stepping import CudaGraphManager, EagerStepRunner, StepRunner
from kubediffusion.worker.execution.trial import warm_up
from kubediffusion.worker.families.base import Conditioning, ModelFamily
from kubediffusion.worker.families.input_images import ImageToImageFamily
from kubediffusion.worker.families.text import LruCache, bytes_of
from kubediffusion.worker.stages import OnStage, ignore_stage
from kubediffusion.worker.transfers import to_device

logger = logging.getLogger(__name__)

NAME = "continuous"
"""What ``status.parameters.engine`` says."""

_ENCODED_BYTES = 64 * 2**20
"""Bytes of encoded prompts that are kept, and of encoded input images: the images of a job share theirs, and many jobs
a prompt."""

_GUIDED = 7.5
"""Any guidance scale that computes with and without the prompt, as most jobs do."""

_MEASURED = 3
"""Calls of an image from which on its batch's steps are timed: see :class:`StepPacer`."""

_TRIAL_STEPS = 6
"""Steps with which a scheduler is tried: enough for the deepest look back."""

_Schedule = tuple[str | None, int, int, int, int | None]
"""What decides a noise schedule: scheduler, steps, width and height, and the first step that is made of an image."""


class ContinuousEngine:
    """An engine that fills the slots of a running batch: see :class:`kubediffusion.worker.engine.Engine`.

    Args:
        pipeline: The pipeline, on its device.
        info: What it is.
        family: What is known of its class.
        sizes: Batch sizes that may be computed, smallest first: see :func:`.sizes_up_to`.
        compiler: Compiles in the background; None for no compilation.
        graphs: Whether steps run from CUDA graphs; None to decide by the device.
        adapter_rank: The most rank that the adapters of one image have together.

    Attributes:
        pipeline: The pipeline.
        family: Its family.
        compiler: What compiles in the background; None for no compilation.
        whole_calls: Runs by the pipeline's own call what cannot be stepped.
        decoder: Makes pixels of latents.
        prepared_batches: What is prepared for the keys that were used last.
        graphs: Whether steps run from CUDA graphs.
        preparation: What is prepared while nobody waits; None before :meth:`warm_up`, and without graphs.
    """

    def __init__(
        self,
        pipeline: Any,
        info: EngineInfo,
        family: ModelFamily,
        sizes: Sequence[int],
        compiler: Compiler | None = None,
        *,
        graphs: bool | None = None,
        adapter_rank: int = ADAPTER_RANK,
    ) -> None:
        self.pipeline = pipeline
        self.family = family
        family.use_graphs(GraphedFunction)
        self._device: torch.device = pipeline.device
        self.graphs = self._device.type == "cuda" if graphs is None else graphs
        self._sizes = tuple(sizes)
        self.compiler = compiler
        self.whole_calls = PipelineEngine(pipeline, replace(info, name=STATIC), adapter_rank=adapter_rank)
        self._info = replace(self.whole_calls.info, name=info.name)
        self._adapters = AdapterPreparation(pipeline, family, self.whole_calls.joined_adapters)
        self._adapter_slots = AdapterSlots(family, self._sizes[-1], adapter_rank)
        self._schedulers = Schedulers(pipeline.scheduler)
        self.decoder = Decoder(pipeline, family, compiler)
        self._previewer = Previewer(pipeline, family)
        self.prepared_batches = PreparedBatches(self._prepare_batch)
        self.preparation: Preparation | None = None
        self._prefetch = PrefetchStream(self._device)
        self._encoded: LruCache[Hashable, Conditioning] = LruCache(_ENCODED_BYTES, bytes_of)
        self._begins_from_images = family.takes_images()
        self._encoded_images: LruCache[tuple[str, int, int], Conditioning] = LruCache(_ENCODED_BYTES, bytes_of)
        self._coefficients: dict[_Schedule, SchedulerCoefficients | None] = {}
        self._linear: dict[str | None, bool] = {}
        self._known_calls: dict[_Schedule, int | None] = {}

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    @property
    def schedulers(self) -> list[str]:
        """The schedulers that jobs may ask for."""
        return self._schedulers.names

    def warm_up(self, on_stage: OnStage = ignore_stage) -> None:
        """Make an image, alone and uncompiled, where steps run from graphs: what the first job needs is then prepared.

        Args:
            on_stage: Called when it begins.
        """
        if not self.graphs:
            return
        on_stage(EngineReason.WARMING_UP, "the weights are on the device; the first image is made")
        warm_up(self)
        usual = self.family.key(_nothing(SamplingParameters(steps=1, guidance=_GUIDED)))
        prepared = self.prepared_batches.of(self.family.batch_key(usual))
        self.prepared_batches.keep(prepared)
        self.preparation = Preparation(prepared, self.decoder, self.compiler, self._device)

    def read_adapter(self, file: Path) -> LoadedAdapter:
        """Read an adapter's file: see :meth:`kubediffusion.worker.engine.Engine.read_adapter`."""
        return self.whole_calls.read_adapter(file)

    def prepare_while_idle(self, wake: Callable[[], None]) -> bool:
        """Prepare what later jobs need: see :meth:`kubediffusion.worker.engine.Engine.prepare_while_idle`."""
        if self.preparation is None:
            return False
        if self.compiler is not None and self.compiler.busy:
            # Called at once where it has just ended.
            self.compiler.when_free(wake)
            return False
        with torch.inference_mode():
            return self.preparation.proceed()

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return how an image runs: see :meth:`kubediffusion.worker.engine.Engine.plan`."""
        sampling = request.sampling
        if not self._has_slots_for(request):
            return self.whole_calls.plan(request)
        try:
            key = self.family.key(request)
            batch = self.family.batch_key(key)
        except Exception as error:  # noqa: BLE001 - the pipeline's call meets the same, and tells the job
            logger.warning("an image has no key", extra=described(error))
            return self.whole_calls.plan(request)
        calls = self._calls(sampling, key)
        if calls is None:
            return self.whole_calls.plan(request)
        if sampling.acceleration is None:
            return ImagePlan(
                batch, calls, joins=not sampling.deterministic, entry_limit=partial(self._entry_limit, batch, calls)
            )
        if sampling.acceleration.feature_caching is not None and not self.family.caches_features():
            # Which refuses it.
            return self.whole_calls.plan(request)
        lockstep = LockstepKey(batch, sampling.acceleration, sampling.scheduler, sampling.steps, sampling.strength)
        return ImagePlan(lockstep, calls)

    def _has_slots_for(self, request: ImageRequest) -> bool:
        """Return whether an image's task can be stepped."""
        return request.inputs is None or (request.inputs.mask is None and self._begins_from_images)

    def _entry_limit(self, key: BatchKey, calls: int, waiting: int, overdue: int = 0, /) -> int:
        """Return how many of the waiting images begin a batch together."""
        prepared = self.prepared_batches.known(key)
        # A batch of so few calls measures nothing: a size without a time would stay so, and be chosen for ever.
        if prepared is None or not waiting or calls < _MEASURED:
            return waiting
        return count_entering(0, waiting, prepared.sizes, prepared.times.known, overdue)

    def run(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Make the images of one batch: see :meth:`kubediffusion.worker.engine.Engine.run`."""
        plan = self.plan(requests[0])
        modes: tuple[ForwardMode, ...] = ()
        if isinstance(plan.key, BatchKey):
            key = plan.key
        elif isinstance(plan.key, LockstepKey):
            key = plan.key.batch
            modes = forward_modes(plan.key.acceleration, plan.calls, guided=key.guided)
        else:
            self.whole_calls.run(requests, monitor)
            return
        exactly = repeatable(self._device) if key.deterministic else contextlib.nullcontext()
        with torch.inference_mode(), exactly:
            self._loop(key, modes, monitor).run(requests)

    def _loop(self, key: BatchKey, modes: tuple[ForwardMode, ...], monitor: Monitor) -> EngineLoop:
        """Join what runs one batch."""
        prepared = self.prepared_batches.of(key)
        executor = LocalExecutor(
            prepared,
            ImageFunctions(self.family.key, self._prepare, self._outcome),
            self.decoder,
            self._previewer,
            keeps_features=any(mode.features is not Features.FULL for mode in modes),
            torch_dtype=self._info.torch_dtype,
        )
        hooks = LoopHooks(
            calls=lambda request: self._calls(request.sampling, self.family.key(request)) or request.sampling.steps,
            fallback=lambda request: self.whole_calls.run((request,), monitor),
            between=None if key.deterministic or self.preparation is None else self.preparation.capture,
            interrupt=None if isinstance(monitor, Interruption) else partial(self._interrupt, monitor),
        )
        return EngineLoop(
            scheduler=StepScheduler(prepared, modes=modes, repeats=key.deterministic),
            executor=executor,
            monitor=monitor,
            hooks=hooks,
            # What steps of fewer rows take says nothing of others.
            times=None if modes else prepared.times,
        )

    def _interrupt(self, monitor: Monitor, requests: tuple[ImageRequest, ...]) -> None:
        """Make images of another key while a batch waits: its tensors stay where they are."""
        interruption = Interruption(monitor, requests)
        try:
            self.run(requests, interruption)
        except EngineLostError:
            raise
        except Exception as error:  # noqa: BLE001 - it is the outcome of these images, not of those that wait
            logger.warning("an interruption raised", extra={"images": len(requests), **described(error)})
            check_device(self._device, error)
            interruption.end(failure(error))

    def _outcome(self, request: ImageRequest, pixels: Any, flagged: bool, scheduler: str) -> Outcome:
        warnings = [*self.family.cut(request, self.whole_calls.encoders), *self.family.ignored(request)]
        outcome = self.whole_calls.outcome(request, pixels, flagged, scheduler, warnings)
        return outcome if isinstance(outcome, JobFailure) else replace(outcome, engine=self._info.name)

    def _calls(self, sampling: SamplingParameters, key: BatchKey) -> int | None:
        """Return how often the model is called for an image; None where the pipeline's own call has to make it."""
        wish = self._schedule_of(sampling, key)
        if wish not in self._known_calls:
            try:
                self._known_calls[wish] = self._count_calls(sampling, key)
            except Exception:  # noqa: BLE001 - the pipeline's call meets the same, and tells the job
                self._known_calls[wish] = None
        return self._known_calls[wish]

    def _count_calls(self, sampling: SamplingParameters, key: BatchKey) -> int | None:
        name = sampling.scheduler
        if name not in self._linear:
            trial = replace(sampling, steps=_TRIAL_STEPS, strength=None)
            self._linear[name] = self._read_coefficients(trial, key) is not None
        if not self._linear[name]:
            return None
        scheduler = self._schedulers.get(name)
        arguments = self.family.schedule(scheduler, key, sampling.steps)
        return count_calls(scheduler, arguments, self._begin_step(sampling))

    def _read_coefficients(self, sampling: SamplingParameters, key: BatchKey) -> SchedulerCoefficients | None:
        scheduler = self._schedulers.get(sampling.scheduler)
        arguments = self.family.schedule(scheduler, key, sampling.steps)
        return read_coefficients(
            scheduler, arguments, from_start=self.family.from_start, begin_step=self._begin_step(sampling)
        )

    def _schedule_of(self, sampling: SamplingParameters, key: BatchKey) -> _Schedule:
        return (sampling.scheduler, sampling.steps, key.width, key.height, self._begin_step(sampling))

    def _begin_step(self, sampling: SamplingParameters) -> int | None:
        """Return the first step that is made of an input image; None where there is none."""
        if sampling.strength is None or not isinstance(self.family, ImageToImageFamily):
            return None
        return self.family.begin_step(sampling.steps, sampling.strength)

    def _prepare_batch(self, key: BatchKey) -> PreparedBatch:
        sizes = (1,) if key.deterministic else self._sizes
        example = self._prefetch.run(lambda: self._row(_nothing(SamplingParameters(steps=1, guidance=1)), key))
        slots = SlotTensors(self.family, key, sizes[-1], example, self._adapter_slots)
        graphs = self.graphs and not key.deterministic
        step_runner: StepRunner = CudaGraphManager(slots, self.compiler) if graphs else EagerStepRunner(slots)
        return PreparedBatch(key, slots, step_runner, sizes)

    def _prepare(self, request: ImageRequest, key: BatchKey) -> tuple[SchedulerCoefficients, SlotState] | None:
        self.family.check(key)
        wish = self._schedule_of(request.sampling, key)
        if wish not in self._coefficients:
            self._coefficients[wish] = self._read_coefficients(request.sampling, key)
        coefficients = self._coefficients[wish]
        if coefficients is None:
            return None
        row = self._prefetch.run(lambda: self._row(request, key, coefficients))
        self._adapter_slots.extend(row.added)
        return coefficients, row

    def _row(
        self, request: ImageRequest, key: BatchKey, coefficients: SchedulerCoefficients | None = None
    ) -> SlotState:
        conditions, added = self._conditions(request, key), self._adapters.added(request.adapters)
        scale = 1.0 if coefficients is None else coefficients.initial
        if request.inputs is None or coefficients is None or not isinstance(self.family, ImageToImageFamily):
            return first_row(to_device(self.family.start(request, key), self._device) * scale, conditions, added)
        encoded = self._encode_image(self.family, request.inputs.image, key)
        latents, noise = self.family.start_from_image(request, encoded)
        return first_row(latents * coefficients.kept + to_device(noise, self._device) * scale, conditions, added)

    def _encode_image(self, family: ImageToImageFamily, image: InputImage, key: BatchKey) -> Conditioning:
        """Encode an input image, once for all images that are made of it in one size."""
        known = (image.id, key.width, key.height)
        return self._encoded_images.get(known, lambda: family.encode_image(image, key, self.decoder.vae))

    def _conditions(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        texts = (request.prompt, request.negative_prompt, request.sampling.prompt_weighting)
        known = (*texts, key, tuple(adapter.identity for adapter in self._adapters.of_text(request.adapters)))
        return self._encoded.get(known, lambda: self._adapters.encode(request, key))


def _nothing(sampling: SamplingParameters) -> ImageRequest:
    """Ask for an image of nothing: for the shapes of its tensors."""
    return ImageRequest(ImageId("", 0, 0), "", None, 0, sampling)
