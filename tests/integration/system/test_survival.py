"""Kill anything, at any time: no accepted job is lost, none ends twice, every image hashes to its status."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from integration.system.studio import LONG, STANDIN, STEPS, Studio, Witness, standin_model
from kubediffusion.local.testing import eventually
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.errors import ConflictError, InvalidError
from kubediffusion.resources.conditions import find_condition
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present

JOBS = ("one", "two", "three", "four")


async def test_a_job_survives_the_death_of_its_worker_and_gives_the_same_pixels(studio: Studio) -> None:
    await studio.submit("undisturbed", seed=11, **{**LONG, "numInferenceSteps": 20, "numImages": 2})
    await studio.submit("disturbed", seed=11, **{**LONG, "numInferenceSteps": 20, "numImages": 2})
    undisturbed = await studio.phase("undisturbed", Phase.SUCCEEDED)
    await studio.submit("long", seed=11, **LONG)
    running = await studio.phase("long", Phase.RUNNING)
    studio.kill(present(running.status.worker))
    again = await studio.until("long", "bound again", lambda job: job.status.attempt > running.status.attempt)
    assert again.status.retries == 1
    assert present(again.status.parameters).seed == 11
    await studio.change("long", cancel=True)
    disturbed = await studio.phase("disturbed", Phase.SUCCEEDED)
    assert [i.sha256 for i in disturbed.status.images] == [i.sha256 for i in undisturbed.status.images]


@pytest.mark.standin
async def test_a_job_that_may_not_be_tried_again_fails_with_its_worker(studio: Studio) -> None:
    await studio.submit("once", backoffLimit=0, **LONG)
    running = await studio.phase("once", Phase.RUNNING)
    studio.kill(present(running.status.worker))
    job = await studio.phase("once", Phase.FAILED)
    error = present(job.status.error)
    assert error.code == "BackoffLimitExceeded"
    assert "137" in error.message
    studio.ready_pods(studio.model, 1)


@pytest.mark.standin
async def test_who_makes_its_worker_die_is_found_and_pays_alone(studio: Studio) -> None:
    """Eight jobs in batches of four, one of which ends the process that runs it."""
    mates = [f"mate-{number}" for number in range(7)]
    jobs: dict[str, dict[str, Any]] = {name: {} for name in mates[:3]} | {
        "poisonous": {"prompt": "kill the worker", "backoffLimit": 1}
    }
    jobs |= {name: {} for name in mates[3:]}
    await asyncio.gather(*(studio.submit(name, **{"backoffLimit": 0, **spec}) for name, spec in jobs.items()))
    failed = await studio.phase("poisonous", Phase.FAILED)
    error = present(failed.status.error)
    assert (error.code, failed.status.retries) == ("BackoffLimitExceeded", 2)
    assert "exit code 86" in error.message
    for name in mates:
        job = await studio.phase(name, Phase.SUCCEEDED)
        assert job.status.retries == 0
        studio.assert_images_are_true(job)


async def test_a_job_survives_the_loss_of_its_workers_node(open_studio: Callable[..., Studio]) -> None:
    """Kubelet is frozen and can end nothing: the worker computes on, and is not heard any more."""
    model = standin_model(default=True, minReplicas=2, maxReplicas=2, terminationGracePeriodSeconds=1)
    studio = open_studio(model, {"KUBEDIFFUSION_NODE_GRACE_SECONDS": "1"})
    studio.ready_pods(STANDIN, 2)
    await studio.submit("long", **LONG)
    running = await studio.phase("long", Phase.RUNNING)
    node = studio.namespace.cluster.node
    node.signal(signal.SIGSTOP)
    try:
        studio.namespace.kubectl("delete", "pod", present(running.status.worker), "--wait=false")
        again = await studio.until("long", "bound again", lambda job: job.status.attempt > running.status.attempt)
        assert again.status.worker != running.status.worker
        job = await studio.phase("long", Phase.SUCCEEDED)
        # The place is another's, who waits for a node that answers.
        waiting = {pod["metadata"]["name"] for pod in studio.namespace.list("pods", meta.WORKER_SELECTOR)}
        assert len(waiting - {running.status.worker, again.status.worker}) == 1
    finally:
        node.signal(signal.SIGCONT)
    studio.assert_images_are_true(job)
    assert (job.status.worker, job.status.attempt, job.status.retries) == (again.status.worker, 2, 0)


async def test_what_a_silent_worker_has_not_begun_goes_elsewhere(open_studio: Callable[..., Studio]) -> None:
    """Its process is frozen, so that it hears nothing; its Pod stays, and is not ready any more."""
    studio = open_studio(standin_model(default=True, minReplicas=2, maxReplicas=2, maxBatchSize=1))
    silent, other = studio.ready_pods(STANDIN, 2)
    for name in JOBS:
        await studio.submit(name, **LONG)
    jobs = {name: await studio.until(name, "bound", lambda job: job.status.worker is not None) for name in JOBS}
    bound = [name for name, job in jobs.items() if job.status.worker == silent]
    # Whichever of the two its worker read first.
    begun = await studio.first_running(bound)
    (held,) = set(bound) - {begun}
    pid = studio.namespace.pid(silent)
    studio.namespace.signal(silent, signal.SIGSTOP)
    try:
        again = await studio.until(held, "to be taken back", lambda job: job.status.worker != silent)
        # To the other one in one write, where that has room by now.
        said = find_condition(again.status.conditions, "Scheduled")
        assert again.status.worker == other or "does not hear the API server" in present(said).message
    finally:
        studio.namespace.signal(silent, signal.SIGCONT)
    assert studio.namespace.pid(silent) == pid
    for name in JOBS:
        job = await studio.phase(name, Phase.SUCCEEDED)
        assert job.status.retries == 0
    assert (await studio.phase(begun, Phase.SUCCEEDED)).status.attempt == 1


async def test_a_worker_that_a_drain_cut_short_is_replaced_once(open_studio: Callable[..., Studio]) -> None:
    """By the operator while it goes; its batch/v1 Job, which replaces what the platform ended, must not do it again."""
    studio = open_studio(standin_model(default=True, maxReplicas=2, terminationGracePeriodSeconds=1))
    await studio.submit("long", **LONG)
    running = await studio.phase("long", Phase.RUNNING)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": running.status.worker}}
    path = f"/api/v1/namespaces/{studio.name}/pods/{running.status.worker}/eviction"
    studio.namespace.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
    # It computes for longer than a Job waits before it makes another Pod.
    job = await studio.phase("long", Phase.SUCCEEDED)
    assert (job.status.attempt, job.status.retries) == (2, 0)
    assert [pod["metadata"]["name"] for pod in studio.namespace.list("pods", meta.WORKER_SELECTOR)] == [
        job.status.worker
    ]


@pytest.mark.standin
async def test_the_operator_dies_with_jobs_in_every_phase(studio: Studio) -> None:
    # With a time to live of its own, so that nobody else writes to it once it has finished.
    await studio.submit("finished", ttlSecondsAfterFinished=3600)
    finished = await studio.phase("finished", Phase.SUCCEEDED)
    await studio.submit("suspended", suspend=True)
    await studio.submit("running", **{**LONG, "numInferenceSteps": 50})
    await studio.phase("running", Phase.RUNNING)
    await studio.submit("bound")
    await studio.phase("bound", Phase.SCHEDULED, Phase.RUNNING)
    studio.kill(studio.pod("kubediffusion-operator"))
    await studio.submit("meanwhile")
    await studio.change("suspended", suspend=False)
    for name in ("running", "bound", "meanwhile", "suspended"):
        studio.assert_images_are_true(await studio.phase(name, Phase.SUCCEEDED))
    assert (await studio.job("finished")) == finished
    assert (await studio.job("running")).status.attempt == 1


async def test_the_api_dies_between_request_and_poll(studio: Studio) -> None:
    async with studio.http() as http:
        task = (await http.post("/generate", json={"prompt": "x", "num_inference_steps": STEPS})).json()["task_id"]
    before = studio.pod("kubediffusion-api")
    restarts = studio.namespace.container(before)["restartCount"]
    studio.kill(before)

    async def back() -> bool:
        found = studio.namespace.container(before)
        return found["restartCount"] > restarts and found["ready"]

    await eventually("the API is back", back)
    async with studio.http() as http:

        async def completed() -> dict[str, Any] | None:
            answer: dict[str, Any] = (await http.get(f"/results/{task}")).json()
            return answer if answer["status"] == "completed" else None

        assert (await eventually("the image", completed))["image_base64"]


@pytest.mark.standin
async def test_storage_goes_and_comes_back_and_nothing_is_computed_twice(studio: Studio) -> None:
    store = studio.namespace.cluster.store.process
    store.stop()
    try:
        await studio.submit("patient")
        says = await studio.until(
            "patient", "says that storage is away", lambda job: any(c.type == "Uploaded" for c in job.status.conditions)
        )
        condition = next(c for c in says.status.conditions if c.type == "Uploaded")
        assert (condition.status, condition.reason) == ("False", "StorageUnavailable")
    finally:
        store.start()
        store.wait_ready()
    job = await studio.phase("patient", Phase.SUCCEEDED)
    studio.assert_images_are_true(job)
    assert (job.status.attempt, job.status.retries) == (1, 0)
    assert job.status.start_time == says.status.start_time


async def test_two_hundred_jobs_and_cancels_each_end_exactly_once(studio: Studio) -> None:
    """A quarter is cancelled at random moments, the worker and the operator die on the way."""
    dice = random.Random(7)  # noqa: S311 - a reproducible test, no secret
    witness = Witness(studio)
    watching = asyncio.create_task(witness.reflector.run())
    await witness.reflector.synced.wait()
    jobs = [await studio.submit(f"many-{n:03}", priority=n % 3, numImages=1 + n % 2) for n in range(100)]
    async with studio.http() as http:
        for _ in range(100):
            accepted = await http.post("/generate", json={"prompt": "a cat", "num_inference_steps": 1})
            jobs.append(await studio.job(accepted.json()["task_id"]))
    studio.kill(studio.pod("tiny"))
    cancelled = dice.sample(jobs, 50)
    for count, job in enumerate(cancelled):
        try:
            await studio.change(job.name, cancel=True)
        except (ConflictError, InvalidError):  # pragma: no cover - nothing forbids cancelling a finished job
            raise AssertionError(f"cancelling {job.name} was refused") from None
        if count == 25:
            studio.kill(studio.pod("kubediffusion-operator"))

    async def all_ended() -> bool:
        return all(witness.latest[job.uid].status.phase in {"Succeeded", "Failed", "Cancelled"} for job in jobs)

    await eventually("all 200 jobs end", all_ended, seconds=280)
    watching.cancel()
    witness.assert_each_ended_once(job.uid for job in jobs)
    ends = [witness.latest[job.uid] for job in jobs]
    asked = {job.uid for job in cancelled}
    for job in ends:
        if job.status.phase is Phase.SUCCEEDED:
            studio.assert_images_are_true(job)
        else:
            assert job.status.phase is Phase.CANCELLED, (job.name, job.status.error)
            assert job.uid in asked
    assert sum(job.status.phase is Phase.SUCCEEDED for job in ends) >= 150
