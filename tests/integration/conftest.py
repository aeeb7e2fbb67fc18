"""One real cluster for the whole run, and a namespace of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import ClusterSettings, LocalCluster
from kubediffusion.local.node.restarts import Backoff
from kubediffusion.local.testing import Namespace, connect
from kubediffusion.resources.client import KubernetesClient

GPUS = 2
# More than any machine of ours has: tests share the cluster, and what they request must not make them wait.
CPUS = "64"

numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def direct() -> Iterator[None]:
    """Whoever tests behind a proxy: nothing here is on its other side."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        yield


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """A control plane, an S3 server and a process node with two simulated GPUs; KubeDiffusion's CRDs are there.

    After a failure its folder stays, with every log.
    """
    settings = ClusterSettings(gpus=GPUS, cpu=CPUS, backoff=Backoff(initial=0.5, limit=2.0))
    with LocalCluster(settings) as running:
        running.apply(installation.cluster_scoped())
        running.store.create_bucket(installation.BUCKET)
        yield running
        if request.session.testsfailed:
            running.keep = True
            request.config.get_terminal_writer().line(f"\nThe logs of the cluster and its pods: {running.logs}")


@pytest.fixture
def namespace(cluster: LocalCluster) -> Iterator[Namespace]:
    """A fresh namespace."""
    fresh = Namespace(cluster, f"test-{next(numbers)}")
    fresh.create()
    yield fresh
    fresh.delete()


@pytest.fixture
async def client(cluster: LocalCluster) -> AsyncIterator[KubernetesClient]:
    """A client with the rights of an administrator."""
    async with await connect(cluster.admin) as administrator:
        yield administrator
