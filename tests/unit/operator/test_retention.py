"""When a finished job goes, and what goes with it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from kubediffusion.operator.image_releases import awaits_image_deletion, release_pause
from kubediffusion.operator.images import ImageRemover, image_uris
from kubediffusion.operator.retention import expiry
from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Image, Phase
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, job
from kubediffusion.resources.transitions import TERMINAL


def finished(phase: Phase = Phase.SUCCEEDED, at: dt.datetime = NOW, **spec: Any) -> GenerationJob:
    return job(status=GenerationJobStatus(phase=phase, completion_time=at), **spec)


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_a_finished_job_goes_its_time_to_live_after_its_end(phase: Phase) -> None:
    assert expiry(finished(phase), 60) == NOW + dt.timedelta(seconds=60)


def test_no_time_to_live_at_all_is_one_of_zero_seconds_and_not_for_ever() -> None:
    assert expiry(finished(), 0) == NOW


def test_a_job_without_a_time_to_live_stays() -> None:
    assert expiry(finished(), None) is None


def test_a_job_whose_time_to_live_ends_after_the_calendar_stays() -> None:
    """Nothing keeps a status from saying that it finished in the year 9999."""
    last = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    assert expiry(finished(at=last), 0) == last
    assert expiry(finished(at=last), 1) is None


@pytest.mark.parametrize("phase", sorted(set(Phase) - TERMINAL))
def test_a_job_that_has_not_finished_stays(phase: Phase) -> None:
    assert expiry(finished(phase), 0) is None


def deleted(item: GenerationJob, *finalizers: str) -> GenerationJob:
    update = {"deletion_timestamp": NOW, "finalizers": finalizers}
    return item.model_copy(update={"metadata": item.metadata.model_copy(update=update)})


def test_images_are_deleted_once_a_deleted_job_has_ended() -> None:
    assert awaits_image_deletion(deleted(finished(), meta.IMAGES_FINALIZER))


def test_images_stay_while_the_job_does_or_runs_or_holds_none() -> None:
    assert not awaits_image_deletion(finished())
    assert not awaits_image_deletion(deleted(finished(), "somebody/else"))


def test_a_job_that_has_not_ended_is_released_later_as_its_worker_may_still_store_images() -> None:
    assert release_pause(finished(), 150.0) == 0
    assert 0 < release_pause(job(), 150.0) < release_pause(bound_job(worker="pod"), 150.0) == 150.0


async def test_an_operator_without_storage_says_that_the_images_stay() -> None:
    assert "they stay" in await ImageRemover(None, "").remove(finished())


def reporting(*uris: str, count: int) -> GenerationJob:
    images = tuple(
        Image(index=index, uri=uri, sha256="0" * 64, bytes=1, width=8, height=8, seed=1)
        for index, uri in enumerate(uris)
    )
    status = GenerationJobStatus(phase=Phase.SUCCEEDED, completion_time=NOW, images=images)
    return job("a", status=status, num_images=count)


OWN = f"{NAMESPACE}/uid-a"


def test_images_are_where_the_status_names_them_and_unreported_ones_beside_them() -> None:
    item = reporting(f"s3://old/before/{OWN}/0.png", count=2)
    own, foreign = image_uris(item, "s3://new/after")
    assert own == [f"s3://old/before/{OWN}/0.png", f"s3://old/before/{OWN}/1.png"]
    assert foreign == []


def test_images_that_were_never_reported_are_where_the_operator_is_configured_to() -> None:
    assert image_uris(reporting(count=2), "s3://new/after")[0] == [f"s3://new/after/{OWN}/{n}.png" for n in range(2)]
    assert image_uris(reporting(count=1), "s3://new/")[0] == [f"s3://new/{OWN}/0.png"]


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://old/{NAMESPACE}/uid-b/0.png",
        "s3://old/other/uid-a/0.png",
        f"s3://old/{OWN}/1.png",
        f"s3://old/{OWN}/0.png/secrets",
        f"s3://old/x{OWN}/0.png",
        "s3://old/backups",
        f"file:///etc/{OWN}/0.png",
    ],
)
def test_what_is_no_key_of_the_jobs_own_is_no_image_of_it_whoever_wrote_the_status(uri: str) -> None:
    own, foreign = image_uris(reporting(uri, count=1), "s3://new/after")
    assert (own, foreign) == ([], [uri])
