"""Previews: what they show, what they cost, and when there is one."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from kubediffusion.resources.meta import PREVIEW_REQUESTED_AT_ANNOTATION, PREVIEW_SECONDS
from kubediffusion.resources.storage import ImageStorage, Preview, StorageError
from kubediffusion.resources.testing import present
from kubediffusion.worker.assignments import Assignment, Binding
from kubediffusion.worker.engine import ImageOutput, ImagePreview
from kubediffusion.worker.engine.forward_mode import FULL
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.previewing import Previewer
from kubediffusion.worker.execution.slots import SlotTensors
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.previews import AFTER_FAILURE, PERIOD, Previews
from kubediffusion.worker.testing import save_stable_diffusion
from unit.worker.continuous_engines import load, pictures, run
from unit.worker.worker_builders import bound_job, image_request

# diffusers asks NumPy 2 for arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def embedded() -> Iterator[ContinuousEngine]:
    """The embedded model, on one core."""
    threads = torch.get_num_threads()
    yield load(MODELS / "kubediffusion-emoji")
    torch.set_num_threads(threads)


def colors(preview: ImagePreview) -> Any:
    return np.frombuffer(preview.rgb, np.uint8).reshape(preview.height, preview.width, 3).astype(int)


def reduced(image: ImageOutput, preview: ImagePreview) -> Any:
    """Return an image in the size of its preview."""
    whole = Pillow.frombytes("RGB", (image.width, image.height), image.rgb)
    return np.asarray(whole.resize((preview.width, preview.height), Pillow.Resampling.BOX)).astype(int)


@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler"])
def test_previews_come_to_look_like_the_image_and_change_nothing(
    embedded: ContinuousEngine, scheduler: str | None
) -> None:
    request = image_request(prompt="a fox in the snow", steps=8, width=128, height=128, scheduler=scheduler)
    seen = run(embedded, request, asked={0})
    image, shown = seen.image(0), seen.previews[0]
    assert len(shown) == len(seen.steps[0]) - 1
    apart = [float(np.abs(colors(preview) - reduced(image, preview)).mean()) for preview in shown]
    assert apart[-1] < 12
    assert apart[-1] < apart[0]
    assert image.rgb == pictures(embedded, request)[0].rgb


def test_previews_cost_less_than_a_hundredth_of_a_step(embedded: ContinuousEngine) -> None:
    request = image_request(prompt="a fox", steps=2)
    run(embedded, request)
    key = embedded.family.key(request)
    batch = embedded.prepared_batches.of(key)
    previewer = Previewer(embedded.pipeline, embedded.family)
    previews, steps = [], []
    with torch.inference_mode():
        previewer.begin(request.id, partial(batch.batch.estimate, 0, 1.0, -1.0), key)
        batch.batch.steer({}, 1)
        for _ in range(3):
            began = time.perf_counter()
            batch.step_runner.of(FULL).run(1)
            steps.append(time.perf_counter() - began)
            for _ in range(5):
                began = time.perf_counter()
                previewer.begin(request.id, partial(batch.batch.estimate, 0, 1.0, -1.0), key)
                previewer.finished()
                previews.append(time.perf_counter() - began)
    assert median(previews) < 0.01 * median(steps)


def test_nobody_sees_what_a_safety_checker_has_not_seen(tmp_path: Path) -> None:
    engine = load(save_stable_diffusion(tmp_path, safety_checker=True), safetyChecker=True)
    seen = run(engine, image_request(), asked={0})
    assert not seen.previews
    assert seen.image(0)


@pytest.mark.parametrize(("owner", "method"), [(ModelFamily, "preview"), (SlotTensors, "estimate")])
def test_an_image_is_made_whose_preview_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    def raising(*_: object) -> None:
        raise ValueError("no colors")

    monkeypatch.setattr(owner, method, raising)
    engine = load(save_stable_diffusion(tmp_path))
    seen = run(engine, image_request(), asked={0})
    assert seen.image(0).rgb == pictures(engine, image_request())[0].rgb
    assert not seen.previews


class Shelf:
    """Storage of previews that can fail, and be slow."""

    def __init__(self) -> None:
        self.kept: dict[str, Preview] = {}
        self.puts = 0
        self.fails = False
        self.open = Event()
        self.open.set()

    def uri(self, key: str) -> str:
        return key

    def put_preview(self, key: str, preview: Preview) -> None:
        self.puts += 1
        self.open.wait(30)
        if self.fails:
            raise StorageError("away")
        self.kept[key] = preview

    def delete(self, uri: str) -> None:
        self.kept.pop(uri, None)


class Looker:
    """A job, and somebody who looks at it at times of their own."""

    def __init__(self, shelf: Shelf, threads: ThreadPoolExecutor) -> None:
        self.now = 100.0
        self.previews = Previews(cast(ImageStorage, shelf), "p", threads, clock=lambda: self.now)
        job = bound_job(parameters={"numImages": 3})
        self.assignment = Assignment(job, Binding(job.uid, 2), present(job.status.parameters))

    def asks(self, value: str) -> None:
        self.assignment.job = bound_job(metadata={"annotations": {PREVIEW_REQUESTED_AT_ANNOTATION: value}})
        self.previews.observe(self.assignment)

    def due(self, index: int = 0) -> bool:
        return self.previews.due(self.assignment, index)

    async def publish(self, index: int = 0) -> None:
        """Publish a preview, and wait until it is stored or not."""
        self.previews.publish(self.assignment, index, ImagePreview(2, 1, bytes(range(6))))
        await self.settled()

    async def settled(self) -> None:
        tasks = asyncio.all_tasks() - {cast("asyncio.Task[object]", asyncio.current_task())}
        if tasks:
            await asyncio.wait(tasks, timeout=30)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def looker(shelf: Shelf) -> Iterator[Looker]:
    with ThreadPoolExecutor(2) as threads:
        yield Looker(shelf, threads)
        shelf.open.set()


def test_there_are_previews_only_while_somebody_asks(looker: Looker) -> None:
    assert not looker.due()
    looker.asks("first")
    assert looker.due()
    assert not looker.due()
    looker.now += PERIOD
    assert looker.due()
    looker.now += PREVIEW_SECONDS
    assert not looker.due()
    # The same value seen again is no other request.
    looker.asks("first")
    assert not looker.due()
    looker.asks("second")
    assert looker.due()


def test_one_image_of_a_job_is_shown_until_it_is_done(looker: Looker) -> None:
    looker.asks("now")
    assert looker.due(1)
    looker.now += PERIOD
    assert not looker.due(0)
    assert looker.due(1)
    looker.assignment.outputs[1] = ImageOutput(1, 1, b"", "")
    looker.now += PERIOD
    assert looker.due(2)
    # It does not come any more.
    looker.now += 2 * PERIOD
    assert looker.due(0)


async def test_the_latest_preview_lies_beside_the_images_until_the_job_ends(looker: Looker, shelf: Shelf) -> None:
    looker.asks("now")
    await looker.publish(1)
    ((key, preview),) = shelf.kept.items()
    assert key == "p/ns/uid-job/preview.png"
    assert (preview.attempt, preview.index) == (2, 1)
    assert list(Pillow.open(io.BytesIO(preview.data)).convert("RGB").tobytes()) == list(range(6))
    looker.previews.stop(looker.assignment)
    await looker.previews.drain()
    assert not shelf.kept
    # What the engine hands over late is not stored any more.
    await looker.publish()
    assert not shelf.kept


async def test_slow_storage_holds_up_nobody_and_leaves_nothing(looker: Looker, shelf: Shelf) -> None:
    looker.asks("now")
    shelf.open.clear()
    for _ in range(5):
        looker.previews.publish(looker.assignment, 0, ImagePreview(1, 1, b"abc"))
        await asyncio.sleep(0)
    assert shelf.puts <= 1
    looker.previews.stop(looker.assignment)
    shelf.open.set()
    await looker.previews.drain()
    assert not shelf.kept


async def test_storage_that_fails_is_left_alone_for_a_while(looker: Looker, shelf: Shelf) -> None:
    looker.asks("now")
    shelf.fails = True
    assert looker.due()
    await looker.publish()
    looker.now += PERIOD
    assert not looker.due()
    looker.now += AFTER_FAILURE
    assert looker.due()
