"""What an installation costs that has nothing to do, with many finished jobs kept; and how fast its parts are back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import asdict
from typing import Any

from kubediffusion.benchmarks import apiserver, figures
from kubediffusion.benchmarks.loopback import Client
from kubediffusion.benchmarks.site import Site, ready_pod, until
from kubediffusion.benchmarks.sizes import Sizes
from kubediffusion.benchmarks.usage import Meter, started
from kubediffusion.local import installation

PARTS = {
    "operator": (installation.OPERATOR, installation.OPERATOR_PORT),
    "API": (installation.API, installation.API_PORT),
}
LOOK_SECONDS = 0.01


async def run(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Measure a time in which nothing runs, then kill operator and API.

    Returns:
        jobs; seconds; processes (of each its cpu in seconds over that time, rss and peak in MiB); requests (to the API
        server, by kind); restarts (of each part the median of down and start, in seconds: from the kill, and from the
        new process's start, until it serves).
    """
    await site.fill(sizes.kept)
    jobs, _ = await site.count()
    await site.quiet()
    pids, requests = site.pids(), apiserver.requests(site.cluster)
    meter = Meter(pids)
    # The time that is measured: nothing happens in it.
    await asyncio.sleep(sizes.idle_seconds)
    seconds, used = meter.read()
    made = apiserver.requests(site.cluster) - requests
    restarts = {}
    for name in PARTS:
        runs = [await restart(site, name) for _ in range(sizes.restarts)]
        restarts[name] = {"runs": len(runs), **figures.median(runs)}
    return {
        "jobs": jobs,
        "seconds": seconds,
        "processes": {name: asdict(usage) for name, usage in used.items()},
        "requests": dict(made),
        "restarts": restarts,
    }


async def restart(site: Site, part: str) -> dict[str, float]:
    """Kill a part as a crash does, and wait until the next process serves."""
    prefix, port = PARTS[part]
    pod = ready_pod(site.namespace, prefix)
    address, pid = site.namespace.pod_status(pod)["podIP"], site.namespace.pid(pod)
    os.kill(pid, signal.SIGKILL)
    killed = time.clock_gettime(time.CLOCK_BOOTTIME)

    async def serves() -> bool:
        async with Client(address, port) as client:
            try:
                status, _ = await client.request("GET", "/readyz")
            except OSError:
                return False
            return status == 200

    await until(f"{part} is back", serves, LOOK_SECONDS)
    ready = time.clock_gettime(time.CLOCK_BOOTTIME)
    # The node tells of the new process a moment later.
    await until(f"the new {part} is known", lambda: _changed(site, pod, pid), LOOK_SECONDS)
    began = started(site.namespace.pid(pod))
    await site.quiet()
    return {"down": ready - killed, "start": ready - began}


async def _changed(site: Site, pod: str, pid: int) -> bool:
    state = site.namespace.container(pod)
    return "running" in state["state"] and site.namespace.pid(pod) != pid
