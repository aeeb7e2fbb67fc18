"""Values that tests of the worker begin with."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.worker.engine import Admit, EngineInfo, ImageTask, Load, Outcome, Picture, Shape, Ticket
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


def picture(color: tuple[int, int, int] = (1, 2, 3), **changes: Any) -> Picture:
    """A small picture of one color."""
    return Picture(**({"width": 8, "height": 4, "rgb": bytes(color) * 32, "scheduler": "DDIMScheduler"} | changes))


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


def image_task(index: int = 0, prompt: str = "a cat", negative: str | None = None, **shape: Any) -> ImageTask:
    """One image to make; the seed is its index."""
    return ImageTask(Ticket("uid", 1, index), prompt, negative, index, Shape(**({"steps": 3, "guidance": 7.5} | shape)))


def levels_apart(a: Picture, b: Picture) -> int:
    """The largest difference of two pictures of one size, in levels of 255."""
    left, right = (np.frombuffer(picture.rgb, np.uint8).astype(int) for picture in (a, b))
    return int(np.abs(left - right).max())


class Recorder:
    """A monitor that remembers; at given steps an image is unwanted, others join, or one has waited long enough."""

    def __init__(
        self,
        unwanted: dict[int, int] | None = None,
        joining: dict[int, tuple[ImageTask, ...]] | None = None,
        due: dict[int, int] | None = None,
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.steps: dict[int, list[int]] = {}
        self.loads: list[Load] = []
        self.offers: list[tuple[int, int]] = []
        self._unwanted = unwanted or {}
        self._joining = joining or {}
        self._due = due or {}

    def wanted(self, ticket: Ticket) -> bool:
        limit = self._unwanted.get(ticket.index)
        return limit is None or len(self.steps.get(ticket.index, [])) < limit

    def stepped(self, ticket: Ticket, step: int, total: int) -> None:
        assert step <= total
        self.steps.setdefault(ticket.index, []).append(step)

    def more(self, room: int, calls: int, admit: Admit) -> tuple[ImageTask, ...]:
        self.offers.append((admit(room), calls))
        return self._joining.pop(len(self.loads), ())

    def overdue(self, ticket: Ticket) -> bool:
        return len(self.loads) >= self._due.get(ticket.index, sys.maxsize)

    def ran(self, load: Load) -> None:
        self.loads.append(load)

    def ended(self, ticket: Ticket, outcome: Outcome) -> None:
        assert ticket.index not in self.outcomes
        self.outcomes[ticket.index] = outcome
