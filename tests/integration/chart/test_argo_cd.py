"""A first sync by Argo CD, on an API server that knows nothing of KubeDiffusion, and one after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.chart.argo_cd import sync_order
from integration.chart.helm_kit import Helm, Object, kinds, restricted_namespace
from integration.chart.matrix import EVERYTHING, MATRIX
from kubediffusion.local import binaries
from kubediffusion.local.controlplane import ControlPlane
from kubediffusion.local.reservations import Reservations
from kubediffusion.local.rest import Rest
from kubediffusion.local.testing import wait_for
from kubediffusion.resources.crds.definitions import definitions

NAMESPACE = "images"
# Kinds of the Prometheus operator belong to another application.
UNMONITORED = {**EVERYTHING, "metrics": {}}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Rest]:
    """The API server of a control plane of its own, without any CRD, and without a node."""
    with Reservations() as reservations:
        plane = ControlPlane(tmp_path, binaries.provide(), reservations)
        try:
            plane.start()
            plane.wait_ready()
            plane.rest.apply(restricted_namespace(NAMESPACE), "tests")
            yield plane.rest
        finally:
            plane.stop()


def apply(rest: Rest, found: Object) -> None:
    """Apply as Argo CD does with server-side apply; after a CRD, wait until its kind is served, as it does too."""
    rest.apply({**found, "metadata": {"namespace": NAMESPACE, **found["metadata"]}}, "argocd-controller")
    if found["kind"] == "CustomResourceDefinition":
        plural = found["metadata"]["name"].partition(".")[0]
        wait_for(f"{plural} to be served", lambda: rest.list(plural, NAMESPACE) is not None)


def test_a_first_sync_and_the_next_apply_everything(empty: Rest, helm: Helm) -> None:
    objects = helm.template({**UNMONITORED, "crds": {"upgrade": True}}, "--include-crds", namespace=NAMESPACE)
    for _ in range(2):
        for found in sync_order(objects):
            apply(empty, found)
    assert empty.get("diffusionmodels", "default", NAMESPACE)["spec"]
    assert empty.list("validatingadmissionpolicies")


def test_a_sync_without_crds_applies_everything_to_a_cluster_that_has_them(empty: Rest, helm: Helm) -> None:
    for crd in definitions():
        apply(empty, crd)
    values = {**UNMONITORED, "crds": {"upgrade": False}}
    for found in sync_order(helm.template(values, namespace=NAMESPACE)):
        apply(empty, found)
    assert empty.get("diffusionmodels", "default", NAMESPACE)["spec"]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_a_sync_runs_no_hook_and_leaves_nothing_else_out(helm: Helm, values: Object) -> None:
    """The hook brings up to date what Argo CD applies itself, and before that there is nothing to bring up to date."""
    objects = helm.template(values, "--include-crds")
    synced = sync_order(objects)
    hooks = [found for found in objects if "helm.sh/hook" in found["metadata"].get("annotations", {})]
    assert [found for found in objects if found not in synced] == hooks
    # Helm's test of the API, and what brings the CRDs up to date where that is asked for.
    upgrade = {"pre-install,pre-upgrade"} if values.get("crds", {}).get("upgrade", True) else set()
    test = {"test"} if values.get("api", {}).get("enabled", True) else set()
    assert {found["metadata"]["annotations"]["helm.sh/hook"] for found in hooks} == test | upgrade
    assert [found for found in synced if "helm.sh/hook" in found["metadata"].get("annotations", {})] == []
    assert {kind for kind in kinds(synced) if kind.startswith("CustomResourceDefinition")} == {
        "CustomResourceDefinition/diffusionmodels.kubediffusion.io",
        "CustomResourceDefinition/generationjobs.kubediffusion.io",
        "CustomResourceDefinition/loraadapters.kubediffusion.io",
    }
    assert json.dumps(sync_order(synced)) == json.dumps(synced)
