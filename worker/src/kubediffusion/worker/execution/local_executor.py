"""Executes plans on one device: slots as tensors, prepared images, decoding beside the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine import BatchKey, ImageId, ImagePreview, ImageRequest, Outcome, described
from kubediffusion.worker.engine.plan import SlotCall, StepFailure, StepPlan, StepResult, StepTime
from kubediffusion.worker.engine.throughput import StepTimes
from kubediffusion.worker.execution.accelerator import StepPacer, reserved_memory
from kubediffusion.worker.execution.coefficients import SchedulerCoefficients
from kubediffusion.worker.execution.decoding import Decoder, Decoding
from kubediffusion.worker.execution.faults import check_device, failure, is_out_of_memory, not_numbers
from kubediffusion.worker.execution.previewing import Previewer
from kubediffusion.worker.execution.slots import SlotState, SlotTensors, control_row
from kubediffusion.worker.execution.stepping import StepRunner

logger = logging.getLogger(__name__)


@dataclass
class PreparedBatch:
    """What is prepared once for images of one key.

    Attributes:
        key: What all images share.
        batch: The tensors.
        step_runner: Makes steps of them.
        sizes: Batch sizes that may be computed, smallest first.
        times: What steps of each size take; nothing is known of them on the CPU.
    """

    key: BatchKey
    batch: SlotTensors
    step_runner: StepRunner
    sizes: tuple[int, ...]
    times: StepTimes = field(default_factory=StepTimes)

    @property
    def plain(self) -> bool:
        """Whether it is always computed in the very same way."""
        return self.key.deterministic


@dataclass(eq=False)
class _ImageState:
    """An image that a plan may name.

    Attributes:
        request: What is asked for.
        key: Its own, which says its size.
        coefficients: What its scheduler does, once it is ready.
        state: Its row while it is ready and has no slot.
        latents: What is to be decoded, ``[1, ...]``.
    """

    request: ImageRequest
    key: BatchKey
    coefficients: SchedulerCoefficients | None = None
    state: SlotState | None = None
    latents: torch.Tensor | None = None


@dataclass
class _Readiness:
    """Which of some images are ready.

    Attributes:
        ready: Those that are.
        refused: Those that cannot be, and why.
        deferred: Those for which there was no memory beside others, or that come after one, in order.
        unsteppable: Those that only the pipeline's own call can make.
    """

    ready: list[ImageId] = field(default_factory=list)
    refused: list[tuple[ImageId, JobFailure]] = field(default_factory=list)
    deferred: list[ImageId] = field(default_factory=list)
    unsteppable: list[ImageId] = field(default_factory=list)


KeyOf = Callable[[ImageRequest], BatchKey]
"""Returns an image's own key: its size may differ from that of its batch's key."""

Prepare = Callable[[ImageRequest, BatchKey], tuple[SchedulerCoefficients, SlotState] | None]
"""Encodes an image's prompts, makes its noise and finds its coefficients, given its own key; None when its scheduler is
not linear."""

MakeOutcome = Callable[[ImageRequest, NDArray[np.uint8], bool, str], Outcome]
"""Makes an outcome of an image's pixels; told whether they are flagged, and the scheduler's class."""


@dataclass(frozen=True)
class ImageFunctions:
    """What the engine knows of images, and the executor asks for.

    Attributes:
        key_of: Returns the own key of an image.
        prepare: Makes an image ready to enter.
        make_outcome: Makes outcomes.
    """

    key_of: KeyOf
    prepare: Prepare
    make_outcome: MakeOutcome


class LocalExecutor:
    """Executes the plans of one batch: see :class:`kubediffusion.worker.engine.step_executor.StepExecutor`.

    Args:
        prepared: What is prepared.
        functions: Of the images.
        decoder: Makes pixels.
        previewer: Makes previews.
        keeps_features: Whether what deep layers gave goes with an image that moves.
        torch_dtype: Name of the numbers that weights are held in, for messages.
    """

    def __init__(
        self,
        prepared: PreparedBatch,
        functions: ImageFunctions,
        decoder: Decoder,
        previewer: Previewer,
        *,
        keeps_features: bool,
        torch_dtype: str,
    ) -> None:
        self._prepared = prepared
        self._functions = functions
        self._decoder = decoder
        self._previewer = previewer
        self._keeps_features = keeps_features
        self._torch_dtype = torch_dtype
        self._device = prepared.batch.device
        self._pacer = StepPacer(self._device)
        self._images: dict[ImageId, _ImageState] = {}
        self._decodings: list[tuple[_ImageState, Decoding]] = []
        self._launched: tuple[int, bool] | None = None
        self._size = 0
        self._memory: int | None = None
        prepared.batch.clear()

    def accept(self, requests: Sequence[ImageRequest]) -> None:
        """Keep requests, which plans then name by id alone."""
        for request in requests:
            self._images[request.id] = _ImageState(request, self._functions.key_of(request))

    def discard(self, images: Sequence[ImageId]) -> None:
        """Forget images that no plan names any more."""
        for image in images:
            self._images.pop(image, None)

    def execute(self, plan: StepPlan) -> StepResult:
        """Execute a plan: see :meth:`kubediffusion.worker.engine.step_executor.StepExecutor.execute`."""
        self._vacate(plan)
        undecoded = self._decode_all(plan.decodes)
        entering = self._make_ready([image for _, image in plan.entries], plan)
        for slot, image in plan.entries:
            if image in entering.ready:
                self._enter(slot, self._images[image])
        if self._size != plan.size:
            self._size, self._memory = plan.size, reserved_memory(self._device)
        entered = {image for _, image in plan.entries}
        calls = [call for call in plan.calls if call.image not in entered or call.image in entering.ready]
        result = replace(
            self._step(plan, calls) if calls else StepResult(),
            refused=tuple(entering.refused),
            deferred=tuple(entering.deferred),
            unsteppable=tuple(entering.unsteppable),
        )
        if not result.stepped:
            return replace(result, undecoded=undecoded)
        undecoded += self._decode_all([call.image for call in calls if call.last])
        prefetch = self._make_ready(plan.prefetch, plan)
        return replace(
            result,
            refused=(*result.refused, *prefetch.refused),
            unsteppable=(*result.unsteppable, *prefetch.unsteppable),
            prefetched=tuple(prefetch.ready),
            undecoded=undecoded,
        )

    def _enter(self, slot: int, image: _ImageState) -> None:
        if image.state is None:
            raise RuntimeError("an image enters that was not made ready")
        self._prepared.batch.enter(slot, image.state)
        image.state = None

    def _step(self, plan: StepPlan, calls: Sequence[SlotCall]) -> StepResult:
        """Launch a step, and take the latents of the images for which it was the last."""
        batch = self._prepared.batch
        try:
            batch.steer({call.slot: self._control(call.image, call.call) for call in calls}, plan.size)
            mode = replace(plan.mode, adapters=batch.put_adapters(plan.size))
            compiled = self._prepared.step_runner.of(mode).run(plan.size)
            seconds = self._pacer.step()
        except Exception as error:  # noqa: BLE001 - what the pipeline raises is the outcome of its images
            logger.warning("a step raised", extra={"images": len(calls), **described(error)})
            check_device(self._device, error)
            if is_out_of_memory(error):
                self._prepared.step_runner.evict()
            return StepResult(failure=StepFailure(failure(error), is_out_of_memory(error)))
        time = None
        if seconds is not None and self._launched is not None:
            time = StepTime(self._launched[0], seconds, self._launched[1])
        self._launched = (plan.size, compiled)
        if plan.previews:
            self._begin_previews(plan.previews, calls)
        done = [call for call in calls if call.last]
        for call in done:
            self._images[call.image].latents = batch.latents(call.slot)
        for call in done:
            batch.leave(call.slot)
        return StepResult(stepped=True, compiled=compiled, time=time, memory=self._memory)

    def _begin_previews(self, images: Sequence[ImageId], calls: Sequence[SlotCall]) -> None:
        for call in calls:
            known = self._images[call.image]
            if call.image in images and known.coefficients is not None and self._previewer.possible:
                weights = known.coefficients.estimates[call.call].tolist()
                latents = partial(self._prepared.batch.estimate, call.slot, *weights)
                self._previewer.begin(call.image, latents, known.key)

    def previews(self) -> list[tuple[ImageId, ImagePreview]]:
        """Return the previews that are ready, each once; does not wait."""
        return self._previewer.finished()

    def _decode_all(self, images: Sequence[ImageId]) -> tuple[tuple[ImageId, StepFailure], ...]:
        """Begin to decode images, and return those that cannot be decoded, each with its failure."""
        failures = [(image, self._decode(self._images[image])) for image in images]
        return tuple((image, failed) for image, failed in failures if failed is not None)

    def finished(self, *, wait: bool) -> list[tuple[ImageId, Outcome]]:
        """Return the images whose pixels are ready: see :class:`.StepExecutor`."""
        ready = [pair for pair in self._decodings if wait or pair[1].ready]
        self._decodings = [pair for pair in self._decodings if pair not in ready]
        self.discard([image.request.id for image, _ in ready])
        return [(image.request.id, self._outcome(image, decoding)) for image, decoding in ready]

    def _vacate(self, plan: StepPlan) -> None:
        batch = self._prepared.batch
        for slot in plan.frees:
            batch.leave(slot)
        for slot, image in plan.parks:
            self._images[image].state = batch.row(slot, features=self._keeps_features).on_host()
            batch.leave(slot)
        for source, target in plan.moves:
            batch.enter(target, batch.row(source, features=self._keeps_features))
            batch.leave(source)

    def _control(self, image: ImageId, call: int) -> list[float]:
        known = self._images[image]
        if known.coefficients is None:
            raise RuntimeError("an image is stepped that was not made ready")
        return control_row(known.coefficients, call, known.request.sampling.guidance)

    def _make_ready(self, images: Sequence[ImageId], plan: StepPlan) -> _Readiness:
        """Prepare, in order, those images that are not ready yet."""
        entering = {image for _, image in plan.entries}
        beside = any(call.image not in entering for call in plan.calls)
        found = _Readiness()
        for place, image in enumerate(images):
            known = self._images[image]
            try:
                if known.state is None:
                    prepared = self._functions.prepare(known.request, known.key)
                    if prepared is None:
                        found.unsteppable.append(image)
                        continue
                    known.coefficients, known.state = prepared
                found.ready.append(image)
            except JobFailure as refusal:
                found.refused.append((image, refusal))
            except Exception as error:  # noqa: BLE001 - what encoding raises is the outcome of this image
                logger.warning("an image cannot begin", extra=described(error))
                check_device(self._device, error)
                if is_out_of_memory(error) and (beside or found.ready):
                    # It may fit when another has left.
                    found.deferred = list(images[place:])
                    return found
                found.refused.append((image, failure(error)))
        return found

    def _decode(self, image: _ImageState) -> StepFailure | None:
        """Begin to decode an image, and return the failure when it cannot be decoded, else None."""
        latents, plain = image.latents, self._prepared.plain
        if latents is None:
            raise RuntimeError("an image is decoded that is not done")
        while True:
            try:
                decoding = self._decoder.begin(latents, image.key, plain=plain)
            except Exception as error:  # noqa: BLE001 - what the VAE raises is the outcome of its image
                logger.warning("an image cannot be decoded", extra=described(error))
                check_device(self._device, error)
                if is_out_of_memory(error) and self._decoder.evict():
                    # What graphs held may suffice; the batch need not pay for it.
                    plain = True
                    continue
                if is_out_of_memory(error):
                    self._prepared.step_runner.evict()
                return StepFailure(failure(error), is_out_of_memory(error))
            image.latents = None
            self._decodings.append((image, decoding))
            return None

    def _outcome(self, known: _ImageState, decoding: Decoding) -> Outcome:
        try:
            pixels, flagged = self._decoder.finish(decoding)
            if pixels is None:
                return not_numbers(self._torch_dtype)
            scheduler = "" if known.coefficients is None else known.coefficients.scheduler
            return self._functions.make_outcome(known.request, pixels, flagged, scheduler)
        except Exception as error:  # noqa: BLE001 - the outcome of this image
            logger.warning("an image cannot be finished", extra=described(error))
            check_device(self._device, error)
            return failure(error)
