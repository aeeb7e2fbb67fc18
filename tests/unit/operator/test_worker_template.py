"""A partial Pod template over a worker's: what it may say, and what is refused. That it is merged as Kubernetes merges
is tests/integration/operator's to show."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from kubediffusion.operator.manifests import WorkerDefaults, template_hash, worker_job
from kubediffusion.operator.strategic_merge import MergeError, merge_pod_template
from kubediffusion.operator.worker_template import MOST_CHARACTERS, TemplateError
from kubediffusion.resources.testing import model
from kubediffusion.resources.worker_settings import WorkerTemplate

DEFAULTS = WorkerDefaults(image="worker:1", service_account="kd-worker", port=8080, s3_secret="s3", log_level="INFO")


def made(partial: dict[str, Any] | None = None, defaults: WorkerDefaults = DEFAULTS, **workers: Any) -> dict[str, Any]:
    """The Pod template of a worker whose model has a partial one."""
    if partial is not None:
        workers["template"] = WorkerTemplate.from_wire(partial)
    item = model(**workers)
    template: dict[str, Any] = worker_job(item, template_hash(item, defaults), 0, defaults)["spec"]["template"]
    return template


def of_worker(**fields: Any) -> dict[str, Any]:
    """A partial template that says something of the worker's container."""
    return {"spec": {"containers": [{"name": "worker", **fields}]}}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    assert only["name"] == "worker"
    return dict(only)


def variables(template: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container(template)["env"]}


