"""One tiny pipeline for all tests of this folder, one warm worker for those that leave it alive."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace
from kubediffusion.resources.client import KubernetesClient

# Tests are no packages.
sys.path.insert(0, str(Path(__file__).parent))

from bench_of_workers import START_SECONDS, Bench, start

SHARED = "workers"
WARM = "warm"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion; made in a process of its own, so that torch stays out of this one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    program = "import sys, pathlib; from kubediffusion.worker import testing; "
    program += "testing.save_stable_diffusion(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def workplace(cluster: LocalCluster) -> Iterator[Namespace]:
    """A namespace with the worker's rights and storage."""
    namespace = Namespace(cluster, SHARED)
    namespace.create()
    namespace.install()
    yield namespace
    namespace.delete()


@pytest.fixture
def bench(workplace: Namespace, client: KubernetesClient, tiny_model: Path) -> Bench:
    """Where jobs are bound by hand."""
    return Bench(workplace, client, tiny_model)


@pytest.fixture(scope="session")
def warm(workplace: Namespace, tiny_model: Path) -> str:
    """A worker that is ready. Leave it alive."""
    start(workplace, WARM, tiny_model)
    workplace.wait_ready(WARM, START_SECONDS)
    return WARM
