"""The ``scale`` subresource of DiffusionModel: what ``kubectl scale``, an HPA and KEDA read and write."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from kubediffusion.local.errors import LocalError
from kubediffusion.local.layout import CHART
from kubediffusion.local.testing import Namespace
from kubediffusion.operator.metrics import QUEUED
from kubediffusion.resources import meta


def scale_of(namespace: Namespace, name: str = "emoji") -> dict[str, Any]:
    path = f"/apis/kubediffusion.io/v1alpha1/namespaces/{namespace.name}/diffusionmodels/{name}/scale"
    scale: dict[str, Any] = json.loads(namespace.kubectl("get", "--raw", path))
    return scale


def apply(namespace: Namespace, workers: dict[str, Any] | None) -> None:
    spec: dict[str, Any] = {"source": {"path": "/models/sd"}}
    body = {
        "apiVersion": "kubediffusion.io/v1alpha1",
        "kind": "DiffusionModel",
        "metadata": {"name": "emoji"},
        "spec": spec | ({"workers": workers} if workers is not None else {}),
    }
    namespace.kubectl("apply", "--filename=-", stdin=json.dumps(body))


@pytest.mark.parametrize("workers", [None, {}, {"maxReplicas": 5}, {"minReplicas": 1, "maxReplicas": 5}], ids=str)
def test_kubectl_scale_sets_the_floor(namespace: Namespace, workers: dict[str, Any] | None) -> None:
    apply(namespace, workers)
    before = (workers or {}).get("minReplicas", 0)
    assert scale_of(namespace)["spec"].get("replicas", 0) == before
    namespace.kubectl("scale", "diffusionmodel", "emoji", "--replicas=1")
    assert namespace.get("diffusionmodel", "emoji")["spec"]["workers"]["minReplicas"] == 1
    namespace.kubectl("scale", "diffusionmodel", "emoji", "--replicas=0")
    assert namespace.get("diffusionmodel", "emoji")["spec"]["workers"]["minReplicas"] == 0


def test_a_floor_above_the_ceiling_is_refused_with_the_reason(namespace: Namespace) -> None:
    apply(namespace, {"maxReplicas": 2})
    with pytest.raises(LocalError, match="minReplicas must not exceed maxReplicas"):
        namespace.kubectl("scale", "diffusionmodel", "emoji", "--replicas=3")


def test_a_scale_tells_of_the_workers_that_are_ready(namespace: Namespace) -> None:
    apply(namespace, {"minReplicas": 1, "maxReplicas": 5})
    selector = f"{meta.WORKER_SELECTOR},{meta.MODEL_LABEL}=emoji"
    status = {"status": {"workers": {"ready": 3}, "selector": selector}}
    namespace.kubectl(
        "patch", "diffusionmodel", "emoji", "--subresource=status", "--type=merge", f"-p={json.dumps(status)}"
    )
    scale = scale_of(namespace)
    assert (scale["spec"], scale["status"]) == ({"replicas": 1}, {"replicas": 3, "selector": selector})


@pytest.mark.parametrize(("role", "verbs"), [("view", {"get"}), ("edit", {"get", "update", "patch"})])
def test_people_may_scale_who_may_edit(role: str, verbs: set[str]) -> None:
    files = {"view": ["viewer"], "edit": ["viewer", "editor"]}[role]
    rules = [rule for name in files for rule in yaml.safe_load((CHART / "files" / "rbac" / f"{name}.yaml").read_text())]
    allowed = {verb for rule in rules if "diffusionmodels/scale" in rule["resources"] for verb in rule["verbs"]}
    assert allowed == verbs


AUTOSCALING = CHART.parents[1] / "deploy" / "examples" / "autoscaling"
MODEL = yaml.safe_load((AUTOSCALING.parent / "diffusionmodel-huggingface.yaml").read_text())


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((AUTOSCALING / f"{name}.yaml").read_text())
    return found


def assert_tells_of_queued_jobs(query: str) -> None:
    """Assert that a query names the operator's metric of waiting jobs, and labels that it has."""
    (metric,) = QUEUED.collect()
    (labels,) = re.findall(rf"{metric.name}\{{(.*?)\}}", query)
    assert set(re.findall(r"(\w+)!?=", labels)) == {"namespace", "model"}
    probe = QUEUED.labels(namespace="probe", model="probe")
    assert probe._labelnames == ("namespace", "model")  # noqa: SLF001 - the library has no other way to ask
    QUEUED.remove("probe", "probe")


