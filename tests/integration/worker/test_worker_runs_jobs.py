"""A worker's Pod runs the jobs that are bound to it, against a real API server and a real S3 server."""

from __future__ import annotations

from bench_of_workers import Bench

from kubediffusion.resources.conditions import ConditionStatus, find
from kubediffusion.resources.generation_job import Phase


async def test_a_job_becomes_an_image_in_storage(bench: Bench) -> None:
    worker = bench.worker("worker")
    await bench.run("first", worker, numImages=3, seed=7)
    job = await bench.reached("first")
    status = job.status
    assert status.phase is Phase.SUCCEEDED, status.error
    bench.check_images(job)
    assert [image.seed for image in status.images] == [7, 8, 9]
    assert find(status.conditions, "Complete").status is ConditionStatus.TRUE
    assert status.progress.summary == "2/2"
    assert status.parameters.pipeline == "StableDiffusionPipeline"
    assert status.parameters.scheduler == "PNDMScheduler"
    assert (status.parameters.width, status.parameters.height) == (64, 64)
    assert status.parameters.model_revision.startswith("sha256:")
    assert status.queued_at <= status.start_time <= status.completion_time
    assert status.timings.inference > 0
