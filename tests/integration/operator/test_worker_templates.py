"""A model's own Pod template before a real API server: merged as that merges, tried before any worker goes for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from integration.operator.operators import MODEL, bindable_worker, events_of, without_watches
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.manifests import WorkerDefaults, template_hash, worker_job
from kubediffusion.operator.strategic_merge import MERGE_KEYS, ONE_SOURCE, merge_pod_template
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import InvalidError
from kubediffusion.resources.conditions import find_condition
from kubediffusion.resources.diffusion_model import DiffusionModel

DEFAULTS = WorkerDefaults(image="worker:1", service_account="default", port=8080, s3_secret="s3", log_level="INFO")
STRICT = {"dryRun": "All", "fieldValidation": "Strict"}
STRATEGIC = "application/strategic-merge-patch+json"


def model_of(namespace: Namespace, template: dict[str, Any] | None, **workers: Any) -> DiffusionModel:
    workers |= {"template": template} if template is not None else {}
    body = {"metadata": {"name": "emoji", "namespace": namespace.name, "uid": "1"}}
    return DiffusionModel.from_wire(body | {"spec": {"source": {"path": "/m"}, "workers": workers}})


def job_of(model: DiffusionModel, defaults: WorkerDefaults = DEFAULTS) -> dict[str, Any]:
    return worker_job(model, template_hash(model, defaults), 0, defaults)


def test_the_merge_keys_are_those_that_the_api_server_publishes(namespace: Namespace) -> None:
    definitions = json.loads(namespace.cluster.kubectl("get", "--raw", "/openapi/v2"))["definitions"]

    def lists(name: str, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
        for field, found in definitions[name].get("properties", {}).items():
            reference = found.get("$ref") or found.get("items", {}).get("$ref") or ""
            kind = reference.rsplit("/", 1)[-1]
            if key := found.get("x-kubernetes-patch-merge-key"):
                yield (*path, field), key, found["x-kubernetes-patch-strategy"]
            # Metadata of a template has labels and annotations; the rest of it is refused.
            if kind and not kind.endswith("ObjectMeta"):
                yield from lists(kind, (*path, field))

    published = list(lists("io.k8s.api.core.v1.PodTemplateSpec", ()))
    assert {path: key for path, key, _ in published} == MERGE_KEYS
    retained = {path for path, _, strategy in published if "retainKeys" in strategy}
    assert {path for path in ONE_SOURCE if path[-1] != "env"} == retained


PATCHES: dict[str, dict[str, Any]] = {
    "labels": {"metadata": {"labels": {"team": "a", "app.kubernetes.io/name": None}, "annotations": {"x": "y"}}},
    "maps": {"spec": {"nodeSelector": {"zone": "b"}, "securityContext": {"runAsNonRoot": None, "fsGroup": 7}}},
    "atomic": {"spec": {"tolerations": [{"key": "mine", "operator": "Exists"}]}},
    "volumes": {
        "spec": {
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
                {"name": "cache", "emptyDir": {"sizeLimit": "9Gi"}},
            ]
        }
    },
    "containers": {
        "spec": {
            "initContainers": [{"name": "first", "image": "first:1"}],
            "containers": [
                {"name": "side", "image": "side:1", "env": [{"name": "A", "value": "1"}]},
                {
                    "name": "worker",
                    "env": [{"name": "HOME", "value": "/h"}, {"name": "TMPDIR", "$patch": "delete"}],
                    "ports": [{"containerPort": 9000, "protocol": "TCP"}],
                    "volumeMounts": [{"name": "cache", "mountPath": "/var/cache/kubediffusion", "subPath": "s"}],
                    "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}, "readOnlyRootFilesystem": None},
                },
            ],
        }
    },
    "replaced": {"spec": {"containers": [{"$patch": "replace"}, {"name": "only", "image": "only:1"}]}},
    "replaced map": {"spec": {"nodeSelector": {"$patch": "replace", "only": "this"}}},
    "aliases": {
        "spec": {
            "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}, {"ip": "192.0.2.2", "hostnames": ["b"]}],
            "topologySpreadConstraints": [
                {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"},
                {"maxSkew": 1, "topologyKey": "host", "whenUnsatisfiable": "DoNotSchedule"},
            ],
        }
    },
}


@pytest.mark.parametrize("kind", PATCHES)
async def test_a_template_is_merged_as_the_api_server_merges(
    namespace: Namespace, client: KubernetesClient, kind: str
) -> None:
    """Its own strategic merge of the same patch, of a PodTemplate, is what ours is held against."""
    workers = {"nodeSelector": {"gpu": "a"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    base = job_of(model_of(namespace, None, **workers))["spec"]["template"]
    base["spec"]["hostAliases"] = [{"ip": "192.0.2.2", "hostnames": ["old"]}]
    base["spec"]["topologySpreadConstraints"] = [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    ]
    path = f"/api/v1/namespaces/{namespace.name}/podtemplates"
    kinds = {"apiVersion": "v1", "kind": "PodTemplate"}
    await client.request("POST", path, body={**kinds, "metadata": {"name": "theirs"}, "template": base})
    patch = {"template": PATCHES[kind]}
    theirs = await client.request("PATCH", f"{path}/theirs", body=patch, content_type=STRATEGIC)
    merged = merge_pod_template(base, PATCHES[kind])
    body = {**kinds, "metadata": {"name": "ours"}, "template": merged}
    ours = await client.request("POST", path, query=STRICT, body=body)
    assert in_order(ours["template"]) == in_order(theirs["template"])


def in_order(template: dict[str, Any]) -> dict[str, Any]:
    """The template with the lists sorted by their merge keys: the API server puts what is new first."""

    def sort(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {name: sort(part, (*path, name)) for name, part in value.items()}
        if isinstance(value, list) and (key := MERGE_KEYS.get(path)):
            return sorted((sort(part, path) for part in value), key=lambda part: str(part[key]))
        return value

    return dict(sort(template, ()))


async def test_metadata_other_than_labels_and_annotations_is_refused_at_the_door(
    namespace: Namespace, client: KubernetesClient
) -> None:
    for template, field in (
        ({"metadata": {"name": "mine"}}, "spec.workers.template.metadata.name"),
        ({"metadata": {"finalizers": ["a/b"]}}, "spec.workers.template.metadata.finalizers"),
        ({"spce": {}}, "spec.workers.template.spce"),
        ({"spec": []}, "spec.workers.template.spec"),
    ):
        body = {**MODEL, "spec": {**MODEL["spec"], "workers": {"template": template}}}
        with pytest.raises(InvalidError, match=field.replace(".", r"\.")):
            await client.diffusion_models.create(namespace.name, body)


async def test_what_a_template_takes_away_reaches_the_operator(namespace: Namespace, client: KubernetesClient) -> None:
    template = {"spec": {"enableServiceLinks": None, "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}]}}
    body = {**MODEL, "spec": {**MODEL["spec"], "workers": {"template": template}}}
    model = await client.diffusion_models.create(namespace.name, body)
    assert "enableServiceLinks" not in job_of(model)["spec"]["template"]["spec"]


async def test_claims_of_devices_pass_through(namespace: Namespace, client: KubernetesClient) -> None:
    template = {
        "spec": {
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
            "containers": [{"name": "worker", "resources": {"claims": [{"name": "gpu"}]}}],
        }
    }
    job = job_of(model_of(namespace, template))
    path = f"/apis/batch/v1/namespaces/{namespace.name}/jobs"
    pod = (await client.request("POST", path, query=STRICT, body=_unowned(job)))["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == template["spec"]["resourceClaims"]
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]


async def test_a_namespace_for_restricted_pods_and_users_of_its_own_takes_a_worker_with_a_template(
    namespace: Namespace, client: KubernetesClient
) -> None:
    """As OpenShift, whose SecurityContextConstraints choose user and group, and let nobody name another."""
    namespace.cluster.kubectl(
        "label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=restricted", "--overwrite"
    )
    template = {
        "metadata": {"annotations": {"openshift.io/required-scc": "restricted-v2"}},
        "spec": {
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "containers": [{"name": "worker", "volumeMounts": [{"name": "shm", "mountPath": "/var/shared"}]}],
        },
    }
    chosen = WorkerDefaults("worker:1", "default", 8080, "s3", "INFO", run_as_user=None)
    made = job_of(model_of(namespace, template), chosen)["spec"]["template"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & made["spec"]["securityContext"].keys()
    path = f"/api/v1/namespaces/{namespace.name}/pods"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w"}, "spec": made["spec"]}
    await client.request("POST", path, query=STRICT, body=pod)


def _unowned(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "metadata": {**job["metadata"], "ownerReferences": []}}


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "by the operator": ({"spec": {"restartPolicy": "Always"}}, "spec.workers.template.spec.restartPolicy"),
    "by the API server": ({"spec": {"hostAliases": [{"ip": "nowhere"}]}}, "hostAliases[0].ip"),
    "an unknown field": ({"spec": {"hostAlias": []}}, "hostAlias"),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refused_template_is_told_and_takes_no_worker_away(
    namespace: Namespace, client: KubernetesClient, kind: str
) -> None:
    template, words = REFUSALS[kind]
    await client.diffusion_models.create(namespace.name, MODEL)
    async with without_watches(namespace, client):
        pod = await bindable_worker(namespace, client)

        async def says(text: str) -> bool:
            model = await client.diffusion_models.get(namespace.name, "emoji")
            found = find_condition(model.status.conditions, "Available")
            return found is not None and text in found.message

        await eventually("the worker to be ready", lambda: says("1 worker ready"), 60)
        await change_template(client, namespace, template)
        await eventually("the refusal on the model", lambda: says(words), 60)

        async def recorded() -> bool:
            return ("Warning", "WorkerRefused") in await events_of(namespace, "emoji")

        await eventually("the Event", recorded, 30)
        described = await asyncio.to_thread(namespace.kubectl, "describe", "diffusionmodel", "emoji")
        assert "WorkerRefused" in described
        assert await says("1 worker ready")
        # Another of the namespace gets its worker, and tells that passes have gone on meanwhile.
        await client.diffusion_models.create(namespace.name, {**MODEL, "metadata": {"name": "other"}})
        await eventually("the other's worker", lambda: pods_of(namespace, "other"), 60)
        assert await pods_of(namespace, "emoji") == [pod]
    async with without_watches(namespace, client):
        # One that begins anew keeps it, too.
        await client.diffusion_models.create(namespace.name, {**MODEL, "metadata": {"name": "third"}})
        await eventually("the third's worker", lambda: pods_of(namespace, "third"), 60)
        assert await pods_of(namespace, "emoji") == [pod]
        await change_template(client, namespace, {"spec": {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["s3"]}]}})

        async def replaced() -> bool:
            found = await pods_of(namespace, "emoji")
            return bool(found) and pod not in found

        await eventually("the worker of a corrected template", replaced, 60)
        (found,) = await asyncio.to_thread(namespace.list, "pod", "kubediffusion.io/model=emoji")
        assert found["spec"]["hostAliases"] == [{"ip": "192.0.2.1", "hostnames": ["s3"]}]


async def test_a_template_is_refused_before_any_job_asks_for_a_worker(
    namespace: Namespace, client: KubernetesClient
) -> None:
    template, words = REFUSALS["by the API server"]
    body = {**MODEL, "spec": {**MODEL["spec"], "workers": {"minReplicas": 0, "template": template}}}
    await client.diffusion_models.create(namespace.name, body)
    async with without_watches(namespace, client):

        async def told() -> bool:
            model = await client.diffusion_models.get(namespace.name, "emoji")
            found = find_condition(model.status.conditions, "Available")
            return found is not None and words in found.message

        await eventually("the refusal on the model", told, 60)


async def test_a_template_of_the_installation_is_every_models(namespace: Namespace, client: KubernetesClient) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    common = {"metadata": {"labels": {"cost-center": "images"}}}
    async with without_watches(namespace, client, worker_template=common):
        await eventually("its worker", lambda: pods_of(namespace, "emoji"), 60)
    (pod,) = await asyncio.to_thread(namespace.list, "pod", "kubediffusion.io/model=emoji")
    assert pod["metadata"]["labels"]["cost-center"] == "images"


async def change_template(client: KubernetesClient, namespace: Namespace, template: dict[str, Any]) -> None:
    patch = [{"op": "add", "path": "/spec/workers/template", "value": template}]
    await client.diffusion_models.patch(namespace.name, "emoji", patch, content_type="application/json-patch+json")


async def pods_of(namespace: Namespace, model: str) -> list[str]:
    pods = await asyncio.to_thread(namespace.list, "pod", f"kubediffusion.io/model={model}")
    return [pod["metadata"]["name"] for pod in pods]
