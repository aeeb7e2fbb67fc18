"""What all tests share: one real cluster a process, and how tests are dealt to several processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from kubediffusion.local import installation
from kubediffusion.local.cluster import ClusterSettings, LocalCluster
from kubediffusion.local.node.restarts import CrashBackoff
from kubediffusion.worker.optional_libraries import hide_libraries

GPUS = 2
# More than any machine of ours has: tests share the cluster, and what they request must not make them wait.
CPUS = "64"
# These begin first, as they take the longest: so that all processes end at about the same time.
LONGEST = tuple(f"tests/integration/{name}" for name in ("chaos", "system", "local", "worker", "api", "benchmarks"))

# diffusers imports what it finds, this for seconds, and no test can use it: it runs on CUDA alone.
hide_libraries({"bitsandbytes"})

CLUSTER = pytest.StashKey[LocalCluster]()


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
    settings = ClusterSettings(gpus=GPUS, cpu=CPUS, backoff=CrashBackoff(initial=0.5, limit=2.0))
    with LocalCluster(settings) as running:
        running.apply(installation.cluster_scoped())
        running.store.create_bucket(installation.BUCKET)
        request.config.stash[CLUSTER] = running
        yield running
        running.keep = bool(request.session.testsfailed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says with each failure where the logs are."""
    report = yield
    if report.failed and (running := item.config.stash.get(CLUSTER, None)):
        report.sections.append(("Logs of the cluster and its pods", str(running.logs)))
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = _folder(item.nodeid)
        return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)

    items.sort(key=place)


class ByFolder(LoadScopeScheduling):  # type: ignore[misc] # xdist publishes no types
    """Deals a folder's tests to one process, as they share what takes long to start."""

    def _split_scope(self, nodeid: str) -> str:
        return _folder(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFolder:
    config.option.loadscopereorder = False  # in the order above
    return ByFolder(config, log)


def _folder(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[0]
