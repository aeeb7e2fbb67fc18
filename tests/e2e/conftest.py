"""One cluster for the whole run, with the chart installed in it. tests/e2e/run starts it, in namespaces of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from e2e.e2e_cluster import Cluster
from e2e.e2e_images import TAG
from e2e.e2e_studio import Studio

# Nothing here may run anywhere else: it fills the network and the process table of where it is.
collect_ignore_glob = [] if "KUBEDIFFUSION_E2E_WORK" in os.environ else ["test_*.py"]

NEXT_TAG = "e2e-next"
"""The same images under another name: an upgrade replaces every pod, and brings nothing new to fail."""


RUNNING = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    work = Path(os.environ["KUBEDIFFUSION_E2E_WORK"])
    with Cluster(work, Path(os.environ["KUBEDIFFUSION_E2E_STORE"]), (TAG, NEXT_TAG)) as running:
        pytestconfig.stash[RUNNING] = running
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what explains a failure while it can be seen."""
    report = yield
    if report.failed and (running := item.config.stash.get(RUNNING, None)):
        running.record(item.name)
    return report


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion; made in a process of its own, so that torch stays out of this one."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    program = (
        "import sys; from pathlib import Path; from kubediffusion.worker.testing import save_stable_diffusion as s; "
    )
    subprocess.run([sys.executable, "-c", program + "s(Path(sys.argv[1]))", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def studio(cluster: Cluster, pipeline: Path) -> Studio:
    """KubeDiffusion, installed by `helm install` from the previous chart."""
    installed = Studio(cluster, TAG, NEXT_TAG)
    installed.prepare(pipeline)
    installed.install()
    return installed
