"""Where the API server's processor time goes: its own profile (pprof), taken during one more burst."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from kubediffusion.benchmarks.site import LONG_SECONDS, BenchmarkError, Site
from kubediffusion.benchmarks.throughput import over_http
from kubediffusion.local import binaries
from kubediffusion.local.processes import killed_with_parent

SECONDS = 10
JOBS = 1_500
"""Jobs of the burst: more than two cores finish in ``SECONDS``."""
FILE = "apiserver.pb.gz"


async def write(site: Site, folder: Path) -> None:
    """Profile the API server while a burst goes through, into :data:`FILE`.

    Raises:
        BenchmarkError: kubectl failed.
    """
    await site.clear()
    command = [str(binaries.provide().path("kubectl")), "get", "--raw", f"/debug/pprof/profile?seconds={SECONDS}"]
    with (folder / FILE).open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *killed_with_parent(command),
            env={"KUBECONFIG": str(site.cluster.admin), "HOME": str(site.cluster.folder)},
            stdout=output,
            stderr=subprocess.PIPE,
        )
        await over_http(site, JOBS)
        _, problem = await asyncio.wait_for(process.communicate(), LONG_SECONDS)
    if process.returncode:
        raise BenchmarkError(f"the API server's profile: {problem.decode(errors='replace')}")
    await site.finished(JOBS)
