"""Helm, and what a rendered chart is checked with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubediffusion.local import binaries
from kubediffusion.local.cluster import LocalCluster

sys.path.insert(0, str(Path(__file__).parent))

from helm_kit import Helm, monitoring_crds, restricted_namespace


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm, with a home of its own."""
    return Helm(binaries.provide(modules=(binaries.HELM,)).path("helm"), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def restricted(cluster: LocalCluster) -> Iterator[str]:
    """A namespace that admits only pods of the restricted profile, in a cluster that knows Prometheus' kinds."""
    name = "chart"
    cluster.apply([restricted_namespace(name), restricted_namespace("tenant"), *monitoring_crds()])
    names = [f"customresourcedefinition/{crd['metadata']['name']}" for crd in monitoring_crds()]
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    yield name
    cluster.kubectl("delete", "namespace", name, "tenant", "--wait=false")
    cluster.kubectl("delete", *names)
