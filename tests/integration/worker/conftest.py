"""A namespace for all tests of this folder, one warm worker for those that leave it alive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.worker.bench_of_workers import START_SECONDS, Bench, start, start_obedient
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace
from kubediffusion.resources.apiserver.client import KubernetesClient

SHARED = "workers"
WARM = "warm"


@pytest.fixture(scope="session")
def workplace(cluster: LocalCluster) -> Iterator[Namespace]:
    """A namespace with the worker's rights and storage."""
    namespace = Namespace(cluster, SHARED)
    namespace.create()
    namespace.install()
    yield namespace
    namespace.delete()


@pytest.fixture
def bench(workplace: Namespace, client: KubernetesClient, tiny_folder: Path) -> Bench:
    """Where jobs are bound by hand."""
    return Bench(workplace, client, tiny_folder)


@pytest.fixture(scope="session")
def warm(workplace: Namespace, tiny_folder: Path) -> str:
    """A worker that is ready. Leave it alive."""
    start(workplace, WARM, tiny_folder)
    workplace.wait_ready(WARM, START_SECONDS)
    return WARM


@pytest.fixture(scope="session")
def obedient(workplace: Namespace) -> str:
    """A worker whose engine obeys the prompt, for tests that ask nothing of pixels. Leave it alive."""
    return start_obedient(workplace, "obedient")
