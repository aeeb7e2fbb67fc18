"""A worker's manifest is what a strict API server takes, and what its admission of restricted Pods lets pass."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.local.testing import Namespace
from kubediffusion.operator.manifests import WorkerDefaults, template_hash, worker_job
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.diffusion_model import DiffusionModel

DEFAULTS = WorkerDefaults(
    image="registry/worker:1",
    service_account="kubediffusion-worker",
    port=8080,
    s3_secret="kubediffusion-s3",
    log_level="INFO",
)
EVERYTHING = {
    "image": "own/worker:2",
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}, "requests": {"cpu": "4"}},
    "nodeSelector": {"gpu": "a100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
            }
        }
    },
    "priorityClassName": "system-cluster-critical",
    "serviceAccountName": "special",
    "imagePullSecrets": [{"name": "registry"}],
    "env": [{"name": "LOG", "value": "1"}],
    "terminationGracePeriodSeconds": 600,
    "queueName": "gpus",
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"source": {"path": "/models/sd"}},
    "hub": {"source": {"huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "hub"}}}},
    "volume": {"source": {"persistentVolumeClaim": {"claimName": "weights", "path": "sd"}}},
    "everything": {"source": {"s3": {"uri": "s3://models/sd"}}, "workers": EVERYTHING},
}


@pytest.mark.parametrize("kind", MODELS)
async def test_the_api_server_takes_a_workers_job(namespace: Namespace, client: KubernetesClient, kind: str) -> None:
    body = {
        "apiVersion": "kubediffusion.io/v1alpha1",
        "kind": "DiffusionModel",
        # The longest name that a model can have.
        "metadata": {"name": "m" * 40},
        "spec": MODELS[kind],
    }
    model = await client.diffusion_models.create(namespace.name, body)
    job = worker_job(model, template_hash(model, DEFAULTS), 999, DEFAULTS)
    taken = await client.request(
        "POST",
        f"/apis/batch/v1/namespaces/{namespace.name}/jobs",
        query={"dryRun": "All", "fieldValidation": "Strict"},
        body=job,
    )
    assert taken["metadata"]["name"] == job["metadata"]["name"]
    assert taken["spec"]["suspend"] is (kind == "everything")
    # What the server adds or defaults must not change the template's name at the next look.
    again = DiffusionModel.from_wire(model.to_wire())
    assert template_hash(again, DEFAULTS) == template_hash(model, DEFAULTS)


@pytest.mark.parametrize("kind", ["plain", "volume", "hub"])
async def test_a_namespace_for_restricted_pods_takes_a_workers_pod(
    namespace: Namespace, client: KubernetesClient, kind: str
) -> None:
    namespace.kubectl("create", "serviceaccount", DEFAULTS.service_account)
    namespace.cluster.kubectl(
        "label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=restricted", "--overwrite"
    )
    body = {"metadata": {"name": "emoji", "namespace": namespace.name, "uid": "1"}, "spec": MODELS[kind]}
    model = DiffusionModel.from_wire(body)
    template = worker_job(model, template_hash(model, DEFAULTS), 0, DEFAULTS)["spec"]["template"]
    path = f"/api/v1/namespaces/{namespace.name}/pods"
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w"}, "spec": template["spec"]}
    await client.request("POST", path, query=query, body=pod)
    # The same namespace does refuse what is not restricted.
    del pod["spec"]["containers"][0]["securityContext"]
    with pytest.raises(Exception, match="violates PodSecurity"):
        await client.request("POST", path, query=query, body=pod)
