"""When a finished job goes, and what goes with it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from kubediffusion.operator.retention import ImageRemover, awaits_image_deletion, expiry
from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.testing import NOW, job
from kubediffusion.resources.transitions import TERMINAL


def finished(phase: Phase = Phase.SUCCEEDED, at: dt.datetime = NOW, **spec: Any) -> GenerationJob:
    return job(status=GenerationJobStatus(phase=phase, completion_time=at), **spec)


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_a_finished_job_goes_its_time_to_live_after_its_end(phase: Phase) -> None:
    assert expiry(finished(phase, ttl_seconds_after_finished=60)) == NOW + dt.timedelta(seconds=60)


def test_no_time_to_live_at_all_is_one_of_zero_seconds_and_not_for_ever() -> None:
    assert expiry(finished(ttl_seconds_after_finished=0)) == NOW


def test_a_job_without_a_time_to_live_stays() -> None:
    assert expiry(finished()) is None


def test_a_job_whose_time_to_live_ends_after_the_calendar_stays() -> None:
    """Nothing keeps a status from saying that it finished in the year 9999."""
    last = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    assert expiry(finished(at=last, ttl_seconds_after_finished=0)) == last
    assert expiry(finished(at=last, ttl_seconds_after_finished=1)) is None


@pytest.mark.parametrize("phase", sorted(set(Phase) - TERMINAL))
def test_a_job_that_has_not_finished_stays(phase: Phase) -> None:
    assert expiry(finished(phase, ttl_seconds_after_finished=0)) is None


def deleted(item: GenerationJob, *finalizers: str) -> GenerationJob:
    update = {"deletion_timestamp": NOW, "finalizers": finalizers}
    return item.model_copy(update={"metadata": item.metadata.model_copy(update=update)})


def test_images_are_deleted_once_a_deleted_job_has_ended() -> None:
    assert awaits_image_deletion(deleted(finished(), meta.IMAGES_FINALIZER))


def test_images_stay_while_the_job_does_or_runs_or_holds_none() -> None:
    assert not awaits_image_deletion(finished())
    assert not awaits_image_deletion(deleted(job(), meta.IMAGES_FINALIZER))
    assert not awaits_image_deletion(deleted(finished(), "somebody/else"))


async def test_an_operator_without_storage_says_that_the_images_stay(caplog: pytest.LogCaptureFixture) -> None:
    await ImageRemover(None, "").remove(finished())
    assert "cannot delete images" in caplog.text
