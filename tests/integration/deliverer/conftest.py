"""A namespace with a receiver, and deliverers for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.api.api_kit import Stage
from integration.deliverer.deliverers import Jobs, Receiver, StartDeliverer, deliverers, secret
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace


@pytest.fixture(scope="session")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """Somebody who is told."""
    running = Receiver(tmp_path_factory.mktemp("receiver"))
    yield running
    running.close()


def stage_in(namespace: Namespace, folder: Path) -> Iterator[Stage]:
    namespace.install(secret())
    playing = Stage(namespace, folder)
    playing.model()
    yield playing
    playing.close()


@pytest.fixture(scope="session")
def shared(cluster: LocalCluster) -> Iterator[Namespace]:
    """A namespace for the tests of one deliverer that nobody stops."""
    namespace = Namespace(cluster, "webhooks")
    namespace.create()
    yield namespace
    namespace.delete()


@pytest.fixture(scope="session")
def shared_stage(shared: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Operator and worker of the shared namespace."""
    yield from stage_in(shared, tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="session")
def deliverer(
    shared: Namespace, shared_stage: Stage, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The log of one deliverer of the shared namespace, which knows its receiver by name."""
    folder = tmp_path_factory.mktemp("deliverer")
    with deliverers(shared, folder, WEBHOOK_ALLOWED_HOSTS=receiver.host, WEBHOOK_TIMEOUT_SECONDS="3") as start:
        process = start()
        process.wait_leading()
        yield process.log


@pytest.fixture
def jobs(shared_stage: Stage, deliverer: Path) -> Jobs:
    """Jobs of the shared namespace, whose webhooks are delivered."""
    return Jobs(shared_stage)


@pytest.fixture
def own_jobs(namespace: Namespace, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs of a namespace of the test's own, whose webhooks nobody delivers yet."""
    for stage in stage_in(namespace, tmp_path):
        yield Jobs(stage)


@pytest.fixture
def start_deliverer(
    namespace: Namespace, own_jobs: Jobs, receiver: Receiver, tmp_path: Path
) -> Iterator[StartDeliverer]:
    """Starts a deliverer of that namespace."""
    with deliverers(namespace, tmp_path, WEBHOOK_ALLOWED_HOSTS=receiver.host, WEBHOOK_TIMEOUT_SECONDS="20") as start:
        yield start
