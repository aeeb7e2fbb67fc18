"""What the fields of a job's life do: cancel, suspend, priority, deadlines, time to live, deletion."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from integration.system.studio import LONG, Studio
from kubediffusion.local.testing import eventually
from kubediffusion.resources.apiserver.errors import NotFoundError
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present

pytestmark = pytest.mark.standin


async def test_a_pending_job_is_cancelled_at_once(studio: Studio) -> None:
    await studio.submit("waits", suspend=True)
    await studio.change("waits", cancel=True)
    job = await studio.phase("waits", Phase.CANCELLED)
    assert job.status.attempt == 0
    async with studio.http() as http:

        async def failed() -> dict[str, Any] | None:
            answer: dict[str, Any] = (await http.get("/results/waits")).json()
            return answer if answer["status"] == "failed" else None

        assert "ancel" in (await eventually("the API sees it", failed))["error_message"]


async def test_a_running_job_is_cancelled_at_its_next_step_and_frees_the_worker(studio: Studio) -> None:
    await studio.submit("long", **LONG)
    await studio.phase("long", Phase.RUNNING)
    await studio.submit("next")
    await studio.change("long", cancel=True)
    cancelled = await studio.phase("long", Phase.CANCELLED)
    studio.assert_images_are_true(await studio.phase("next", Phase.SUCCEEDED))
    assert cancelled.status.images == ()


async def test_kubectl_wait_ends_for_whatever_has_finished_and_was_changed_since(studio: Studio) -> None:
    await studio.submit("made")
    await studio.submit("unmade", suspend=True)
    await studio.change("unmade", cancel=True)
    for name, condition in (("made", "Complete"), ("unmade", "Failed")):
        job = await studio.until(name, "its time to live", lambda job: job.spec.ttl_seconds_after_finished is not None)
        for seconds in (None, 3600):
            if seconds is not None:
                job = await studio.change(name, ttlSecondsAfterFinished=seconds)
            assert job.metadata.generation > 1
            studio.namespace.kubectl("wait", f"--for=condition={condition}", f"gj/{name}", "--timeout=5s")


async def test_deleting_a_running_job_frees_the_worker(studio: Studio) -> None:
    await studio.submit("long", **LONG)
    await studio.phase("long", Phase.RUNNING)
    studio.namespace.kubectl("delete", "gj", "long")
    await studio.submit("next")
    await studio.phase("next", Phase.SUCCEEDED)


async def test_a_suspended_job_waits_says_so_and_resumes(studio: Studio) -> None:
    await studio.submit("suspended", suspend=True)
    job = await studio.until("suspended", "says why", lambda job: job.status.conditions)
    assert (job.status.phase, job.status.conditions[0].reason) == (Phase.PENDING, "Suspended")
    await studio.change("suspended", suspend=False)
    await studio.phase("suspended", Phase.SUCCEEDED)


async def test_priority_goes_before_age(studio: Studio) -> None:
    """The worker has two batches at hand: what comes after waits in the operator's queue, where priority counts."""
    for name in ("busy-0", "busy-1"):
        await studio.submit(name, **LONG)
        await studio.phase(name, Phase.SCHEDULED, Phase.RUNNING)
    # Each fills a batch: with one of two at hand free, one of them is bound.
    await studio.submit("low", priority=-5, numImages=4)
    await studio.submit("high", priority=5, numImages=4)
    assert (await studio.job("low")).status.phase is Phase.PENDING
    await studio.change("busy-0", cancel=True)
    await studio.phase("high", Phase.SCHEDULED, Phase.RUNNING, Phase.SUCCEEDED)
    await studio.change("busy-1", cancel=True)
    low, high = await studio.phase("low", Phase.SUCCEEDED), await studio.phase("high", Phase.SUCCEEDED)
    assert present(high.status.start_time) < present(low.status.start_time)


async def test_a_deadline_ends_a_job_wherever_it_is(studio: Studio) -> None:
    await studio.submit("too-late", activeDeadlineSeconds=1, suspend=True)
    await studio.submit("too-long", activeDeadlineSeconds=3, **LONG)
    for name in ("too-late", "too-long"):
        job = await studio.phase(name, Phase.FAILED)
        error = present(job.status.error)
        assert error.code == "DeadlineExceeded"
        assert "activeDeadlineSeconds" in error.message


async def test_a_deadline_does_nothing_to_a_job_that_has_finished(studio: Studio) -> None:
    # With a time to live of its own, so that nobody else writes to it once it has finished.
    await studio.submit("in-time", activeDeadlineSeconds=4, ttlSecondsAfterFinished=3600)
    in_time = await studio.phase("in-time", Phase.SUCCEEDED)
    await studio.submit("clock", activeDeadlineSeconds=4, suspend=True)
    await studio.phase("clock", Phase.FAILED)
    assert await studio.job("in-time") == in_time


async def test_a_finished_job_is_deleted_after_its_time_to_live(studio: Studio) -> None:
    """Which may be changed as long as the job is there."""
    await studio.submit("reprieved", ttlSecondsAfterFinished=2)
    await studio.phase("reprieved", Phase.SUCCEEDED)
    await studio.change("reprieved", ttlSecondsAfterFinished=3600)
    await studio.submit("brief", ttlSecondsAfterFinished=2)

    async def gone() -> bool:
        try:
            await studio.job("brief")
        except NotFoundError:
            return True
        return False

    await eventually("the job is deleted", gone)
    assert (await studio.job("reprieved")).status.phase is Phase.SUCCEEDED


async def test_images_go_with_the_job_or_stay_as_it_says(studio: Studio) -> None:
    await studio.submit("goes", deletionPolicy="Delete")
    await studio.submit("stays")
    goes, stays = await studio.phase("goes", Phase.SUCCEEDED), await studio.phase("stays", Phase.SUCCEEDED)
    assert len(studio.stored_keys(goes)) == len(studio.stored_keys(stays)) == 1
    studio.namespace.kubectl("delete", "gj", "goes", "stays", "--wait=true")
    assert studio.stored_keys(goes) == []
    assert len(studio.stored_keys(stays)) == 1


async def test_a_job_beyond_the_models_limits_is_refused_at_the_door(studio: Studio) -> None:
    async with studio.http() as http:
        refused = await http.post("/generate", json={"prompt": "x", "num_inference_steps": 151})
    assert refused.status_code == 422
    assert "num_inference_steps" in refused.text


async def test_compatible_jobs_share_a_batch(studio: Studio) -> None:
    """They wait behind a long one, then run together: their inference spans overlap."""
    await studio.submit("first", **{**LONG, "numImages": 1})
    await studio.phase("first", Phase.RUNNING)
    names = [f"mate-{number}" for number in range(4)]
    for name in names:
        await studio.submit(name, prompt=name)
    jobs = [await studio.phase(name, Phase.SUCCEEDED) for name in names]
    starts = [present(job.status.start_time) for job in jobs]
    assert max(starts) - min(starts) < dt.timedelta(seconds=0.5)
