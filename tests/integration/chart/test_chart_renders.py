"""What the chart renders: for whom, with which rights, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

import documented
from integration.chart.helm_kit import RELEASE, Helm, Object, kinds, pick, pod_labels, pod_specs, rules
from integration.chart.matrix import EVERYTHING, MATRIX
from kubediffusion.api.settings import Settings as ApiSettings
from kubediffusion.api.webhooks.settings import WebhookSettings
from kubediffusion.local.layout import CHART
from kubediffusion.local.node.environment import expand
from kubediffusion.operator.settings import Settings as OperatorSettings
from kubediffusion.resources import meta

POD_IDENTITY = ("169.254.170.23/32", "fd00:ec2::23/128")

"""The agent of EKS Pod Identity: https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html"""


every_case = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())


def source_rules(name: str) -> Any:
    return yaml.safe_load((CHART / "files" / "rbac" / f"{name}.yaml").read_text())


@every_case
def test_lint_has_nothing_to_say(helm: Helm, values: Object) -> None:
    said = helm.run("lint", "--strict", str(CHART), "--values=-", stdin=json.dumps(values))
    assert "0 chart(s) failed" in said


def test_defaults_render_what_an_installation_needs(helm: Helm) -> None:
    assert kinds(helm.template()) == [
        "ClusterRole/kubediffusion-crds",
        "ClusterRole/kubediffusion-editor",
        "ClusterRole/kubediffusion-operator-release",
        "ClusterRole/kubediffusion-viewer",
        "ClusterRoleBinding/kubediffusion-crds",
        "ClusterRoleBinding/kubediffusion-operator-release",
        "Deployment/kubediffusion-api",
        "Deployment/kubediffusion-operator",
        "Job/kubediffusion-crds",
        "NetworkPolicy/kubediffusion-api",
        "NetworkPolicy/kubediffusion-crds",
        "NetworkPolicy/kubediffusion-operator",
        "NetworkPolicy/kubediffusion-test",
        "NetworkPolicy/kubediffusion-worker",
        "Pod/kubediffusion-test",
        "PodDisruptionBudget/kubediffusion-api",
        "Role/kubediffusion-api",
        "Role/kubediffusion-operator",
        "Role/kubediffusion-worker",
        "RoleBinding/kubediffusion-api",
        "RoleBinding/kubediffusion-operator",
        "RoleBinding/kubediffusion-worker",
        "Service/kubediffusion-api",
        "ServiceAccount/kubediffusion-api",
        "ServiceAccount/kubediffusion-crds",
        "ServiceAccount/kubediffusion-operator",
        "ServiceAccount/kubediffusion-worker",
        "ValidatingAdmissionPolicy/image-releases.kubediffusion.io",
        "ValidatingAdmissionPolicy/model-limits.kubediffusion.io",
        "ValidatingAdmissionPolicy/status-writers.kubediffusion.io",
        "ValidatingAdmissionPolicy/webhooks.kubediffusion.io",
        "ValidatingAdmissionPolicy/worker-pods.kubediffusion.io",
        "ValidatingAdmissionPolicyBinding/image-releases.kubediffusion.io",
        "ValidatingAdmissionPolicyBinding/model-limits.kubediffusion.io",
        "ValidatingAdmissionPolicyBinding/status-writers.kubediffusion.io",
        "ValidatingAdmissionPolicyBinding/webhooks.kubediffusion.io",
        "ValidatingAdmissionPolicyBinding/worker-pods.kubediffusion.io",
    ]


def test_everything_adds_what_was_asked_for(helm: Helm) -> None:
    added = set(kinds(helm.template(EVERYTHING))) - set(kinds(helm.template()))
    assert added == {
        "ConfigMap/kubediffusion-dashboard",
        "DiffusionModel/default",
        "HorizontalPodAutoscaler/kubediffusion-api",
        "Ingress/kubediffusion-api",
        "PodMonitor/kubediffusion-operator",
        "PodMonitor/kubediffusion-worker",
        "PrometheusRule/kubediffusion",
        "ServiceAccount/op",
        "ServiceMonitor/kubediffusion-api",
    }


@every_case
def test_nobody_has_a_wildcard_or_reads_secrets(helm: Helm, values: Object) -> None:
    """But for the deliverer of webhooks, which reads those that it is told by name."""
    keys = values.get("webhooks", {}).get("secrets", ["kubediffusion-webhooks"])
    for who, rule in rules(helm.template(values)):
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not any("*" in word for word in words), who
        if "secrets" in rule["resources"]:
            assert who.partition("/")[2] == f"{RELEASE}-webhooks"
            assert (rule["resourceNames"], rule["verbs"]) == (keys, ["get"])
        assert not {"escalate", "impersonate"} & set(rule["verbs"]), who


@pytest.mark.parametrize("cluster_wide", [False, True])
def test_rights_are_those_of_the_one_source(helm: Helm, cluster_wide: bool) -> None:
    objects = helm.template({"clusterWide": cluster_wide})
    operator = pick(objects, "ClusterRole" if cluster_wide else "Role", "kubediffusion-operator")
    assert operator["rules"] == source_rules("operator")
    release = ("ClusterRole", "kubediffusion-operator-release")
    released = [item["rules"] for item in objects if (item["kind"], item["metadata"]["name"]) == release]
    # One that manages the whole cluster has all rights in it already.
    assert released == ([] if cluster_wide else [source_rules("release")])
    assert pick(objects, "Role", "kubediffusion-api")["rules"] == source_rules("api")
    assert pick(objects, "Role", "kubediffusion-worker")["rules"] == source_rules("worker")
    assert pick(objects, "ClusterRole", "kubediffusion-crds")["rules"] == source_rules("crds")
    assert pick(objects, "ClusterRole", "kubediffusion-viewer")["rules"] == source_rules("viewer")
    assert pick(objects, "ClusterRole", "kubediffusion-editor")["rules"] == source_rules("editor")


def test_rights_are_those_that_the_documentation_lists(helm: Helm) -> None:
    objects = helm.template({"webhooks": {"enabled": True}, "api": {"webhooks": False}})
    parts = {"operator": "Role", "api": "Role", "worker": "Role", "webhooks": "Role", "crds": "ClusterRole"}
    for part, kind in parts.items():
        name = f"{RELEASE}-{part}"
        assert rights_of(pick(objects, kind, name)) == documented.rights(name)
    everywhere = rights_of(pick(objects, "ClusterRole", f"{RELEASE}-operator-release"))
    assert everywhere == documented.rights_everywhere(f"{RELEASE}-operator")


def rights_of(role: Object) -> documented.Rights:
    return {
        (with_group(resource, group), verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def with_group(resource: str, group: str) -> str:
    """As `kubectl` prints it: generationjobs.kubediffusion.io/status."""
    name, slash, subresource = resource.partition("/")
    return (f"{name}.{group}" if group else name) + slash + subresource


@pytest.mark.parametrize("values", documented.values())
def test_the_documentation_s_values_are_values(helm: Helm, values: Object) -> None:
    assert helm.template(values)


def test_policies_are_those_of_the_one_source(helm: Helm) -> None:
    rendered = [o for o in helm.template() if o["kind"].startswith("ValidatingAdmissionPolicy")]
    files = sorted((CHART / "files" / "policies").glob("*.yaml"))
    source = [o for file in files for o in yaml.safe_load_all(file.read_text()) if o]
    for policy in rendered:
        del policy["metadata"]["labels"]

    def in_order(objects: list[Object]) -> list[Object]:
        return sorted(objects, key=lambda found: (found["kind"], found["metadata"]["name"]))

    assert in_order(rendered) == in_order(source)


@every_case
def test_every_object_is_labelled(helm: Helm, values: Object) -> None:
    wanted = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/managed-by": "Helm", "team": "images"}
    for found in helm.template(values | {"commonLabels": {"team": "images"}}):
        assert wanted.items() <= found["metadata"]["labels"].items(), found["metadata"]["name"]


@every_case
def test_every_pod_is_under_one_network_policy(helm: Helm, values: Object) -> None:
    """Hooks and tests as well: a namespace may let nothing pass that no policy lets pass."""
    objects = helm.template(values)
    enabled = values.get("networkPolicy", {}).get("enabled", True)
    for name, labels in pod_labels(objects):
        selecting = [
            p["metadata"]["name"] for p in network_policies(objects) if selects(p["spec"]["podSelector"], labels)
        ]
        assert selecting == ([name] if enabled else []), name


@every_case
def test_helm_s_test_reaches_the_api(helm: Helm, values: Object) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in network_policies(helm.template(values))}
    if not (test := policies.get(f"{RELEASE}-test")):
        return
    api = policies[f"{RELEASE}-api"]
    assert {"podSelector": api["podSelector"]} in [peer for rule in test["egress"] for peer in rule.get("to", [])]
    peers = [rule.get("from") for rule in api["ingress"]]
    assert None in peers or {"podSelector": test["podSelector"]} in [peer for rule in peers for peer in rule]


def test_webhooks_are_off_unless_they_are_asked_for(helm: Helm) -> None:
    def asking(objects: list[Object]) -> set[str]:
        return {who for who, rule in rules(objects) if "webhook" in rule["verbs"]}

    objects = helm.template()
    assert not [name for name in kinds(objects) if "kubediffusion-webhooks" in name]
    assert not asking(objects)
    assert "KUBEDIFFUSION_WEBHOOKS" not in environment(objects, "api")
    assert environment(objects, "operator")["KUBEDIFFUSION_WEBHOOK_HOLD_SECONDS"] == "0"
    with_them = helm.template(MATRIX["webhooks"])
    assert asking(with_them) == {"Role/kubediffusion-api", "ClusterRole/kubediffusion-editor"}
    assert environment(with_them, "operator")["KUBEDIFFUSION_WEBHOOK_HOLD_SECONDS"] == "90000"
    for part in ("api", "webhooks"):
        given = environment(with_them, part)
        assert given["KUBEDIFFUSION_WEBHOOK_ALLOWED_HOSTS"] == "hooks.team.svc:8080,receiver.example"
        assert given["KUBEDIFFUSION_WEBHOOK_SECRETS"] == "kubediffusion-webhooks,team-hooks"
    assert environment(helm.template(MATRIX["another deliverer's webhooks"]), "api")["KUBEDIFFUSION_WEBHOOKS"] == "true"


def test_the_deliverer_of_webhooks_is_served_where_jobs_are(helm: Helm) -> None:
    objects = helm.template(MATRIX["webhooks"])
    roles = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"] == "kubediffusion-webhooks"]
    assert [role["metadata"]["namespace"] for role in roles] == ["chart", "tenant"]
    keys = {"resourceNames": ["kubediffusion-webhooks", "team-hooks"]}
    for role in roles:
        *others, secrets = role["rules"]
        assert [*others, secrets] == [*source_rules("webhooks")[:-1], source_rules("webhooks")[-1] | keys]
    everywhere = pick(helm.template(MATRIX["webhooks of the whole cluster"]), "ClusterRole", "kubediffusion-webhooks")
    assert everywhere["rules"] == source_rules("webhooks")
    lease = pick(objects, "Role", "kubediffusion-webhooks-lease")
    assert (lease["rules"], lease["metadata"]["namespace"]) == (source_rules("webhooks-lease"), "chart")


def test_the_deliverer_reaches_no_private_network_by_default(helm: Helm) -> None:
    (policy,) = [
        policy["spec"]
        for policy in network_policies(helm.template({"webhooks": {"enabled": True}}))
        if policy["metadata"]["name"] == "kubediffusion-webhooks"
    ]
    assert policy["ingress"] == []
    receivers = policy["egress"][-1]
    assert receivers["ports"] == [{"protocol": "TCP", "port": 443}]
    blocks = [peer["ipBlock"] for peer in receivers["to"]]
    assert {"10.0.0.0/8", "169.254.0.0/16", "127.0.0.0/8"} < set(blocks[0]["except"])
    assert blocks[1] == {"cidr": "2000::/3"}


def network_policies(objects: list[Object]) -> list[Object]:
    return [found for found in objects if found["kind"] == "NetworkPolicy"]


def selects(selector: Object, labels: Object) -> bool:
    assert set(selector) == {"matchLabels"}
    return bool(selector["matchLabels"].items() <= labels.items())


def test_each_tenant_has_workers_and_one_operator_serves_all(helm: Helm) -> None:
    objects = helm.template({"namespaces": ["chart", "tenant"]})
    workers = [o for o in objects if o["metadata"]["name"] == "kubediffusion-worker"]
    assert [o["metadata"]["namespace"] for o in workers if o["kind"] == "ServiceAccount"] == ["chart", "tenant"]
    bindings = [o for o in objects if o["kind"] == "RoleBinding" and o["metadata"]["name"] == "kubediffusion-operator"]
    assert [o["metadata"]["namespace"] for o in bindings] == ["chart", "tenant"]
    assert all(o["subjects"][0]["namespace"] == "chart" for o in bindings)
    (operator,) = pick(objects, "Deployment", "kubediffusion-operator")["spec"]["template"]["spec"]["containers"]
    assert {"name": "KUBEDIFFUSION_NAMESPACES", "value": "chart,tenant"} in operator["env"]


def test_pods_are_spread_by_their_own_labels_unless_others_are_named(helm: Helm) -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    others = {"labelSelector": {"matchLabels": {"a": "b"}}}
    objects = helm.template({"api": {"topologySpreadConstraints": [spread, spread | others]}})
    deployment = pick(objects, "Deployment", "kubediffusion-api")["spec"]
    assert deployment["template"]["spec"]["topologySpreadConstraints"] == [
        spread | {"labelSelector": deployment["selector"]},
        spread | others,
    ]


@every_case
def test_every_pod_is_of_the_restricted_profile(helm: Helm, values: Object) -> None:
    for name, spec in pod_specs(helm.template(values)):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        user = values.get("podSecurity", {"runAsUser": 65532})["runAsUser"]
        for field in ("runAsUser", "runAsGroup", "fsGroup"):
            assert spec["securityContext"].get(field) == user, (name, field)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"]["memory"], name


@every_case
def test_every_variable_is_a_setting(helm: Helm, values: Object) -> None:
    prefix = "KUBEDIFFUSION_"
    parts: dict[str, type[BaseSettings]] = {
        "operator": OperatorSettings,
        "api": ApiSettings,
        "webhooks": WebhookSettings,
    }
    for component, settings in parts.items():
        for found in helm.template(values):
            if found["kind"] == "Deployment" and found["metadata"]["name"].endswith(component):
                (container,) = found["spec"]["template"]["spec"]["containers"]
                names = {v["name"] for v in container["env"] if v["name"].startswith(prefix)}
                assert {name.removeprefix(prefix).lower() for name in names} <= settings.model_fields.keys()


def test_the_operator_s_settings_are_at_their_own_defaults(helm: Helm) -> None:
    deployment = pick(helm.template(), "Deployment", "kubediffusion-operator")
    (operator,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in operator["env"]}
    for setting in (
        "concurrent_requests",
        "resync_seconds",
        "model_grace_seconds",
        "node_grace_seconds",
        "batches_ahead",
    ):
        default = OperatorSettings.model_fields[setting].default
        assert float(given[f"KUBEDIFFUSION_{setting.upper()}"]) == default, setting


def environment(objects: list[Object], part: str) -> dict[str, str]:
    """The variables of a part's container that have values of their own."""
    (container,) = pick(objects, "Deployment", f"{RELEASE}-{part}")["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


@pytest.mark.parametrize("part", ["operator", "api"])
def test_storage_is_spoken_to_as_the_values_say(helm: Helm, part: str) -> None:
    objects = helm.template(MATRIX["storage of a company's own"])
    wanted = {
        "KUBEDIFFUSION_S3_ADDRESSING_STYLE": "path",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_CA_BUNDLE": "/etc/kubediffusion/s3-ca/ca.crt",
    }
    assert wanted.items() <= environment(objects, part).items()
    spec = pick(objects, "Deployment", f"{RELEASE}-{part}")["spec"]["template"]["spec"]
    assert {"name": "s3-ca", "configMap": {"name": "company-ca"}} in spec["volumes"]
    mounts = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "s3-ca"]
    assert [mount["mountPath"] for mount in mounts] == ["/etc/kubediffusion/s3-ca"]


