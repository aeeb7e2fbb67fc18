"""One job that the operator cannot take in is told in the log, and keeps nobody else's from it."""

from __future__ import annotations

from kubernetes.aio.client import Configuration

from kubediffusion.operator.watching import watch_jobs
from kubediffusion.resources.client import KubernetesClient
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.testing import job


async def test_a_job_at_which_the_observer_fails_is_named_and_does_not_end_the_watch(caplog):
    told = []

    def observe(item: GenerationJob, gone: bool) -> None:
        if item.name == "bad":
            raise OverflowError("date value out of range")
        told.append((item.name, gone))

    async with KubernetesClient(Configuration()) as client:
        watch = watch_jobs(client, None, observe)
        for name in ("first", "bad", "last"):
            watch._take(job(name), False)
        watch._take(job("bad"), True)
    assert told == [("first", False), ("last", False)]
    assert [record.job for record in caplog.records] == ["bad", "bad"]
    assert "date value out of range" in caplog.text
