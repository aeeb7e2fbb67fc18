"""The manifests of a local installation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kubediffusion.local import installation
from kubediffusion.local.installation import Manifest


def by_kind(manifests: Iterable[Manifest], kind: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def test_a_cluster_gets_the_chart_s_own_crds_policies_and_roles() -> None:
    manifests = installation.cluster_scoped()
    assert {f"{kind}.kubediffusion.io" for kind in ("generationjobs", "diffusionmodels", "loraadapters")} <= by_kind(
        manifests, "CustomResourceDefinition"
    ).keys()
    assert (
        by_kind(manifests, "ValidatingAdmissionPolicy").keys()
        == by_kind(manifests, "ValidatingAdmissionPolicyBinding").keys()
    )
    assert by_kind(manifests, "ClusterRole").keys() == {*installation.ROLES, *installation.MORE_ROLES}


def test_each_part_has_an_account_with_the_rights_of_its_own_role() -> None:
    manifests = installation.namespaced("n", {})
    bindings = by_kind(manifests, "RoleBinding")
    more = {installation.WEBHOOK_AUTHORS: installation.API, installation.WEBHOOKS_LEASE: installation.WEBHOOKS}
    assert by_kind(manifests, "ServiceAccount").keys() == installation.ROLES.keys()
    assert bindings.keys() == installation.ROLES.keys() | more.keys()
    for name, binding in bindings.items():
        assert binding["roleRef"]["name"] == name
        assert [subject["name"] for subject in binding["subjects"]] == [more.get(name, name)]


def test_storage_s_settings_are_a_secret() -> None:
    secret = by_kind(installation.namespaced("n", {"AWS_REGION": "r"}), "Secret")[installation.S3_SECRET]
    assert secret["stringData"]["AWS_REGION"] == "r"
    assert secret["stringData"]["KUBEDIFFUSION_S3_BUCKET"] == installation.BUCKET


def environment(deployment: Manifest) -> dict[str, str | None]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def test_a_port_puts_the_api_on_this_machine() -> None:
    served = installation.api("n", port=8123)
    assert served["spec"]["template"]["spec"]["hostNetwork"]
    assert environment(served)["KUBEDIFFUSION_BIND_ADDRESS"] == "127.0.0.1"
    assert environment(served)["KUBEDIFFUSION_PORT"] == "8123"


def test_without_one_it_listens_on_its_pod_s_address() -> None:
    inside = installation.api("n")
    assert not inside["spec"]["template"]["spec"]["hostNetwork"]
    assert environment(inside)["KUBEDIFFUSION_BIND_ADDRESS"] == "$(POD_IP)"


def test_the_default_model_takes_a_gpu_where_there_is_one(tmp_path: Path) -> None:
    workers = installation.default_model("n", tmp_path, gpus=2)["spec"]["workers"]
    assert workers == {"minReplicas": 1, "maxReplicas": 2, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    assert "resources" not in installation.default_model("n", tmp_path)["spec"]["workers"]
