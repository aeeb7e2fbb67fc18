"""The seed's interface, served by the real API before a real cluster, with the fixtures of the integration tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace

INTEGRATION = Path(__file__).parents[1] / "integration"
sys.path.insert(0, str(INTEGRATION / "api"))

from api_kit import Api, Site, serving  # noqa: E402 - after the path is set


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cluster = _load("integration_fixtures", INTEGRATION / "conftest.py").cluster


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
