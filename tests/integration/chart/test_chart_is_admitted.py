"""What the API server says to the chart: to every object, and to every pod under the restricted profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from integration.chart.helm_kit import Helm, Object, pod_specs
from integration.chart.matrix import MATRIX
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.layout import CHART
from kubediffusion.operator.manifests import WorkerDefaults, worker_job
from kubediffusion.resources.crds.definitions import definitions
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.objects import ObjectMeta

CRD = "customresourcedefinition/generationjobs.kubediffusion.io"
NEW_CRD = "customresourcedefinition/loraadapters.kubediffusion.io"
UPGRADER = "crd-upgrader"


def dry_run(cluster: LocalCluster, objects: list[Object]) -> str:
    return cluster.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--field-manager=helm",
        "--filename=-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
    )


def as_pod(namespace: str, name: str, spec: Object) -> Object:
    # Its service account need not exist for that, nor its priority class: both are the concern of other admission.
    spec = {k: v for k, v in spec.items() if k not in {"serviceAccountName", "priorityClassName"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-pod", "namespace": namespace},
        "spec": spec,
    }


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_object_is_admitted(cluster: LocalCluster, helm: Helm, restricted: str, values: Object) -> None:
    objects = helm.template(values, namespace=restricted)
    said = dry_run(cluster, objects)
    assert len(said.splitlines()) == len(objects)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_pod_is_admitted_as_restricted(
    cluster: LocalCluster, helm: Helm, restricted: str, values: Object
) -> None:
    pods = [as_pod(restricted, name, spec) for name, spec in pod_specs(helm.template(values, namespace=restricted))]
    assert pods
    dry_run(cluster, pods)


def test_a_worker_is_admitted_as_restricted(cluster: LocalCluster, restricted: str) -> None:
    spec = {
        "source": {"persistentVolumeClaim": {"claimName": "models"}},
        "workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    }
    model = DiffusionModel.model_validate(
        {"spec": spec, "metadata": ObjectMeta(name="m", namespace=restricted, uid="u")}
    )
    job = worker_job(model, "0a1b2c3d", 0, WorkerDefaults("kubediffusion-worker", "w", 8080, "s3", "INFO"))
    dry_run(cluster, [job, as_pod(restricted, "worker", job["spec"]["template"]["spec"])])


def test_the_restricted_profile_is_in_force(cluster: LocalCluster, restricted: str) -> None:
    spec = {"containers": [{"name": "root", "image": "none"}]}
    with pytest.raises(Exception, match='violates PodSecurity "restricted'):
        dry_run(cluster, [as_pod(restricted, "root", spec)])


def test_crds_are_brought_up_to_date_with_no_more_right_than_that(cluster: LocalCluster) -> None:
    rules = yaml.safe_load((CHART / "files" / "rbac" / "crds.yaml").read_text())
    rbac = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": UPGRADER}, "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": UPGRADER},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": UPGRADER},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": UPGRADER}],
    }
    cluster.apply([role, binding])
    # An older release's definition: it lacks a column.
    cluster.kubectl(
        "patch", CRD, "--type=json", '--patch=[{"op":"remove","path":"/spec/versions/0/additionalPrinterColumns/0"}]'
    )
    # And it has no adapters.
    cluster.kubectl("delete", NEW_CRD)
    environment = {**os.environ, "KUBECONFIG": str(cluster.control_plane.kubeconfig(UPGRADER))}
    answer = subprocess.run(
        [sys.executable, "-m", "kubediffusion.resources.crds.main", "--apply"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [
        "generationjobs.kubediffusion.io: changed",
        "diffusionmodels.kubediffusion.io: up to date",
        "loraadapters.kubediffusion.io: created",
    ]
    columns = cluster.get(*CRD.split("/"))["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [c["name"] for c in columns] == [
        c["name"] for c in definitions()[0]["spec"]["versions"][0]["additionalPrinterColumns"]
    ]
