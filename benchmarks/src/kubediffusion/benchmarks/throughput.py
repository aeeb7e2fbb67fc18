"""How many jobs a second go through their whole life, what each costs, and whether that grows with their number."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from kubediffusion.benchmarks import apiserver, figures
from kubediffusion.benchmarks.site import LONG_SECONDS, BenchmarkError, Site, gather
from kubediffusion.benchmarks.sizes import Sizes
from kubediffusion.benchmarks.usage import Meter
from kubediffusion.local import binaries
from kubediffusion.local.processes import killed_with_parent
from kubediffusion.resources import meta

CLIENTS = 64
"""Requests under way at once."""

Door = Callable[[Site, int], Awaitable[None]]
"""Sends a number of jobs at once."""


async def run(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Measure bursts of every size over HTTP, then one by ``kubectl apply``."""
    bursts = []
    for jobs in sizes.bursts:
        runs = [await burst(site, over_http, jobs) for _ in range(sizes.runs)]
        bursts.append({"door": "HTTP", "runs": len(runs), **figures.median(runs)})
    applied = await burst(site, by_kubectl, sizes.applied)
    return {"bursts": [*bursts, {"door": "kubectl apply", "runs": 1, **applied}]}


async def burst(site: Site, door: Door, jobs: int) -> dict[str, Any]:
    """Send jobs at once to an empty cluster, wait until all have ended, and say what that took.

    Returns:
        jobs, accepted and seconds (until the door had taken all, until all had ended), requests (to the API server, by
        kind), processes (of each its cpu in seconds, and rss and peak in MiB).
    """
    await site.clear()
    pids, requests = site.pids(), apiserver.requests(site.cluster)
    meter, began = Meter(pids), time.monotonic()
    await door(site, jobs)
    accepted = time.monotonic() - began
    await site.finished(jobs)
    seconds, used = meter.read()
    made = apiserver.requests(site.cluster) - requests
    await site.check(jobs)
    return {
        "jobs": jobs,
        "accepted": accepted,
        "seconds": seconds,
        "requests": dict(made),
        "processes": {name: asdict(usage) for name, usage in used.items()},
    }


async def over_http(site: Site, jobs: int) -> None:
    """Send requests as fast as the API takes them."""
    await gather((site.submit() for _ in range(jobs)), CLIENTS)


async def by_kubectl(site: Site, jobs: int) -> None:
    """Apply one file that holds ``jobs`` jobs.

    Raises:
        BenchmarkError: kubectl failed.
    """
    file = site.cluster.folder / "jobs.yaml"
    file.write_text("---\n".join(manifest(f"job-{number}") for number in range(jobs)))
    command = [
        str(binaries.provide().path("kubectl")),
        "apply",
        f"--namespace={site.namespace.name}",
        f"--filename={file}",
    ]
    process = await asyncio.create_subprocess_exec(
        *killed_with_parent(command),
        env={"KUBECONFIG": str(site.cluster.admin), "HOME": str(site.cluster.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, problem = await asyncio.wait_for(process.communicate(), LONG_SECONDS)
    if process.returncode:
        raise BenchmarkError(f"kubectl apply: {problem.decode(errors='replace')}")


def manifest(name: str) -> str:
    """Return a job as a document of a YAML file."""
    job = {
        "apiVersion": meta.API_VERSION,
        "kind": "GenerationJob",
        "metadata": {"name": name},
        "spec": {"prompt": "A photo of an astronaut riding a horse on the moon", "numInferenceSteps": 25},
    }
    return json.dumps(job) + "\n"


def cost(burst: Mapping[str, Any]) -> float:
    """Return the seconds of processor time per job of all processes but the one that sent the jobs."""
    seconds = sum(used["cpu"] for name, used in burst["processes"].items() if name != "benchmark")
    return float(seconds / burst["jobs"])
