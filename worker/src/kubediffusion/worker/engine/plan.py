"""The step scheduler's plans and their results: frozen values that can be pickled. No tensor, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine.forward_mode import FULL, ForwardMode
from kubediffusion.worker.engine.request import ImageId


@dataclass(frozen=True)
class SlotCall:
    """One image's part in a step.

    Attributes:
        slot: Where the image is.
        image: The image.
        call: Number of the model's call for it, from 0.
        last: Whether it is done after this one.
    """

    slot: int
    image: ImageId
    call: int
    last: bool


@dataclass(frozen=True)
class StepPlan:
    """One step of a batch, in the order of its attributes.

    Attributes:
        frees: Slots of images that nobody wants any more.
        parks: Slots whose images are kept in the host's memory until they enter again, and the images.
        decodes: Images that are done and could not be decoded when they were.
        moves: From which slot to which an image moves; the target is empty.
        entries: Slots and the images that enter them. Those that are not ready are made ready first.
        size: Slots that are computed, empty ones included.
        mode: What the call computes.
        calls: The images that are computed.
        prefetch: Images to make ready while the step runs, in order.
        previews: Images of which a preview is made after the step.
    """

    frees: tuple[int, ...] = ()
    parks: tuple[tuple[int, ImageId], ...] = ()
    decodes: tuple[ImageId, ...] = ()
    moves: tuple[tuple[int, int], ...] = ()
    entries: tuple[tuple[int, ImageId], ...] = ()
    size: int = 0
    mode: ForwardMode = FULL
    calls: tuple[SlotCall, ...] = ()
    prefetch: tuple[ImageId, ...] = ()
    previews: tuple[ImageId, ...] = ()


@dataclass(frozen=True)
class StepFailure:
    """What a computation raised.

    Attributes:
        failure: The outcome of an image that meets it alone.
        memory: Whether the device's memory did not suffice.
    """

    failure: JobFailure
    memory: bool = False


@dataclass(frozen=True)
class StepTime:
    """How long an earlier step took, once that is known.

    Attributes:
        size: Slots that it computed.
        seconds: On the device.
        compiled: Whether it ran compiled.
    """

    size: int
    seconds: float
    compiled: bool


@dataclass(frozen=True)
class StepResult:
    """The result of a plan.

    Attributes:
        stepped: Whether the step was launched.
        failure: What the step raised.
        compiled: Whether it ran compiled.
        time: How long an earlier step took; None on a device that is not measured.
        memory: Bytes of the device's memory that are reserved; None on the CPU.
        refused: Images that could not be made ready, and why.
        deferred: Images for which there was no memory beside others, in order.
        unsteppable: Images that only the pipeline's own call can make.
        prefetched: Images that were made ready while the step ran, in order.
        undecoded: Images that are done and could not be decoded, and why.
    """

    stepped: bool = False
    failure: StepFailure | None = None
    compiled: bool = False
    time: StepTime | None = None
    memory: int | None = None
    refused: tuple[tuple[ImageId, JobFailure], ...] = ()
    deferred: tuple[ImageId, ...] = ()
    unsteppable: tuple[ImageId, ...] = ()
    prefetched: tuple[ImageId, ...] = ()
    undecoded: tuple[tuple[ImageId, StepFailure], ...] = ()
