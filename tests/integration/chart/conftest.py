"""Helm, and what a rendered chart is checked with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.chart.helm_kit import Helm, gateway_crds, monitoring_crds, restricted_namespace
from kubediffusion.local import binaries
from kubediffusion.local.cluster import LocalCluster


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm, with a home of its own."""
    return Helm(binaries.provide(modules=(binaries.HELM,)).path("helm"), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def restricted(cluster: LocalCluster) -> Iterator[str]:
    """A namespace that admits only pods of the restricted profile, where Prometheus' and Gateways' kinds are known."""
    name = "chart"
    crds = [*monitoring_crds(), *gateway_crds()]
    cluster.apply([restricted_namespace(name), restricted_namespace("tenant"), *crds])
    names = [f"customresourcedefinition/{crd['metadata']['name']}" for crd in crds]
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    yield name
    cluster.kubectl("delete", "namespace", name, "tenant", "--wait=false")
    cluster.kubectl("delete", *names)