def test_workers_get_what_the_pods_of_the_chart_get(helm: Helm) -> None:
    """The operator makes their Pods: it is given what the chart gives its own."""
    assert environment(helm.template(), "operator")["KUBEDIFFUSION_WORKER_RUN_AS_USER"] == "65532"
    assert environment(helm.template(MATRIX["OpenShift"]), "operator")["KUBEDIFFUSION_WORKER_RUN_AS_USER"] == "0"
    storage = environment(helm.template(MATRIX["storage of a company's own"]), "operator")
    assert storage["KUBEDIFFUSION_WORKER_CA_CONFIG_MAP"] == "company-ca"


def test_workers_are_made_from_the_installation_s_template(helm: Helm) -> None:
    told = environment(helm.template(EVERYTHING), "operator")["KUBEDIFFUSION_WORKER_TEMPLATE"]
    assert json.loads(expand(told, {"5": "no"})) == EVERYTHING["worker"]["template"]
    assert "KUBEDIFFUSION_WORKER_TEMPLATE" not in environment(helm.template(), "operator")


def test_the_service_has_the_ip_families_that_are_asked_for(helm: Helm) -> None:
    wanted = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    spec = pick(helm.template({"api": {"service": wanted}}), "Service", f"{RELEASE}-api")["spec"]
    assert wanted.items() <= spec.items()
    assert not {"ipFamilyPolicy", "ipFamilies"} & pick(helm.template(), "Service", f"{RELEASE}-api")["spec"].keys()


