"""A worker whose image two ranks share, from the resource to the picture, and what becomes of its job without one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from integration.system.studio import Studio, tiny_model
from kubediffusion.local.testing import wait_for
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present


def other_ranks(studio: Studio, pod: str) -> list[psutil.Process]:
    """Return the processes of a worker that are its other ranks."""
    children = psutil.Process(studio.namespace.pid(pod)).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


async def test_a_job_whose_worker_has_lost_a_rank_is_bound_again_and_ends(
    open_studio: Callable[..., Studio], tiny_folder: Path
) -> None:
    studio = open_studio(tiny_model(tiny_folder, minReplicas=0, parallelism={"mode": "cfg", "size": 2}))
    await studio.submit("disturbed", numInferenceSteps=150)
    running = await studio.phase("disturbed", Phase.RUNNING)
    pod = present(running.status.worker)
    (rank,) = other_ranks(studio, pod)
    rank.send_signal(signal.SIGKILL)
    studio.namespace.wait_phase(pod, "Failed")
    ended = studio.namespace.container(pod)["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (1, "EngineLostError: rank-1 ended (signal 9)")
    job = await studio.phase("disturbed", Phase.SUCCEEDED)
    assert job.status.attempt > running.status.attempt
    assert present(job.status.parameters).engine == "continuous+cfg2"
    studio.assert_images_are_true(job)
    # With the worker its ranks go, however it ends.
    second = present(job.status.worker)
    (left,) = other_ranks(studio, second)
    os.kill(studio.namespace.pid(second), signal.SIGKILL)
    wait_for("the rank of a killed worker to end", lambda: not left.is_running() or left.status() == "zombie")
