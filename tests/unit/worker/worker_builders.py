"""Values that tests of the worker begin with."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.worker.engine import (
    EngineInfo,
    EntryLimit,
    ImageId,
    ImageOutput,
    ImagePreview,
    ImageRequest,
    Outcome,
    SamplingParameters,
    StepStats,
)
from kubediffusion.worker.settings import Settings

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC)
WORKER = "worker-a"

INFO = EngineInfo(
    name="diffusers",
    pipeline="StableDiffusionPipeline",
    device="cpu",
    torch_dtype="float32",
    revision="sha256:0",
    versions={"torch": "2"},
)


def bound_job(name: str = "job", version: int = 1, **changes: Any) -> GenerationJob:
    """A job as the operator binds it; changes go to the spec, the recipe, the status or the metadata by name."""
    parameters = {"model": "m", "numInferenceSteps": 10, "guidanceScale": 7.5, "seed": 5, "numImages": 1}
    parameters |= changes.pop("parameters", {})
    status = {"phase": "Scheduled", "worker": WORKER, "attempt": 1, "parameters": parameters, "queuedAt": NOW}
    status |= changes.pop("status", {})
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    metadata |= {"creationTimestamp": NOW, **changes.pop("metadata", {})}
    return GenerationJob.from_wire({"metadata": metadata, "spec": {"prompt": "a cat", **changes}, "status": status})


def picture(color: tuple[int, int, int] = (1, 2, 3), **changes: Any) -> ImageOutput:
    """A small picture of one color."""
    fields: dict[str, Any] = {"width": 8, "height": 4, "rgb": bytes(color) * 32, "scheduler": "DDIMScheduler"}
    return ImageOutput(**fields | changes)


def settings(folder: Path, **spec: Any) -> Settings:
    """Settings of a worker whose model lies in a folder."""
    return Settings(
        pod_name=WORKER,
        pod_namespace="ns",
        model_name="m",
        bucket="b",
        torch_threads=1,
        spec={"source": {"path": str(folder)}, **spec},
    )


def image_request(index: int = 0, prompt: str = "a cat", negative: str | None = None, **shape: Any) -> ImageRequest:
    """One image to make; the seed is its index."""
    return ImageRequest(
        ImageId("uid", 1, index), prompt, negative, index, SamplingParameters(**({"steps": 3, "guidance": 7.5} | shape))
    )


def code_of(outcome: Outcome) -> str:
    """Return the code of an outcome that is a failure."""
    assert isinstance(outcome, JobFailure)
    return outcome.code


def levels_apart(a: Outcome, b: Outcome) -> int:
    """Return the largest difference of two pictures of one size that show something, in levels of 255."""
    assert isinstance(a, ImageOutput), a
    assert isinstance(b, ImageOutput), b
    assert (a.width, a.height) == (b.width, b.height)
    left, right = (np.frombuffer(picture.rgb, np.uint8).astype(int) for picture in (a, b))
    # Two blank pictures agree, and show nothing of whether they should.
    assert min(np.ptp(left), np.ptp(right)) > 32
    return int(np.abs(left - right).max())


class Recorder:
    """A monitor that remembers; at given steps an image is unwanted, others join, or one has waited long enough."""

    def __init__(
        self,
        unwanted: dict[int, int] | None = None,
        joining: dict[int, tuple[ImageRequest, ...]] | None = None,
        due: dict[int, int] | None = None,
        urgent: dict[int, tuple[ImageRequest, ...]] | None = None,
        asked: Collection[int] = (),
        priorities: dict[int, int] | None = None,
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.steps: dict[int, list[int]] = {}
        self.previews: dict[int, list[ImagePreview]] = {}
        self.loads: list[StepStats] = []
        self.offers: list[tuple[int, int]] = []
        self._unwanted = unwanted or {}
        self._joining = joining or {}
        self._due = due or {}
        self._urgent = urgent or {}
        self._asked = asked
        self._priorities = priorities or {}

    def wanted(self, image_id: ImageId) -> bool:
        limit = self._unwanted.get(image_id.index)
        return limit is None or len(self.steps.get(image_id.index, [])) < limit

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        assert step <= total
        self.steps.setdefault(image_id.index, []).append(step)

    def preview_due(self, image_id: ImageId) -> bool:
        return image_id.index in self._asked

    def previewed(self, image_id: ImageId, preview: ImagePreview) -> None:
        self.previews.setdefault(image_id.index, []).append(preview)

    def joining_images(self, room: int, calls: int, entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        self.offers.append((entry_limit(room), calls))
        return self._joining.pop(len(self.loads), ())

    def interrupting_images(self, _left: int, _calls: int, _parkable: object) -> tuple[ImageRequest, ...]:
        return self._urgent.pop(len(self.loads), ())

    def priority(self, image_id: ImageId) -> int:
        return self._priorities.get(image_id.index, 0)

    def overdue(self, image_id: ImageId) -> bool:
        return len(self.loads) >= self._due.get(image_id.index, sys.maxsize)

    def count_step(self, load: StepStats) -> None:
        self.loads.append(load)

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        assert image_id.index not in self.outcomes
        self.outcomes[image_id.index] = outcome

    def image(self, index: int) -> ImageOutput:
        """Return an image that was made."""
        made = self.outcomes[index]
        assert isinstance(made, ImageOutput), made
        return made

    def failure(self, index: int) -> JobFailure:
        """Return why an image was not made."""
        outcome = self.outcomes[index]
        assert isinstance(outcome, JobFailure), outcome
        return outcome