@pytest.mark.parametrize("part", ["operator", "api", "worker"])
def test_every_part_reaches_what_hands_out_its_credentials(helm: Helm, part: str) -> None:
    agent = {"ports": [{"protocol": "TCP", "port": 80}], "to": [{"ipBlock": {"cidr": cidr}} for cidr in POD_IDENTITY]}
    assert agent in pick(helm.template(), "NetworkPolicy", f"{RELEASE}-{part}")["spec"]["egress"]
    without = helm.template({"networkPolicy": {"workloadIdentity": {"enabled": False}}})
    assert agent not in pick(without, "NetworkPolicy", f"{RELEASE}-{part}")["spec"]["egress"]


@pytest.mark.parametrize("values", [MATRIX["a proxy that authenticates"], {"api": {"trustedProxies": "*"}}])
def test_what_is_asked_for_by_name_is_rendered(helm: Helm, values: Object) -> None:
    assert environment(helm.template(values), "api")["KUBEDIFFUSION_TRUSTED_PROXIES"] == values["api"]["trustedProxies"]


def test_the_default_model_goes_where_the_gpus_are(helm: Helm) -> None:
    model = pick(helm.template(EVERYTHING), "DiffusionModel", "default")
    assert model["metadata"]["annotations"] == {meta.DEFAULT_MODEL_ANNOTATION: "true"}
    workers = model["spec"]["workers"]
    assert workers["resources"] == {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}}
    assert workers["maxReplicas"] == 4
    assert workers["runtimeClassName"] == "nvidia"
    assert workers["tolerations"] == EVERYTHING["defaultModel"]["tolerations"]


def test_names_suit_services_whatever_the_release_is_called(helm: Helm) -> None:
    rendered = helm.run("template", "release.1.0", str(CHART), "--namespace=chart")
    names = [o["metadata"]["name"] for o in yaml.safe_load_all(rendered) if o and o["kind"] == "Service"]
    assert names == ["release-1-0-kubediffusion-api"]
