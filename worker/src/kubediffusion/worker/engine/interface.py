"""What the worker asks of an engine, and what an engine answers: typed values, no torch.

The unit of work is one image. An engine is given a batch of images that may run together and tells a monitor about each
of them as it goes: its steps, and its end. That fits a static batch through a pipeline's own call, where all images end
together, and an engine that fills the slots of a running batch between two steps: it asks the monitor for more.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.worker.engine.adapters import AdapterWeights
from kubediffusion.worker.engine.request import ImageId, ImagePreview, ImageRequest, Outcome


class BadModelError(Exception):
    """The model cannot be loaded, and a restart would not change that. The message says why and names the remedy."""


class EngineLostError(Exception):
    """The engine cannot be used any more, for example after a CUDA error: only a new process helps."""


class EntryLimit(Protocol):
    """A rule that decides how many waiting images may enter a batch. It may be called from any thread."""

    def __call__(self, waiting: int, overdue: int = 0, /) -> int:
        """Return how many of the waiting images may enter.

        Args:
            waiting: Images that wait.
            overdue: How many of them have waited long enough, first of all: they enter while there is a slot.
        """


def no_limit(waiting: int, _overdue: int = 0, /) -> int:
    """Admit all who wait."""
    return waiting


@dataclass(frozen=True)
class ImagePlan:
    """How an engine would run an image.

    Attributes:
        key: What images must have in common to run in one batch.
        calls: How often the model is called for one image.
        joins: Whether such images may enter a batch that is running.
        entry_limit: How many of them are to begin a batch together, where others may join later.
    """

    key: Hashable
    calls: int
    joins: bool = False
    entry_limit: EntryLimit = field(default=no_limit, compare=False, repr=False)


@dataclass(frozen=True)
class Parkable:
    """An image in a slot of a running batch that may be parked for a more urgent one.

    Attributes:
        priority: Its job's, as it is now.
        left: Calls of the model that it has left.
    """

    priority: int
    left: int


@dataclass(frozen=True)
class StepStats:
    """A batch during one of its steps.

    Attributes:
        images: Images in it.
        size: Slots that are computed, empty ones included.
        limit: The most slots that the engine uses; lower than configured after the device's memory ran out.
        compiled: Whether the step runs compiled.
        memory: Bytes of the device's memory that are reserved; None on the CPU.
    """

    images: int
    size: int
    limit: int
    compiled: bool = False
    memory: int | None = None


class Monitor(Protocol):
    """Receives an engine's reports, and gives it the images that join or interrupt what runs.

    Every method is called from the engine's thread and must not block.
    """

    def wanted(self, image_id: ImageId) -> bool:
        """Return whether the image is still wanted. The engine calls this after every step."""

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        """Note that ``step`` of ``total`` denoising steps are done."""

    def preview_due(self, image_id: ImageId) -> bool:
        """Return whether somebody asks for a preview of an image, who has had none lately. Asked before every step."""

    def previewed(self, image_id: ImageId, preview: ImagePreview) -> None:
        """Note what an image will look like."""

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        """Note the end of an image. An image that is no longer wanted may end without it."""

    def joining_images(self, room: int, calls: int, entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        """Return images that join the running batch: those that were found since the last call.

        Others are looked for meanwhile, for the next call. What is not called for when the batch ends runs in the next.

        Args:
            room: Images for which there will be a slot soon.
            calls: Calls of the model, from when they enter, until the last of the batch's images is done.
            entry_limit: How many of those who wait are to take these slots.
        """

    def interrupting_images(self, left: int, calls: int, parkable: tuple[Parkable, ...]) -> tuple[ImageRequest, ...]:
        """Return images of another key that run, to their end, before the next step of the running batch.

        Others are looked for meanwhile, for a later call. So are images of the batch's own key that are more urgent
        than some of its images, which a later :meth:`joining_images` returns.

        Args:
            left: Calls of the model until the last of the batch's images is done.
            calls: Calls that the longest of them needs in all.
            parkable: Images of the batch that may be parked.
        """

    def priority(self, image_id: ImageId) -> int:
        """Return the priority of an image's job, as it is now. Asked before every step."""

    def overdue(self, image_id: ImageId) -> bool:
        """Return whether a returned image has waited so long that it enters even where the batch then does less.

        Asked before a step, of those who have no slot.
        """

    def count_step(self, load: StepStats) -> None:
        """Note that a batch makes one step."""


