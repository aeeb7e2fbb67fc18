"""The same work done in other ways, on the same machine in the same run: Kubernetes Jobs, and Celery with Redis."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from kubediffusion.benchmarks import batchjobs, celery_queue, figures, latency, throughput
from kubediffusion.benchmarks.site import LONG_SECONDS, BenchmarkError, Site
from kubediffusion.benchmarks.sizes import Sizes
from kubediffusion.local.processes import killed_with_parent


async def run(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Measure ourselves, one Job a request, and Celery.

    Returns:
        singles (our latency, one job at a time), burst (ours), jobs (see `batchjobs.run`), celery (see
        `celery_queue.run`; only ``missing`` where it is not installed).
    """
    runs = [await throughput.burst(site, throughput.over_http, sizes.tasks) for _ in range(sizes.runs)]
    return {
        "runs": sizes.runs,
        "singles": await latency.offer(site, 0, sizes.singles),
        "burst": figures.median(runs),
        "jobs": await batchjobs.run(site, sizes.rivals),
        "celery": await celery(site, sizes),
    }


async def celery(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Measure Celery, or say why not."""
    if problem := celery_queue.missing():
        return {"missing": problem}
    runs = []
    for _ in range(sizes.runs):
        command = [celery_queue.__name__, str(site.cluster.folder), str(sizes.singles), str(sizes.tasks)]
        process = await asyncio.create_subprocess_exec(
            *killed_with_parent([sys.executable, "-m", *command]), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        answer, complaint = await asyncio.wait_for(process.communicate(), LONG_SECONDS)
        if process.returncode:
            raise BenchmarkError(f"Celery: {complaint.decode(errors='replace')}")
        runs.append(json.loads(answer))
    found: dict[str, Any] = figures.median(runs)
    return found
