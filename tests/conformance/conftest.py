"""The task API, served by the real API before a real cluster, with the kit of the API's own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.api.api_kit import Api, Site, serving
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace


@pytest.fixture(scope="session")
def site(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace with a model, and somebody who plays operator and worker."""
    namespace = Namespace(cluster, "conformance")
    namespace.create()
    with serving(namespace, tmp_path_factory.mktemp("conformance")) as served:
        yield served


@pytest.fixture(scope="session")
def server(site: Site) -> Api:
    """The server as an ordinary client meets it: the default settings."""
    return site.start()
