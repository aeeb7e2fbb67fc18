"""What all tests share: one real cluster a process, and how tests are dealt to several processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from kubediffusion.local import installation
from kubediffusion.local.cluster import ClusterSettings, LocalCluster
from kubediffusion.local.node.restarts import CrashBackoff
from kubediffusion.worker.optional_libraries import hide_libraries

GPUS = 2
# More than any machine of ours has: tests share the cluster, and what they request must not make them wait.
CPUS = "64"
# Tests before a cluster, mostly waiting, in the order in which they begin: what takes longest first.
WAITING = (
    *(f"tests/integration/{name}" for name in ("chaos", "system", "api", "worker", "operator", "client", "local")),
    "tests/integration",
    "tests/conformance",
)
# Tests that compute, longest last: the last process begins with them, while the others wait.
COMPUTING = ("tests/unit", "tests/unit/embedded_model", "tests/unit/worker/families", "tests/unit/worker")

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
    order = {folder: place for place, folder in enumerate((*WAITING, *COMPUTING))}

    def place(item: pytest.Item) -> int:
        folder = _folder(item.nodeid)
        while folder and folder not in order:
            folder = folder.rpartition("/")[0]
        return order.get(folder, len(order))

    items.sort(key=place)


class FromBothEnds(LoadScopeScheduling):  # type: ignore[misc] # xdist publishes no types
    """Deals tests in the order above; the last process takes them from the end, so that one computes while others wait.

    A folder's tests before a cluster go to one process, as they share what takes long to start. Others go by module, so
    that all processes end at about the same time.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = _folder(nodeid)
        return nodeid.partition("::")[0] if folder.startswith("tests/unit") else folder

    def _assign_work_unit(self, node: WorkerController) -> None:
        if node is self.nodes[-1]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FromBothEnds:
    config.option.loadscopereorder = False  # in the order above
    return FromBothEnds(config, log)


def _folder(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[0]
