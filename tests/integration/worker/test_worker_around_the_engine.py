"""What goes on around the engine: chunks, order, bounds, broken engines, with an engine that obeys the prompt."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_of_workers import LONG, START_SECONDS, Bench, start

from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.resources.generation_job import Phase

STANDIN = Path(__file__).parent / "standin_worker.py"
MADE = "kubediffusion_worker_batch_images_sum"
BATCHES = "kubediffusion_worker_batch_images_count"


def start_obedient(namespace: Namespace, name: str) -> str:
    """Start a worker which takes two images at once and may hold one MiB of them."""
    start(
        namespace,
        name,
        max_batch_size=2,
        source={"path": "/"},
        command=[sys.executable, str(STANDIN)],
        KUBEDIFFUSION_UPLOAD_BUFFER_MIB="1",
    )
    namespace.wait_ready(name, START_SECONDS)
    return name


@pytest.fixture(scope="module")
def worker(workplace: Namespace) -> Iterator[str]:
    """A worker whose engine obeys the prompt. Leave it alive."""
    name = start_obedient(workplace, "obedient")
    yield name
    workplace.kubectl("delete", "pod", name, "--wait=false")


async def test_a_job_of_many_images_runs_in_chunks(bench: Bench, worker: str) -> None:
    before = bench.metric(worker, BATCHES)
    await bench.run("many-images", worker, numImages=5)
    job = await bench.reached("many-images")
    bench.check_images(job)
    assert [image.index for image in job.status.images] == [0, 1, 2, 3, 4]
    assert bench.metric(worker, BATCHES) == before + 3


async def test_priority_goes_first_then_age(bench: Bench, worker: str) -> None:
    await bench.run("holds-the-engine", worker, numInferenceSteps=200)
    await bench.run("a-is-older", worker, numInferenceSteps=3)
    await bench.run("b-is-newer", worker, numInferenceSteps=4)
    await bench.run("urgent", worker, numInferenceSteps=5, priority=10)
    done = [(await bench.reached(name)).status.start_time for name in ("urgent", "a-is-older", "b-is-newer")]
    assert done == sorted(done)


async def test_the_engine_pauses_when_too_much_waits_for_storage(bench: Bench, worker: str) -> None:
    store = bench.namespace.cluster.store.process
    before = bench.metric(worker, MADE)
    store.stop()
    try:
        for number in range(12):
            await bench.run(f"piles-up-{number}", worker, deterministic=True)

        async def settled() -> float | None:
            # Each picture is 192 KiB: six fill the buffer.
            made = bench.metric(worker, MADE) - before
            return made if made >= 6 else None

        await eventually("the buffer to fill", settled)
        await bench.reached("piles-up-0", Phase.RUNNING)
        assert bench.metric(worker, MADE) - before <= 7
    finally:
        store.start()
        store.wait_ready()
    for number in range(12):
        job = await bench.reached(f"piles-up-{number}")
        assert job.status.phase is Phase.SUCCEEDED
    assert bench.metric(worker, MADE) - before == 12
    assert bench.metric(worker, "kubediffusion_worker_buffered_bytes") == 0


@pytest.mark.parametrize("prompt", ["raise", "nothing", "too few pixels"])
async def test_a_defect_of_the_engine_fails_its_batch_and_not_the_worker(
    bench: Bench, worker: str, prompt: str
) -> None:
    name = f"defect-{prompt.replace(' ', '-')}"
    await bench.run(name, worker, prompt=prompt)
    failed = await bench.reached(name)
    assert (failed.status.phase, failed.status.error.code) == (Phase.FAILED, "Internal")
    await bench.run(f"after-{name}", worker)
    assert (await bench.reached(f"after-{name}")).status.phase is Phase.SUCCEEDED


async def test_a_lost_engine_ends_the_process_after_what_is_made_is_reported(bench: Bench) -> None:
    worker = start_obedient(bench.namespace, "fragile")
    await bench.run("made-before", worker)
    await bench.run("in-flight", worker, prompt="lose the engine", numInferenceSteps=50)
    status = bench.namespace.wait_phase(worker, "Failed")
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert status["containerStatuses"][0]["state"]["terminated"]["message"] == "EngineLostError: the device is gone"
    assert (await bench.get("made-before")).status.phase is Phase.SUCCEEDED
    assert (await bench.get("in-flight")).status.phase is Phase.SCHEDULED


async def test_a_killed_workers_job_runs_elsewhere(bench: Bench, worker: str) -> None:
    victim = start_obedient(bench.namespace, "victim")
    await bench.run("orphan", victim, numInferenceSteps=LONG)
    orphan = await bench.reached("orphan", Phase.RUNNING)
    bench.namespace.signal(victim, signal.SIGKILL)
    bench.namespace.wait_phase(victim, "Failed")
    await bench.bind(orphan, worker, numInferenceSteps=2)
    job = await bench.reached("orphan")
    assert (job.status.phase, job.status.attempt) == (Phase.SUCCEEDED, 2)
    bench.check_images(job)
