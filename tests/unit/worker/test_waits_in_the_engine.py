"""No image waits in a worker's queue out of proportion to its own length: runner and engine together, on the CPU.

The engine believes that steps take what they take on a GPU.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kubediffusion.worker.assignments import Assignment, Assignments
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import EntryLimit, ImageId, ImagePlan, ImageRequest, Monitor, Outcome
from kubediffusion.worker.engine.adapters import AdapterWeights
from kubediffusion.worker.engine.throughput import StepTimes
from kubediffusion.worker.engine.waits import PATIENCE
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.previews import Previews
from kubediffusion.worker.runner import Runner
from unit.worker.worker_builders import WORKER, bound_job, image_request
from unit.worker.worker_builders import settings as worker_settings

SCHEDULER = "EulerDiscreteScheduler"
"""Calls the model once a step."""
LIMIT = 4
SOON = range(3, 3 + 4 + 3)
"""When one begins that comes after three steps: it is looked for every four, made ready in the next, then it enters."""

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="module")
def engine(folders: Callable[[str], Path]) -> ContinuousEngine:
    made = load_engine(worker_settings(folders("stable_diffusion"), workers={"maxBatchSize": LIMIT}))
    assert isinstance(made, ContinuousEngine)
    return made


class Ends:
    """Takes in ends as the finisher does."""

    defect = None
    buffered = 0

    def __init__(self, assignments: Assignments) -> None:
        self.outcomes: list[Outcome] = []
        self._assignments = assignments

    def finish_image(self, assignment: Assignment, index: int, outcome: Outcome) -> None:
        del index
        self.outcomes.append(outcome)
        self._assignments.remove(assignment)

    async def drain(self) -> None:
        pass

    def batch_started(self) -> None:
        """Do nothing, in the place of the progress reporter."""


class Seen:
    """An engine of which is noted how many steps were run when an image began; jobs come at given steps.

    Args:
        engine: The engine.
        come: Called before each step with the number of those before.
    """

    def __init__(self, engine: ContinuousEngine, come: Callable[[int], None]) -> None:
        self.began: dict[str, int] = {}
        self.steps = 0
        self._engine = engine
        self._come = come

    def plan(self, request: ImageRequest) -> ImagePlan:
        return self._engine.plan(request)

    def read_adapter(self, file: Path) -> AdapterWeights:
        return self._engine.read_adapter(file)

    def prepare_while_idle(self, _wake: Callable[[], None]) -> bool:
        return False

    def run(self, tasks: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        self._monitor = monitor
        self._engine.run(tasks, self)

    def joining_images(self, room: int, calls: int, entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        # This waits for the event loop, so that it has looked for others before they are asked for.
        self._come(self.steps)
        return self._monitor.joining_images(room, calls, entry_limit)

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        self.began.setdefault(image_id.uid, self.steps - 1)
        self._monitor.stepped(image_id, step, total)

    def count_step(self, load: Any) -> None:
        self.steps += 1
        self._monitor.count_step(load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)


async def served(
    engine: ContinuousEngine,
    jobs: list[tuple[int, int]],
    widths: dict[int, int] | None = None,
    priorities: dict[int, int] | None = None,
) -> dict[str, int]:
    """Serve jobs that come when so many steps were run and need so many; tell how many were run when each began.

    Args:
        engine: The engine.
        jobs: When each comes, and the steps that it needs.
        widths: Those of jobs whose images are not as wide as the model's.
        priorities: Those of jobs that have one.
    """
    loop, assignments, work = asyncio.get_running_loop(), Assignments(WORKER), asyncio.Event()
    ends: Any = Ends(assignments)
    coming = sorted((came, number, steps) for number, (came, steps) in enumerate(jobs))

    async def observe(step: int) -> None:
        while coming and coming[0][0] <= step:
            _, number, steps = coming.pop(0)
            parameters = {"numInferenceSteps": steps, "scheduler": SCHEDULER, "width": (widths or {}).get(number)}
            priority = (priorities or {}).get(number, 0)
            job = bound_job(f"job-{number:02}", parameters=parameters, priority=priority)
            assignments.observe(job, gone=False)

    seen: Any = Seen(engine, lambda step: asyncio.run_coroutine_threadsafe(observe(step), loop).result())
    with ThreadPoolExecutor(1) as thread:
        unused: Any = None
        context = WorkerContext(
            engine=seen,
            engine_thread=thread,
            assignments=assignments,
            reporter=unused,
            storage=unused,
            prefix="",
            refused_seconds=60.0,
            max_batch_size=LIMIT,
            max_buffered_bytes=1,
            health=Health(60.0),
            metrics=Metrics(CollectorRegistry()),
            work_available=work,
        )
        runner = Runner(context, ends, ends, Previews(unused, "", thread))
        while coming or len(assignments):
            await observe(seen.steps if len(assignments) else coming[0][0])
            await runner.run_batch()
    assert len(ends.outcomes) == len(jobs)
    return {name.removeprefix("uid-"): step for name, step in seen.began.items()}


def believing(engine: ContinuousEngine, seconds: dict[int, float]) -> StepTimes:
    """Have an engine believe what steps take."""
    with torch.inference_mode():
        key: Any = engine.plan(image_request()).key
        prepared: Any = engine.prepared_batches.of(key)
    prepared.times = StepTimes()
    for size, time in seconds.items():
        for _ in range(5):
            prepared.times.note(size, time)
    return prepared.times


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([3, 4, 5, 30])), min_size=2, max_size=LIMIT),
    st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=LIMIT, max_size=LIMIT),
)
def test_no_image_waits_out_of_proportion_to_its_own_length(
    engine: ContinuousEngine, jobs: list[tuple[int, int]], seconds: list[float]
) -> None:
    believing(engine, dict(enumerate(itertools.accumulate(seconds), start=1)))
    began = asyncio.run(served(engine, jobs))
    for number, (came, steps) in enumerate(jobs):
        # It is looked for while the first step after it came is made, and enters after that at the earliest.
        assert began[f"job-{number:02}"] - came <= PATIENCE * steps + 1


def test_a_short_job_does_not_wait_for_a_long_one(engine: ContinuousEngine) -> None:
    # One after the other does the most.
    believing(engine, {size: 0.01 * size**2 for size in range(1, LIMIT + 1)})
    began = asyncio.run(served(engine, [(0, 40), (3, 4), (3, 10)]))
    # One that is much shorter takes the slot of the long one, which goes on after it; the other waits for its bound.
    assert began.pop("job-01") in SOON
    assert began == {"job-00": 0, "job-02": 4 + PATIENCE * 10}


@pytest.mark.parametrize(
    ("steps", "priority", "when"),
    [
        pytest.param(30, 1, SOON, id="more urgent"),
        pytest.param(5, 0, SOON, id="much shorter"),
        pytest.param(7, 0, [30], id="not much shorter"),
    ],
)
def test_an_image_takes_a_slot_of_a_full_batch_of_its_own_size(
    engine: ContinuousEngine, steps: int, priority: int, when: Container[int]
) -> None:
    # Nothing is known of what steps take: every slot is taken.
    believing(engine, {})
    began = asyncio.run(served(engine, [(0, 30)] * LIMIT + [(3, steps)], priorities={LIMIT: priority}))
    assert began.pop(f"job-{LIMIT:02}") in when
    assert set(began.values()) == {0}


def test_a_short_job_of_another_size_goes_before_the_rest_of_a_long_one(engine: ContinuousEngine) -> None:
    began = asyncio.run(served(engine, [(0, 40), (3, 4), (3, 30)], widths={1: 96, 2: 96}))
    assert began["job-00"] == 0
    # It is looked for every four steps, and given at the next.
    assert 3 < began["job-01"] <= 3 + 4 + 2
    # One that is not much shorter waits.
    assert began["job-02"] == 40 + 4
