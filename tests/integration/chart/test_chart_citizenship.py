"""What a cluster's other tenants ask of the chart: their Gateway, their accounts, their CRDs, their labels."""

from __future__ import annotations

import pytest
import yaml

from integration.chart.helm_kit import RELEASE, Helm, Object, kinds, pick, pod_specs
from integration.chart.matrix import EVERYTHING, MATRIX
from kubediffusion.local.layout import CHART

GITOPS = CHART.parents[1] / "deploy" / "examples" / "gitops"


def test_a_gateway_leads_to_the_api(helm: Helm) -> None:
    objects = helm.template(MATRIX["a Gateway"])
    wanted = MATRIX["a Gateway"]["api"]["httpRoute"]
    spec = pick(objects, "HTTPRoute", f"{RELEASE}-api")["spec"]
    assert (spec["parentRefs"], spec["hostnames"]) == (wanted["parentRefs"], wanted["hostnames"])
    (rule,) = spec["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert rule["timeouts"] == {"request": "0s"}
    service = pick(objects, "Service", f"{RELEASE}-api")
    (backend,) = rule["backendRefs"]
    assert backend == {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}


def test_a_path_is_rewritten_where_that_is_asked_for(helm: Helm) -> None:
    rewrite = {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}
    route = {**MATRIX["a Gateway"]["api"]["httpRoute"], "paths": ["/images"], "filters": [rewrite]}
    api = {**MATRIX["a Gateway"]["api"], "httpRoute": route}
    (rule,) = pick(helm.template({**MATRIX["a Gateway"], "api": api}), "HTTPRoute", f"{RELEASE}-api")["spec"]["rules"]
    assert rule["filters"] == [rewrite]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/images"}}]


def test_monitors_change_labels_as_the_values_say(helm: Helm) -> None:
    metrics = EVERYTHING["metrics"]
    objects = helm.template({**EVERYTHING, "webhooks": MATRIX["webhooks"]["webhooks"]})
    (endpoint,) = pick(objects, "ServiceMonitor", f"{RELEASE}-api")["spec"]["endpoints"]
    assert endpoint["relabelings"] == metrics["serviceMonitor"]["relabelings"]
    assert "metricRelabelings" not in endpoint
    for part in ("operator", "worker", "webhooks"):
        (endpoint,) = pick(objects, "PodMonitor", f"{RELEASE}-{part}")["spec"]["podMetricsEndpoints"]
        assert endpoint["metricRelabelings"] == metrics["podMonitor"]["metricRelabelings"]


def test_accounts_that_exist_get_the_rights_and_are_not_created(helm: Helm) -> None:
    objects = helm.template(MATRIX["accounts of the platform"])
    # That of the hook exists while the hook runs, and is nobody's else.
    assert [found for found in kinds(objects) if found.startswith("ServiceAccount/")] == [
        f"ServiceAccount/{RELEASE}-crds"
    ]
    bound = {s["name"] for o in objects if o["kind"] == "RoleBinding" for s in o["subjects"]}
    assert bound == {"their-operator", "their-api", "their-worker"}
    used = {spec["serviceAccountName"] for _, spec in pod_specs(objects) if "serviceAccountName" in spec}
    assert used == {"their-operator", "their-api", f"{RELEASE}-crds"}
    operator = pick(objects, "Deployment", f"{RELEASE}-operator")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "KUBEDIFFUSION_WORKER_SERVICE_ACCOUNT", "value": "their-worker"} in operator["env"]


def test_the_account_of_webhooks_may_exist_too(helm: Helm) -> None:
    webhooks = {**MATRIX["webhooks"]["webhooks"], "serviceAccount": {"create": False, "name": "their-webhooks"}}
    objects = helm.template({**MATRIX["webhooks"], "webhooks": webhooks})
    assert not [o for o in kinds(objects) if o.startswith("ServiceAccount/") and "webhooks" in o]
    deployment = pick(objects, "Deployment", f"{RELEASE}-webhooks")
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == "their-webhooks"
    assert helm.template(MATRIX["webhooks"]) != objects


def test_all_objects_go_to_the_namespace_that_is_named(helm: Helm) -> None:
    """That of the release is nowhere left, nor in what the operator serves or the test asks."""
    values = {**EVERYTHING, "webhooks": MATRIX["webhooks"]["webhooks"], "namespaceOverride": "elsewhere"}
    objects = helm.template(values, namespace="release-of-it")
    found = {o["metadata"]["namespace"] for o in objects if "namespace" in o["metadata"]}
    assert found == {"elsewhere"}
    assert "release-of-it" not in yaml.safe_dump(objects)


def test_objects_of_ones_own_are_templates(helm: Helm) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-own"}}
    objects = helm.template({"extraObjects": [config, "apiVersion: v1\nkind: Secret\nmetadata: {name: x}"]})
    assert {f"ConfigMap/{RELEASE}-own", "Secret/x"} <= set(kinds(objects))


def test_every_hook_has_resources_of_the_values(helm: Helm) -> None:
    wanted = {"requests": {"cpu": "11m", "memory": "77Mi"}, "limits": {"memory": "88Mi"}}
    objects = helm.template({"crds": {"resources": wanted}, "tests": {"resources": wanted}})
    hooks = [o for o in objects if "helm.sh/hook" in o["metadata"].get("annotations", {})]
    containers = [
        c for _, spec in pod_specs([o for o in hooks if o["kind"] in {"Job", "Pod"}]) for c in spec["containers"]
    ]
    assert [container["resources"] for container in containers] == [wanted, wanted]


def gitops_values(name: str) -> Object:
    spec = yaml.safe_load((GITOPS / f"{name}.yaml").read_text())["spec"]
    values: Object = spec["values"] if name == "flux" else spec["source"]["helm"]["valuesObject"]
    return values


@pytest.mark.parametrize("name", ["argo-cd", "flux"])
def test_crds_of_somebody_else_are_left_alone(helm: Helm, name: str) -> None:
    """Neither rendered nor brought up to date, and nothing has the right to."""
    objects = helm.template(gitops_values(name))
    assert not [found for found in kinds(objects) if found.startswith("CustomResourceDefinition/")]
    rules = [rule for o in objects for rule in o.get("rules", ()) if "customresourcedefinitions" in rule["resources"]]
    assert rules == []
