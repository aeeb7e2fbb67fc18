"""An API with a model behind it, in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.api.api_kit import Api, Site, Stage, StartApi, serving
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace


@pytest.fixture(scope="session")
def shared(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace for the tests that leave its model as it is and do not count its jobs."""
    namespace = Namespace(cluster, "shared-api")
    namespace.create()
    with serving(namespace, tmp_path_factory.mktemp("api")) as site:
        yield site
    namespace.delete()


@pytest.fixture
def stage(shared: Site) -> Stage:
    """Operator and worker of the shared namespace."""
    return shared.stage


@pytest.fixture(scope="session")
def api(shared: Site) -> Api:
    """An API in the shared namespace; no rate limit, as all tests together are one busy client."""
    return shared.start(RATE_LIMIT="")


@pytest.fixture(scope="session")
def replica(shared: Site) -> Api:
    """Another replica of it."""
    return shared.start(RATE_LIMIT="")


@pytest.fixture(scope="session")
def uncached_api(shared: Site) -> Api:
    """One that reads each image anew."""
    return shared.start(RATE_LIMIT="", IMAGE_CACHE_BYTES="0")


@pytest.fixture
def start_api(shared: Site) -> StartApi:
    """Starts another API in the shared namespace."""
    return shared.start


@pytest.fixture
def site(namespace: Namespace, tmp_path: Path) -> Iterator[Site]:
    """A namespace of the test's own."""
    with serving(namespace, tmp_path) as own:
        yield own
