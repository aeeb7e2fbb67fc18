"""What goes on around the engine: chunks, order, bounds, broken engines, with an engine that obeys the prompt."""

from __future__ import annotations

import signal

import pytest

from integration.worker.bench_of_workers import LONG, Bench, start_obedient
from kubediffusion.local.testing import eventually
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present

MADE = "kubediffusion_worker_batch_images_sum"
BATCHES = "kubediffusion_worker_batch_images_count"


async def test_a_job_of_many_images_runs_in_chunks(bench: Bench, obedient: str) -> None:
    before = bench.metric(obedient, BATCHES)
    await bench.run("many-images", obedient, numImages=5)
    job = await bench.reached("many-images")
    bench.check_images(job)
    assert [image.index for image in job.status.images] == [0, 1, 2, 3, 4]
    assert bench.metric(obedient, BATCHES) == before + 3


async def test_priority_goes_first_then_age(bench: Bench, obedient: str) -> None:
    await bench.run("holds-the-engine", obedient, numInferenceSteps=200)
    await bench.run("a-is-older", obedient, numInferenceSteps=3)
    await bench.run("b-is-newer", obedient, numInferenceSteps=4)
    await bench.run("urgent", obedient, numInferenceSteps=5, priority=10)
    done = [present((await bench.reached(name)).status.start_time) for name in ("urgent", "a-is-older", "b-is-newer")]
    assert done == sorted(done)


async def test_the_engine_pauses_when_too_much_waits_for_storage(bench: Bench, obedient: str) -> None:
    store = bench.namespace.cluster.store.process
    before = bench.metric(obedient, MADE)
    store.stop()
    try:
        for number in range(12):
            await bench.run(f"piles-up-{number}", obedient, deterministic=True)

        async def settled() -> float | None:
            # Each picture is 192 KiB: six fill the buffer.
            made = bench.metric(obedient, MADE) - before
            return made if made >= 6 else None

        await eventually("the buffer to fill", settled)
        await bench.reached("piles-up-0", Phase.RUNNING)
        assert 6 <= bench.metric(obedient, MADE) - before <= 7
    finally:
        store.start()
        store.wait_ready()
    for number in range(12):
        job = await bench.reached(f"piles-up-{number}")
        assert job.status.phase is Phase.SUCCEEDED
    assert bench.metric(obedient, MADE) - before == 12
    assert bench.metric(obedient, "kubediffusion_worker_buffered_bytes") == 0


@pytest.mark.parametrize("prompt", ["raise", "nothing", "too few pixels"])
async def test_a_defect_of_the_engine_fails_its_batch_and_not_the_worker(
    bench: Bench, obedient: str, prompt: str
) -> None:
    name = f"defect-{prompt.replace(' ', '-')}"
    await bench.run(name, obedient, prompt=prompt)
    failed = await bench.reached(name)
    assert (failed.status.phase, present(failed.status.error).code) == (Phase.FAILED, "Internal")
    await bench.run(f"after-{name}", obedient)
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


async def test_a_killed_workers_job_runs_elsewhere(bench: Bench, obedient: str) -> None:
    victim = start_obedient(bench.namespace, "victim")
    await bench.run("orphan", victim, numInferenceSteps=LONG)
    orphan = await bench.reached("orphan", Phase.RUNNING)
    bench.namespace.signal(victim, signal.SIGKILL)
    bench.namespace.wait_phase(victim, "Failed")
    await bench.bind(orphan, obedient, numInferenceSteps=2)
    job = await bench.reached("orphan")
    assert (job.status.phase, job.status.attempt) == (Phase.SUCCEEDED, 2)
    bench.check_images(job)
