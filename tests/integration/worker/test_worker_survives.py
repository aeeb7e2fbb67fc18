"""What a worker does when something around it breaks, and what becomes of its jobs when it breaks itself."""

from __future__ import annotations

import datetime as dt
import signal

import pytest

from integration.worker.bench_of_workers import LONG, Bench
from kubediffusion.local.testing import eventually
from kubediffusion.resources.conditions import ConditionStatus, find_condition
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.testing import present
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.engine import ImageOutput
from kubediffusion.worker.reporter import Delivery, Reporter, ReportRefusedError
from kubediffusion.worker.reports import failed, running


async def test_an_image_waits_for_storage_and_is_not_made_again(bench: Bench, warm: str) -> None:
    store = bench.namespace.cluster.store.process
    steps = bench.metric(warm, "kubediffusion_worker_steps_total")
    store.stop()
    try:
        await bench.run("patient", warm)

        async def told() -> GenerationJob | None:
            job = await bench.get("patient")
            return job if find_condition(job.status.conditions, "Uploaded") else None

        waiting = await eventually("the job to say that storage is away", told)
        condition = present(find_condition(waiting.status.conditions, "Uploaded"))
        assert (condition.status, condition.reason) == (ConditionStatus.FALSE, "StorageUnavailable")
        assert (waiting.status.phase, waiting.status.images) == (Phase.RUNNING, ())
    finally:
        store.start()
        store.wait_ready()
    job = await bench.reached("patient")
    assert job.status.phase is Phase.SUCCEEDED
    assert present(find_condition(job.status.conditions, "Uploaded")).status is ConditionStatus.TRUE
    bench.check_images(job)
    assert bench.metric(warm, "kubediffusion_worker_steps_total") == steps + 2


async def test_a_report_waits_for_the_api_server(bench: Bench, obedient: str) -> None:
    apiserver = bench.namespace.cluster.control_plane.apiserver
    await bench.run("reported-late", obedient, numInferenceSteps=LONG)
    await bench.reached("reported-late", Phase.RUNNING)
    apiserver.stop()
    apiserver.start()
    bench.namespace.cluster.control_plane.wait_ready()
    job = await bench.reached("reported-late")
    assert job.status.phase is Phase.SUCCEEDED
    bench.check_images(job)
    # The watch has come back too.
    await bench.run("after-the-restart", obedient)
    assert (await bench.reached("after-the-restart")).status.phase is Phase.SUCCEEDED


async def test_a_zombie_changes_nothing(bench: Bench, warm: str) -> None:
    """A worker is frozen while its job is given to another, and then thawed."""
    await bench.run("undead", warm, numInferenceSteps=LONG)
    running_job = await bench.reached("undead", Phase.RUNNING)
    bench.namespace.signal(warm, signal.SIGSTOP)
    try:
        rebound = await bench.bind(running_job, "somebody-else")
    finally:
        bench.namespace.signal(warm, signal.SIGCONT)
    await bench.run("proof", warm)
    assert (await bench.reached("proof")).status.phase is Phase.SUCCEEDED
    assert (await bench.get("undead")) == rebound


async def test_the_fence_refuses_a_late_report_whole(bench: Bench) -> None:
    """The same at the level of one report, by a writer whom no policy holds back."""
    bound = await bench.run("fenced", "worker-a")
    assignments = Assignments("worker-a")
    assignments.observe(bound, False)
    assignment = present(assignments.get(bound.uid))
    assignment.take_requests(1, present(bound.status.queued_at), 0.0)
    assignment.record_output(0, ImageOutput(8, 8, b"", "DDIMScheduler"), 1.0)
    rebound = await bench.bind(bound, "worker-a")
    reporter = Reporter(bench.client, bench.namespace.name, 60.0)
    for report in (reporter.try_once, reporter.deliver):
        assert await report(assignment, lambda job: running(job, assignment)) is Delivery.FENCED
    assert await bench.get("fenced") == rebound


async def test_an_outcome_that_a_policy_denies_ends_its_job_by_another_one(bench: Bench) -> None:
    """The admission policy takes Succeeded from nobody but the worker: after its time the job fails, and says why."""
    bound = await bench.run("denied", "worker-a")
    assignments = Assignments("worker-a")
    assignments.observe(bound, False)
    assignment = present(assignments.get(bound.uid))
    reporter = Reporter(bench.client, bench.namespace.name, 2.0)
    success = {"phase": Phase.SUCCEEDED}
    with pytest.raises(ReportRefusedError, match=r"could not be reported for 2 s: .*the worker's to report") as refused:
        await reporter.deliver(assignment, lambda job: job.status.model_copy(update=success))
    assert refused.value.code == "StatusRefused"
    failure, now = JobFailure(refused.value.code, str(refused.value)), dt.datetime.now(dt.UTC)
    delivery = await reporter.deliver(assignment, lambda job: failed(job, assignment, failure, now), insist=True)
    assert delivery is Delivery.ACCEPTED
    assert present((await bench.get("denied")).status.error).code == "StatusRefused"


async def test_sigterm_finishes_the_batch_and_starts_nothing(bench: Bench) -> None:
    leaving = bench.worker("leaving")
    await bench.run("begun", leaving, numInferenceSteps=LONG // 2)
    await bench.reached("begun", Phase.RUNNING)
    # It would join the running batch if it were not deterministic.
    await bench.run("not-begun", leaving, deterministic=True)
    bench.namespace.signal(leaving, signal.SIGTERM)
    bench.namespace.wait_phase(leaving, "Succeeded")
    begun = await bench.get("begun")
    assert begun.status.phase is Phase.SUCCEEDED
    bench.check_images(begun)
    assert (await bench.get("not-begun")).status.phase is Phase.SCHEDULED
