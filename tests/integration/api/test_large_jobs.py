"""A replica starts within the chart's limit however large the jobs are that are there."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from integration.secrets.planted import Part
from kubediffusion.local.testing import Namespace
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient

MOST_MIB = 200
"""108 are taken without any job; listed at once, those of this test take some 150 more."""


def peak_mib(process: int) -> int:
    """Return the most memory that a process has had, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


async def test_a_replica_starts_beside_jobs_of_the_largest_size(
    namespace: Namespace, client: KubernetesClient, tmp_path: Path
) -> None:
    namespace.install()
    for number in range(120):
        job = {
            "apiVersion": meta.API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"name": f"large-{number}", "annotations": {"note": "x" * 200 * 1024}},
            "spec": {"prompt": "🦊" * 4000, "negativePrompt": "🦝" * 4000, "suspend": True},
        }
        await client.generation_jobs.create(namespace.name, job)
    with closing(Part("api", namespace, tmp_path, {})) as api:
        await asyncio.to_thread(api.wait_ready)
        assert "large-" in await asyncio.to_thread(api.get, "/v1/jobs?limit=1")
        assert peak_mib(api.process.pid) < MOST_MIB
