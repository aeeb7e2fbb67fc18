"""Inputs are fetched beside the engine: storage that is away makes their own job wait, and says so."""

from __future__ import annotations

import hashlib
import io
from contextlib import closing

from PIL import Image

from integration.worker.bench_of_workers import Bench
from kubediffusion.local.installation import BUCKET, PREFIX
from kubediffusion.local.testing import eventually
from kubediffusion.resources.conditions import ConditionStatus, find_condition
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.image_keys import input_key
from kubediffusion.resources.testing import present


async def run(bench: Bench, name: str, worker: str, given: str) -> GenerationJob:
    """Run a job that begins from an input."""
    inputs = [{"role": "image", "id": given}]
    job = await bench.submit(name, inputs=inputs)
    return await bench.bind(job, worker, inputs=inputs, strength=0.5)


async def test_a_job_waits_for_storage_to_give_its_input_and_says_so(bench: Bench, obedient: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    data = file.getvalue()
    given = hashlib.sha256(data).hexdigest()
    store = bench.namespace.cluster.store
    with closing(store.client()) as client:
        client.put_object(Bucket=BUCKET, Key=input_key(PREFIX, bench.namespace.name, given), Body=data)
    store.process.stop()
    try:
        await run(bench, "waits-for-its-input", obedient, given)

        async def told() -> str | None:
            found = find_condition((await bench.get("waits-for-its-input")).status.conditions, "Uploaded")
            return found.message if found is not None and found.status is ConditionStatus.FALSE else None

        assert "the image is not read yet" in await eventually("what it waits for", told)
    finally:
        store.process.start()
        store.process.wait_ready()
    job = await bench.reached("waits-for-its-input")
    assert job.status.phase is Phase.SUCCEEDED, job.status.error
    bench.check_images(job)


async def test_an_input_of_another_namespace_is_none(bench: Bench, obedient: str) -> None:
    data = b"another tenant's picture"
    given = hashlib.sha256(data).hexdigest()
    with closing(bench.namespace.cluster.store.client()) as client:
        client.put_object(Bucket=BUCKET, Key=input_key(PREFIX, "another-namespace", given), Body=data)
    await run(bench, "takes-anothers", obedient, given)
    job = await bench.reached("takes-anothers")
    error = present(job.status.error)
    assert (job.status.phase, error.code) == (Phase.FAILED, "InvalidInput")
    assert "is not in storage" in error.message
