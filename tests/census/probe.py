"""Loads one tiny model as the worker loads it, and tells what the worker makes of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from census import registry
from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine import (
    BadModelError,
    ClosedBatchMonitor,
    Engine,
    ImageId,
    ImageOutput,
    ImageRequest,
    SamplingParameters,
)
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.families.calls import CallPlan
from kubediffusion.worker.settings import Settings

STEPS = 2
GUIDANCE = 4.0
TEXTS = (("a photo of a cat, and of nothing else", None), ("a dog", ""), ("two birds", "a tree"))
"""Prompts that differ in length, with no negative prompt, an empty one and one."""


@dataclass
class Finding:
    """What was found of a model.

    Attributes:
        engine: What ran it: ``continuous`` or ``diffusers``; empty where it was refused.
        refused: Why it was not loaded.
        failed: How an image failed.
        own: Levels of 255 that images differ from diffusers' own call by, at most.
        beside: Levels by which an image beside others differs from the same one alone, at most.
        repeats: Whether the same request, deterministic, gave the same bytes twice.
        progress: Whether steps were told, up to the last.
        cancels: Whether an image that nobody wants ended at its first step.
        warnings: What was said of the image with a negative prompt.
    """

    engine: str = ""
    refused: str = ""
    failed: str = ""
    own: int = 0
    beside: int = 0
    repeats: bool = True
    progress: bool = True
    cancels: bool = True
    warnings: list[str] = field(default_factory=list)


class Watcher(ClosedBatchMonitor):
    """A monitor that remembers, and wants some images only until their first step."""

    def __init__(self, unwanted: Iterable[ImageId] = ()) -> None:
        self.outcomes: dict[ImageId, Any] = {}
        self.steps: dict[ImageId, list[tuple[int, int]]] = {}
        self._unwanted = set(unwanted)

    def wanted(self, image_id: ImageId) -> bool:
        return image_id not in self._unwanted or not self.steps.get(image_id)

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        self.steps.setdefault(image_id, []).append((step, total))

    def ended(self, image_id: ImageId, outcome: Any) -> None:
        self.outcomes[image_id] = outcome


def settings(folder: Path) -> Settings:
    """Settings of a worker whose model lies in a folder."""
    return Settings(
        pod_name="census",
        pod_namespace="census",
        model_name="census",
        bucket="census",
        torch_threads=1,
        spec={"source": {"path": str(folder)}, "workers": {"maxBatchSize": 4}},
    )


def request(index: int, row: registry.Model, **shape: Any) -> ImageRequest:
    """Ask for one of the images that every model makes."""
    prompt, negative = TEXTS[index]
    width, height = row.sizes[0]
    wish = {"steps": STEPS, "guidance": GUIDANCE, "width": width, "height": height} | shape
    return ImageRequest(ImageId("census", 1, index), prompt, negative, index, SamplingParameters(**wish))


def levels(left: ImageOutput, right: np.ndarray[Any, Any]) -> int:
    """Return the largest difference of two images, in levels of 255; 255 where their sizes differ, or one is blank."""
    if (left.height, left.width) != right.shape[:2]:
        return 255
    pixels = np.frombuffer(left.rgb, np.uint8).reshape(left.height, left.width, 3).astype(int)
    if not (np.ptp(pixels) and np.ptp(right[..., :3])):
        return 255
    return int(np.abs(pixels - right[..., :3].astype(int)).max())


def pixels(output: ImageOutput) -> np.ndarray[Any, Any]:
    """Pixels of an image, ``[height, width, 3]``."""
    return np.frombuffer(output.rgb, np.uint8).reshape(output.height, output.width, 3)


def own_call(pipeline: Any, plan: CallPlan, wish: ImageRequest) -> np.ndarray[Any, Any]:
    """Have diffusers make an image without the worker: ``[height, width, channels]``, 0 to 255."""
    torch.manual_seed(wish.seed)
    arguments = plan.arguments((wish,)) | {"output_type": "np"}
    if "generator" in plan.parameters:
        arguments["generator"] = [torch.Generator().manual_seed(wish.seed)]
    with torch.inference_mode():
        made = np.asarray(getattr(pipeline(**arguments), plan.images)[0])
    return made if made.dtype == np.uint8 else (made * 255).round().clip(0, 255).astype(np.uint8)


def run(engine: Engine, *requests: ImageRequest, unwanted: Iterable[ImageId] = ()) -> Watcher:
    """Have the engine make images."""
    watcher = Watcher(unwanted)
    engine.run(requests, watcher)
    return watcher


def beside(engine: Engine, wish: ImageRequest) -> ImageOutput:
    """Make an image beside another of a longer prompt, where the engine lets both into a batch."""
    negative = wish.negative_prompt and wish.negative_prompt + " and a hill"
    mate = replace(
        wish, id=ImageId("census", 1, len(TEXTS)), prompt=f"{wish.prompt}, as it is", negative_prompt=negative, seed=9
    )
    # The worker gives an engine images of one key at a time.
    together = [wish, mate] if engine.plan(mate).key == engine.plan(wish).key else [wish]
    made: ImageOutput = run(engine, *together).outcomes[wish.id]
    return made


def probe(name: str) -> Finding:
    """Load a row's model, run it alone and beside others, and compare."""
    row, folder = registry.MODELS[name], registry.folder(name)
    warnings.simplefilter("ignore")
    try:
        engine = load_engine(settings(folder))
    except BadModelError as refusal:
        return Finding(refused=str(refusal).splitlines()[0])
    finding = Finding()
    requests = [request(index, row) for index in range(len(TEXTS))]
    alone = {wish.id: run(engine, wish) for wish in requests}
    outcomes = {image_id: watcher.outcomes[image_id] for image_id, watcher in alone.items()}
    for outcome in outcomes.values():
        if isinstance(outcome, JobFailure):
            return Finding(engine=engine.info.name, failed=outcome.message.splitlines()[0])
    first, last = requests[0].id, requests[-1].id
    finding.engine = outcomes[first].engine or engine.info.name
    finding.warnings = sorted({warning for outcome in outcomes.values() for warning in outcome.warnings})
    steps = alone[first].steps.get(first, [])
    finding.progress = bool(steps) and steps[-1] == (STEPS, STEPS) and steps == sorted(steps)
    finding.beside = max(levels(beside(engine, wish), pixels(outcomes[wish.id])) for wish in requests)
    again = [run(engine, request(0, row, deterministic=True)).outcomes[first].rgb for _ in range(2)]
    finding.repeats = again[0] == again[1]
    finding.cancels = last not in run(engine, requests[-1], unwanted=[last]).outcomes
    pipeline = load_reference(folder)
    plan = CallPlan.of(type(pipeline))
    made = [own_call(pipeline, plan, wish) for wish in requests]
    finding.own = max(levels(outcomes[wish.id], image) for wish, image in zip(requests, made, strict=True))
    return finding


def load_reference(folder: Path) -> Any:
    """Load a folder by diffusers alone."""
    from kubediffusion.worker.sources import read_index

    missing = {name: None for name, value in read_index(folder).items() if value == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **missing)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, probe(argument))  # noqa: T201
