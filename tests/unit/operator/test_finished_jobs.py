"""Which finished jobs are too many: for the operator's setting, or for a quota that new ones are to find room in."""

from __future__ import annotations

import datetime as dt

import pytest

from kubediffusion.operator.finished_jobs import LEAST_AGE, FinishedCount, FinishedJobs
from kubediffusion.operator.job_quotas import COUNTED, ResourceQuota, ResourceQuotaStatus, jobs_admitted
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.objects import ObjectMeta
from kubediffusion.resources.testing import NAMESPACE, NOW, job

OLD, YOUNG = LEAST_AGE.total_seconds() + 60, LEAST_AGE.total_seconds() - 1


def finished(name: str, ago: float) -> GenerationJob:
    status = GenerationJobStatus(phase=Phase.SUCCEEDED, completion_time=NOW - dt.timedelta(seconds=ago))
    return job(name, status=status)


def finished_jobs(
    number: int, ago: float, *, most: int = 0, unfinished: int = 0, quota: int | None = None
) -> FinishedJobs:
    found = FinishedJobs(most, lambda _: unfinished)
    found.quotas = {} if quota is None else {NAMESPACE: quota}
    for n in range(number):
        found.add(finished(f"job-{n:02}", ago - n / 100))
    return found


def surplus(found: FinishedJobs) -> list[str]:
    return [name for _, name, _ in found.take_surplus(NOW)]


@pytest.mark.parametrize(
    ("number", "ago", "quota", "unfinished", "goes"),
    [
        # A tenth of the quota is kept free, and one at least.
        (50, OLD, 50, 0, 5),
        (45, OLD, 50, 0, 0),
        (45, OLD, 50, 5, 5),
        (10, OLD, 50, 50, 10),
        (1, OLD, 1, 0, 1),
        (3, OLD, 4, 0, 0),
        # Who asked for a job can read how it ended.
        (50, YOUNG, 50, 0, 0),
        # A quota that admits none has no room to make: it freezes a namespace, and empties none.
        (50, OLD, 0, 0, 0),
        (50, OLD, None, 0, 0),
    ],
)
def test_a_quota_keeps_room_for_jobs_to_come(
    number: int, ago: float, quota: int | None, unfinished: int, goes: int
) -> None:
    found = finished_jobs(number, ago, unfinished=unfinished, quota=quota)
    assert surplus(found) == [f"job-{n:02}" for n in range(goes)]
    assert surplus(found) == []


def test_the_setting_holds_whatever_the_age_and_whatever_the_quota() -> None:
    assert surplus(finished_jobs(5, YOUNG, most=3)) == ["job-00", "job-01"]
    assert surplus(finished_jobs(5, YOUNG, most=3, quota=5)) == ["job-00", "job-01"]
    assert surplus(finished_jobs(5, OLD, most=4, quota=3)) == ["job-00", "job-01", "job-02"]


def test_those_that_go_are_counted_until_they_are_gone() -> None:
    found = finished_jobs(50, OLD, quota=50)
    assert found.counts() == {NAMESPACE: FinishedCount(50, 45)}
    assert surplus(found) == [f"job-{n:02}" for n in range(5)]
    # The watch tells of one of them again.
    found.add(finished("job-00", OLD))
    assert surplus(found) == []
    assert found.counts() == {NAMESPACE: FinishedCount(50, 45)}
    assert found.is_surplus(finished("job-00", OLD))
    assert not found.is_surplus(finished("job-05", OLD))
    for n in range(50):
        found.remove(f"uid-job-{n:02}")
    assert found.counts() == {}


def test_an_unfinished_job_is_none_of_them() -> None:
    found = FinishedJobs(0, lambda _: 0)
    found.add(job("a"))
    assert found.counts() == {}


def test_of_several_quotas_of_a_namespace_the_smallest_counts() -> None:
    def quota(namespace: str, **hard: str) -> ResourceQuota:
        status = ResourceQuotaStatus(hard={key.replace("jobs", COUNTED): value for key, value in hard.items()})
        return ResourceQuota(metadata=ObjectMeta(name="q", namespace=namespace), status=status)

    quotas = [quota("a", jobs="10k"), quota("a", jobs="50"), quota("b", jobs="1Ki", pods="4"), quota("c", pods="4")]
    assert jobs_admitted(quotas) == {"a": 50, "b": 1024}