def test_what_a_template_adds_stands_beside_what_is_there() -> None:
    partial = {
        "metadata": {"labels": {"team": "studio"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["s3.example.com"]}],
            "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
            "schedulerName": "volcano",
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "initContainers": [{"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "containers": [
                {
                    "name": "worker",
                    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                    "volumeMounts": [{"name": "shm", "mountPath": "/var/shared"}],
                    "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                }
            ],
        },
    }
    before, after = made(), made(partial)
    assert after["metadata"]["labels"].items() > {"team": "studio"}.items()
    assert after["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    for name in ("hostAliases", "dnsConfig", "schedulerName", "topologySpreadConstraints", "initContainers"):
        assert after["spec"][name] == partial["spec"][name]  # type: ignore[index]
    assert after["spec"]["volumes"] == [*before["spec"]["volumes"], {"name": "shm", "emptyDir": {"medium": "Memory"}}]
    own = container(after)
    assert own["volumeMounts"] == [*container(before)["volumeMounts"], {"name": "shm", "mountPath": "/var/shared"}]
    assert own["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert variables(after) == {**variables(before), "NCCL_DEBUG": "INFO"}
    assert own["command"] == ["kubediffusion-worker"]


def test_a_template_that_says_nothing_changes_nothing() -> None:
    told = model(template=WorkerTemplate.from_wire({"metadata": {}, "spec": {}}))
    assert template_hash(told, DEFAULTS) == template_hash(model(), DEFAULTS)


def test_a_changed_template_makes_other_workers() -> None:
    hashes = {
        template_hash(model(template=WorkerTemplate.from_wire({"spec": {"priority": n}})), DEFAULTS) for n in (1, 2)
    }
    assert len(hashes | {template_hash(model(), DEFAULTS)}) == 3


def test_the_cache_may_lie_elsewhere() -> None:
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "weights"}}
    assert claim in made({"spec": {"volumes": [claim]}})["spec"]["volumes"]
    sized = made({"spec": {"volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "9Gi"}}]}})
    assert {"name": "cache", "emptyDir": {"sizeLimit": "9Gi"}} in sized["spec"]["volumes"]


def test_the_installations_template_lies_beneath_what_a_model_says() -> None:
    below = {
        "metadata": {"labels": {"team": "platform", "cost": "gpu"}},
        "spec": {
            "runtimeClassName": "nvidia",
            "tolerations": [{"key": "gpu"}],
            "priorityClassName": "batch",
            **of_worker(
                env=[{"name": "A", "value": "platform"}, {"name": "B", "value": "platform"}],
                resources={"limits": {"memory": "8Gi", "cpu": "2"}},
            )["spec"],
        },
    }
    untouched = copy.deepcopy(below)
    defaults = replace(DEFAULTS, template=below)
    own = {
        "metadata": {"labels": {"team": "studio"}},
        **of_worker(env=[{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]),
    }
    template = made(
        own, defaults, tolerations=[{"key": "mine"}], priority_class_name="urgent", resources={"limits": {"cpu": "4"}}
    )
    assert template["metadata"]["labels"].items() > {"team": "studio", "cost": "gpu"}.items()
    spec = template["spec"]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "urgent")
    assert spec["tolerations"] == [{"key": "mine"}]
    assert container(template)["resources"]["limits"] == {"memory": "8Gi", "cpu": "4"}
    assert container(template)["resources"]["requests"] == {}
    assert variables(template).items() > {"A": "platform", "B": None}.items()
    assert below == untouched


ACCELERATORS: dict[str, tuple[dict[str, Any], str]] = {
    "amd": ({"limits": {"amd.com/gpu": 1}}, "amd.com/gpu: 1"),
    "intel": ({"limits": {"gpu.intel.com/xe": 1}}, "gpu.intel.com/xe: 1"),
    "mig": ({"limits": {"nvidia.com/mig-3g.40gb": "2"}}, "nvidia.com/mig-3g.40gb: 2"),
    "claim": ({"claims": [{"name": "gpu"}]}, "resourceClaims: gpu"),
    "claim of one request": ({"claims": [{"name": "gpus", "request": "one"}]}, "resourceClaims: gpus"),
}


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_a_worker_is_told_which_accelerator_its_pod_asks_for(kind: str) -> None:
    resources, told = ACCELERATORS[kind]
    claims = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]}
    partial = {"spec": {**claims, **of_worker(resources=resources)["spec"]}}
    template = made(partial)
    assert variables(template)["KUBEDIFFUSION_ACCELERATOR"] == told
    assert template["spec"]["resourceClaims"] == claims["resourceClaims"]
    # Whoever knows better says so.
    known = made(partial, env=[{"name": "KUBEDIFFUSION_ACCELERATOR", "value": ""}])
    assert variables(known)["KUBEDIFFUSION_ACCELERATOR"] == ""


def test_a_worker_of_a_models_own_resources_is_told_too() -> None:
    told = variables(made(resources={"limits": {"nvidia.com/gpu": 1}}))
    assert told["KUBEDIFFUSION_ACCELERATOR"] == "nvidia.com/gpu: 1"
    assert "KUBEDIFFUSION_ACCELERATOR" not in variables(made())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "our label": ({"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}, "metadata.labels[app.kubernetes.io/name]"),
    "a label like ours": (
        {"metadata": {"labels": {"kubediffusion.io/template-hash": "x"}}},
        "metadata.labels[kubediffusion.io/template-hash]",
    ),
    "a Job's label": ({"metadata": {"labels": {"job-name": "x"}}}, "metadata.labels[job-name]"),
    "an annotation like ours": (
        {"metadata": {"annotations": {"kubediffusion.io/x": "y"}}},
        "metadata.annotations[kubediffusion.io/x]",
    ),
    "restart policy": ({"spec": {"restartPolicy": "OnFailure"}}, "spec.restartPolicy"),
    "no restart policy": ({"spec": {"restartPolicy": None}}, "spec.restartPolicy"),
    "grace": ({"spec": {"terminationGracePeriodSeconds": 5}}, "workers.terminationGracePeriodSeconds"),
    "deadline": ({"spec": {"activeDeadlineSeconds": 5}}, "spec.activeDeadlineSeconds"),
    "identity": ({"spec": {"serviceAccountName": "admin"}}, "workers.serviceAccountName"),
    "identity by its old name": ({"spec": {"serviceAccount": "admin"}}, "spec.serviceAccount"),
    "no token": ({"spec": {"automountServiceAccountToken": False}}, "spec.automountServiceAccountToken"),
    "command": (of_worker(command=["sleep"]), "spec.containers[worker].command"),
    "arguments": (of_worker(args=["--help"]), "spec.containers[worker].args"),
    "readiness": (of_worker(readinessProbe={"periodSeconds": 60}), "spec.containers[worker].readinessProbe"),
    "no liveness": (of_worker(livenessProbe=None), "spec.containers[worker].livenessProbe"),
    "startup": (of_worker(startupProbe={"tcpSocket": {"port": 1}}), "spec.containers[worker].startupProbe"),
    "last words": (of_worker(terminationMessagePath="/var/x"), "spec.containers[worker].terminationMessagePath"),
    "our variable": (of_worker(env=[{"name": "POD_NAME", "value": "x"}]), "spec.containers[worker].env[POD_NAME]"),
    "no variable": (of_worker(env=[{"name": "HOME", "$patch": "delete"}]), "spec.containers[worker].env[HOME]"),
    "other variables": (of_worker(env=[{"$patch": "replace"}]), "spec.containers[worker].env"),
    "our port": (of_worker(ports=[{"containerPort": 8080, "name": "web"}]), "spec.containers[worker].ports[8080]"),
    "storage": (of_worker(envFrom=[{"secretRef": {"name": "mine"}}]), "spec.containers[worker].envFrom"),
    "no storage": (of_worker(envFrom=None), "spec.containers[worker].envFrom"),
    "the cache cannot be written": (
        of_worker(volumeMounts=[{"mountPath": "/var/cache/kubediffusion", "readOnly": True}]),
        "must be able to write there",
    ),
    "no cache": (of_worker(volumeMounts=None), "spec.containers[worker].volumeMounts"),
    "no worker": ({"spec": {"containers": [{"name": "worker", "$patch": "delete"}]}}, "spec.containers[worker]"),
    "another worker": ({"spec": {"containers": [{"$patch": "replace"}]}}, "spec.containers[worker]"),
    "nothing of the worker": (of_worker(**{"$patch": "replace"}), "spec.containers[worker].command"),
    "nothing of the Pod": ({"spec": {"$patch": "replace"}}, "spec.restartPolicy"),
    "no spec": ({"spec": {"$patch": "delete"}}, "spec.restartPolicy"),
    "a container beside it": (
        {"spec": {"containers": [{"name": "proxy", "image": "proxy"}]}},
        "initContainers, restarted Always",
    ),
    "a container without a name": ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0].name"),
    "a container that is none": ({"spec": {"containers": ["worker"]}}, "spec.containers[0]"),
    "a container whose name is a map": ({"spec": {"containers": [{"name": {"a": 1}}]}}, "spec.containers[0].name"),
    "a container whose name is a list": ({"spec": {"containers": [{"name": ["worker"]}]}}, "spec.containers[0].name"),
    "a container whose name is nothing": ({"spec": {"containers": [{"name": None}]}}, "spec.containers[0].name"),
    "a number for sources": (of_worker(envFrom=5), "spec.containers.envFrom"),
    "a text for sources": (of_worker(envFrom="s3"), "spec.containers.envFrom"),
    "a directive that is a map": ({"spec": {"$patch": {"a": 1}}}, "workers.template.spec: $patch"),
    "a directive that is a list": (of_worker(resources={"$patch": ["delete"]}), "$patch"),
    "containers that are no list": ({"spec": {"containers": {"name": "worker"}}}, "spec.containers"),
    "a text for a map": ({"spec": {"securityContext": "none"}}, "spec.securityContext"),
    "a map for a text": ({"spec": {"restartPolicy": {"a": 1}}}, "spec.restartPolicy"),
    "a number for resources": (of_worker(resources=1), "spec.containers.resources"),
    "limits that are no map": (of_worker(resources={"limits": []}), "spec.containers.resources.limits"),
    "a directive that is not known": ({"spec": {"$retainKeys": ["a"]}}, "$retainKeys"),
    "an order": (of_worker(**{"$setElementOrder/env": []}), "$setElementOrder"),
    "another patch": ({"spec": {"volumes": [{"name": "cache", "$patch": "merge it"}]}}, "$patch"),
    "too much": ({"spec": {"x": "y" * MOST_CHARACTERS}}, str(MOST_CHARACTERS)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_no_worker_is_refused_with_the_field(kind: str) -> None:
    partial, words = REFUSED[kind]
    with pytest.raises(TemplateError) as refusal:
        made(partial)
    assert str(refusal.value).startswith("spec.workers.template")
    assert words in str(refusal.value)
    # Of the installation's, as far as the API server does not refuse it for the operator.
    with pytest.raises(TemplateError, match=r"the installation's worker\.template"):
        made(defaults=replace(DEFAULTS, template=partial))


def test_volumes_of_other_fields_are_theirs() -> None:
    defaults = replace(DEFAULTS, ca_config_map="company")
    for partial in (
        {"spec": {"volumes": [{"name": "s3-ca", "emptyDir": {}}]}},
        of_worker(volumeMounts=[{"mountPath": "/etc/kubediffusion/s3-ca", "name": "cache"}]),
    ):
        with pytest.raises(TemplateError, match="another field of the model, or a setting"):
            made(partial, defaults)


def test_to_repeat_what_is_so_is_no_change() -> None:
    repeated = made({"spec": {"restartPolicy": "Never", **of_worker(command=["kubediffusion-worker"])["spec"]}})
    assert repeated == {**made(), "metadata": repeated["metadata"]}


def test_a_refused_template_has_a_hash_of_its_own() -> None:
    refused = [
        model(template=WorkerTemplate.from_wire({"spec": {"restartPolicy": p}})) for p in ("Always", "Sometimes")
    ]
    hashes = {template_hash(item, DEFAULTS) for item in (*refused, model())}
    assert len(hashes) == 3


def test_an_element_that_both_have_keeps_its_place() -> None:
    base = {"spec": {"volumes": [{"name": "a", "x": {"p": 1}}, {"name": "b"}]}}
    patch = {"spec": {"volumes": [{"name": "c"}, {"name": "a", "x": {"q": 2}}, {"name": "b", "$patch": "delete"}]}}
    assert merge_pod_template(base, patch) == {
        "spec": {"volumes": [{"name": "a", "x": {"p": 1, "q": 2}}, {"name": "c"}]}
    }
    with pytest.raises(MergeError, match="elements are merged by it"):
        merge_pod_template(base, {"spec": {"volumes": [{"emptyDir": {}}]}})