class ClosedBatchMonitor(Monitor):
    """A monitor of one batch, as it was handed over: all its images are wanted, and none joins or interrupts it.

    Subclasses say what becomes of the images that end.
    """

    def wanted(self, _image_id: ImageId) -> bool:
        """Return True: every image is wanted."""
        return True

    def stepped(self, _image_id: ImageId, _step: int, _total: int) -> None:
        """Take no notice."""

    def preview_due(self, _image_id: ImageId) -> bool:
        """Return False: nobody asks for a preview."""
        return False

    def previewed(self, _image_id: ImageId, _preview: ImagePreview) -> None:
        """Take no notice."""

    def joining_images(self, _room: int, _calls: int, _entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        """Return no images: none joins."""
        return ()

    def interrupting_images(self, _left: int, _calls: int, _parkable: tuple[Parkable, ...]) -> tuple[ImageRequest, ...]:
        """Return no images: none interrupts."""
        return ()

    def priority(self, _image_id: ImageId) -> int:
        """Return 0: all images are alike."""
        return 0

    def overdue(self, _image_id: ImageId) -> bool:
        """Return False: no image waits for a slot longer than the others."""
        return False

    def count_step(self, _load: StepStats) -> None:
        """Take no notice."""


@dataclass(frozen=True)
class EngineInfo:
    """What ran the images, for the recipe.

    Attributes:
        name: The engine.
        pipeline: The diffusers pipeline class.
        device: Kind of device, for example ``cpu`` or ``NVIDIA H100``.
        torch_dtype: Numbers that the weights are held in.
        revision: Commit or content hash of the model.
        versions: Versions of the libraries that decide pixels, by package name.
        facts: What jobs and the operator should know of the pipeline; None where the engine knows nothing of it.
        quantization: Components whose weights are held in fewer bits, and how, by name.
        memory: What is done to save the device's memory, as ``spec.memory`` names it.
        adapter_rank: The most rank that the adapters of one image have together; 0 where it takes none.
    """

    name: str
    pipeline: str
    device: str
    torch_dtype: str
    revision: str
    versions: dict[str, str]
    facts: PipelineFacts | None = None
    quantization: dict[str, str] = field(default_factory=dict)
    memory: tuple[str, ...] = ()
    adapter_rank: int = 0


class Engine(Protocol):
    """Makes images. Runs in one thread only."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return how an image runs. It is called often, from any thread, and while a batch runs."""

    def read_adapter(self, file: Path) -> AdapterWeights:
        """Read an adapter's file, and check that it fits the model. It is called from any thread, beside all else.

        Raises:
            AdapterRefusedError: It does not, or the engine takes no adapters.
            OSError: The file cannot be read.
        """

    def prepare_while_idle(self, wake: Callable[[], None]) -> bool:
        """Spend about a second, while no image waits, on preparation that makes later images faster.

        Args:
            wake: Called, from any thread, when another such moment would be of use later.

        Returns:
            Whether another would be of use now.

        Raises:
            EngineLostError: The process must end.
        """

    def run(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Make the images of one batch, all of one key, and report to the monitor how each ends.

        Returns when every image has ended or is no longer wanted.

        Raises:
            EngineLostError: The process must end; images that have not ended were not made.
        """


def described(error: BaseException) -> dict[str, object]:
    """Return an error's type and traceback for a log line, without its text, which may quote a prompt."""
    return {"error": type(error).__name__, "traceback": traceback.format_tb(error.__traceback__)}
