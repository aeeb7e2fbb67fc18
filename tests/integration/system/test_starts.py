"""How far a worker's start has come is seen by whoever asks: in the model's status, in kubectl's table, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from integration.system.studio import MODEL, Studio, tiny_model
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.conditions import EngineReason, ModelConditionType, WaitingReason, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModelStatus
from kubediffusion.resources.generation_job import Phase

TOLD = [WaitingReason.WORKER_STARTING, *EngineReason]
"""What a start on a machine with room goes through, some of it too short to be seen."""


async def test_a_models_status_tells_how_far_a_start_has_come(
    open_studio: Callable[..., Studio], tiny_folder: Path
) -> None:
    studio = open_studio(tiny_model(tiny_folder, minReplicas=0))
    statuses: list[DiffusionModelStatus] = []
    watch = Reflector(studio.models, studio.name, lambda model, _: statuses.append(model.status))
    watching = asyncio.create_task(watch.run())
    await studio.submit("first")
    await studio.until(
        "first", "says what it waits for", lambda job: find_condition(job.status.conditions, "Scheduled"), seconds=60
    )
    async with studio.http() as http, asyncio.timeout(60):
        # The model's status follows within a second of the job's.
        while not (starts := (await http.get("/v1/models")).json()["models"][0]["workers"]["starts"]):  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.02)
        waiting = (await http.get("/v1/jobs/first")).json()["waiting"]
    (start,) = starts
    assert waiting["reason"] == "WorkerStarting"
    assert waiting["message"].startswith(f"a worker is loading model {MODEL}: ")
    assert start["worker"].startswith(f"{MODEL}-")
    (row,) = studio.namespace.kubectl("get", "diffusionmodels", "--no-headers").splitlines()
    assert set(TOLD) & set(row.split())
    studio.assert_images_are_true(await studio.phase("first", Phase.SUCCEEDED))
    watching.cancel()

    seen = [status.workers.starts[0].reason for status in statuses if status.workers.starts]
    assert seen == sorted(seen, key=TOLD.index)
    assert EngineReason.IMPORTING in seen
    assert statuses[-1].workers.starts == ()
    # A handful for the start, whatever it says, and those of the queue and the job that there would be without it.
    assert len(statuses) <= len(set(seen)) + 8
    importing = next(s for s in statuses if s.workers.starts and s.workers.starts[0].reason == EngineReason.IMPORTING)
    available = find_condition(importing.conditions, ModelConditionType.AVAILABLE)
    assert available is not None
    assert available.reason == "NotYetLoaded"
    assert available.message.endswith("one is starting: PyTorch and diffusers are imported (Importing)")