def assert_floor_fits(target: dict[str, Any], most: int) -> None:
    """Assert that a target is the example's model, and that no floor will be above its ceiling."""
    assert target == {key: MODEL[key] for key in ("apiVersion", "kind")} | {"name": MODEL["metadata"]["name"]}
    assert most <= MODEL["spec"]["workers"]["maxReplicas"]


def test_the_autoscaler_is_one_that_the_api_server_takes(namespace: Namespace) -> None:
    file = AUTOSCALING / "hpa.yaml"
    namespace.kubectl("create", "--validate=strict", "--dry-run=server", f"--filename={file}")
    spec = example("hpa")["spec"]
    assert_floor_fits(spec["scaleTargetRef"], spec["maxReplicas"])
    (rule,) = example("prometheus-adapter")["rules"]["external"]
    external = spec["metrics"][0]["external"]["metric"]
    assert external == {
        "name": rule["name"]["as"],
        "selector": {"matchLabels": {"model": spec["scaleTargetRef"]["name"]}},
    }


def test_the_adapter_s_rule_finds_the_operator_s_metric() -> None:
    """The fields of a DiscoveryRule: https://github.com/kubernetes-sigs/prometheus-adapter/blob/master/docs/config.md."""
    (rule,) = example("prometheus-adapter")["rules"]["external"]
    assert rule.keys() <= {"seriesQuery", "seriesFilters", "resources", "name", "metricsQuery"}
    assert_tells_of_queued_jobs(rule["seriesQuery"])
    (metric,) = QUEUED.collect()
    assert re.fullmatch(rule["name"]["matches"], metric.name)
    assert rule["resources"] == {"overrides": {"namespace": {"resource": "namespace"}}}
    fields = set(re.findall(r"<<\.(\w+)>>", rule["metricsQuery"]))
    assert fields == {"Series", "LabelMatchers", "GroupBy"}


SCALED_OBJECT = {
    "scaleTargetRef": {"apiVersion", "kind", "name", "envSourceContainerName"},
    "pollingInterval": int,
    "initialCooldownPeriod": int,
    "cooldownPeriod": int,
    "idleReplicaCount": int,
    "minReplicaCount": int,
    "maxReplicaCount": int,
}
"""Fields of KEDA's ScaledObject, triggers aside: https://keda.sh/docs/2.17/reference/scaledobject-spec/."""
TRIGGERS = {
    "cron": {"timezone", "start", "end", "desiredReplicas"},
    "prometheus": {"serverAddress", "query", "threshold"},
}
"""What the metadata of a trigger must have: https://keda.sh/docs/2.17/scalers/."""


def test_keda_s_object_has_the_fields_that_keda_reads() -> None:
    found = example("keda")
    assert (found["apiVersion"], found["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = found["spec"]
    triggers = spec.pop("triggers")
    assert spec.keys() <= SCALED_OBJECT.keys()
    assert all(isinstance(value, int) for name, value in spec.items() if SCALED_OBJECT[name] is int)
    assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
    assert_floor_fits(spec["scaleTargetRef"], spec["maxReplicaCount"])
    for trigger in triggers:
        assert trigger.keys() == {"type", "metadata"}
        assert TRIGGERS[trigger["type"]] <= trigger["metadata"].keys()
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert_tells_of_queued_jobs(triggers[1]["metadata"]["query"])
