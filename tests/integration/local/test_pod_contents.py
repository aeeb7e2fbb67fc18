"""What a pod finds on the process node: variables, files, and an identity of its own."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from integration.local.pods import SLEEP, pod, shell
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, connect, eventually, wait_for
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.resource import MERGE_PATCH


def output(namespace: Namespace, name: str) -> str:
    namespace.wait_phase(name, "Succeeded")
    return namespace.kubectl("logs", name)


def field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def mounted(name: str, path: str, **volume: Any) -> dict[str, Any]:
    """Return the fields of a pod whose container mounts one volume."""
    return {"volumeMounts": [{"name": name, "mountPath": path}], "spec": {"volumes": [{"name": name, **volume}]}}


def test_variables_come_from_the_pod_from_secrets_and_from_config_maps(namespace: Namespace) -> None:
    namespace.apply(secret("keys", token="password"), config("settings", LEVEL="debug"))
    namespace.apply(
        shell(
            "variables",
            "echo $NAME $NAMESPACE $NODE $TOKEN $LEVEL $GREETING",
            env=[
                field("NAME", "metadata.name"),
                field("NAMESPACE", "metadata.namespace"),
                field("NODE", "spec.nodeName"),
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
                {"name": "GREETING", "value": "hello-$(NAME)"},
            ],
            envFrom=[{"configMapRef": {"name": "settings"}}],
        )
    )
    expected = f"variables {namespace.name} this-machine password debug hello-variables\n"
    assert output(namespace, "variables") == expected


def test_a_pod_s_address_is_what_it_is_told(namespace: Namespace) -> None:
    namespace.apply(shell("address", "echo $IP", env=[field("IP", "status.podIP")]))
    assert output(namespace, "address").strip() == namespace.pod_status("address")["podIP"]


def test_the_machine_s_address_is_that_of_a_pod_in_its_network(namespace: Namespace) -> None:
    namespace.apply(shell("host", "echo $IP", env=[field("IP", "status.podIP")], spec={"hostNetwork": True}))
    assert output(namespace, "host") == "127.0.0.1\n"


def test_nothing_of_the_tester_s_environment_reaches_a_pod(namespace: Namespace) -> None:
    namespace.apply(shell("clean", "env | cut -d = -f 1 | sort"))
    given = set(output(namespace, "clean").split())
    expected = {"HOME", "HOSTNAME", "LANG", "PATH", "PWD", "TMPDIR", "KUBECONFIG", "KUBERNETES_CA_FILE"}
    assert given - expected <= {
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
        "KUBERNETES_SERVICE_PORT_HTTPS",
        "OLDPWD",
        "SHLVL",
        "_",
    }


def test_secrets_and_config_maps_are_files(namespace: Namespace) -> None:
    namespace.apply(secret("keys", token="password"), config("settings", level="debug"))
    level = {"configMap": {"name": "settings", "items": [{"key": "level", "path": "a/b"}]}}
    projected = {"sources": [{"secret": {"name": "keys"}}, level]}
    namespace.apply(
        shell("files", "cat /etc/all/token /etc/all/a/b", **mounted("all", "/etc/all", projected=projected))
    )
    assert output(namespace, "files") == "passworddebug"


def test_a_host_path_is_that_path(namespace: Namespace, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("42")
    namespace.apply(pod("host", "cat", "/models/weights", **mounted("m", "/models", hostPath={"path": str(tmp_path)})))
    assert output(namespace, "host") == "42"


def test_an_empty_dir_is_shared_by_a_pod_s_containers_and_goes_with_it(namespace: Namespace) -> None:
    writer = shell("pair", "echo shared > /scratch/file", **mounted("s", "/scratch", emptyDir={}))
    reader = {
        "name": "reader",
        "image": "none",
        "command": ["sh", "-c", "until test -e /elsewhere/file; do sleep 0.1; done; cat /elsewhere/file"],
        "volumeMounts": [{"name": "s", "mountPath": "/elsewhere"}],
    }
    writer["spec"]["containers"].append(reader)
    namespace.apply(writer)
    namespace.wait_phase("pair", "Succeeded")
    assert namespace.kubectl("logs", "pair", "--container=reader") == "shared\n"
    uid = namespace.get("pod", "pair")["metadata"]["uid"]
    assert not (namespace.cluster.folder / "pods" / uid).exists()


def test_a_claim_leads_to_its_volume_s_path(namespace: Namespace, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("42")
    namespace.claim("weights", tmp_path)
    namespace.apply(
        pod("claims", "cat", "/m/weights", **mounted("m", "/m", persistentVolumeClaim={"claimName": "weights"}))
    )
    assert output(namespace, "claims") == "42"


def test_a_pod_waits_for_what_it_needs_and_says_so(namespace: Namespace) -> None:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "later", "key": "token"}}}]
    namespace.apply(shell("waits", "echo $TOKEN", env=env))

    def told() -> bool:
        waiting = namespace.container("waits")["state"].get("waiting", {})
        return waiting.get("reason") == "CreateContainerConfigError" and '"later"' in waiting["message"]

    wait_for("it to say what is missing", told)
    namespace.apply(secret("later", token="now"))
    assert output(namespace, "waits") == "now\n"


def test_kubectl_in_a_pod_is_its_service_account(namespace: Namespace) -> None:
    namespace.apply(pod("who", "python", "-c", WHOAMI))
    user = json.loads(output(namespace, "who"))
    assert user["username"] == f"system:serviceaccount:{namespace.name}:default"
    assert user["extra"]["authentication.kubernetes.io/pod-name"] == ["who"]


WHOAMI = """
import asyncio, json

from kubediffusion.resources.apiserver.client import KubernetesClient

async def main():
    async with await KubernetesClient.connect("test") as client:
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        print(json.dumps((await client.request("POST", path, body={}))["status"]["userInfo"]))

asyncio.run(main())
"""


def pod_token(namespace: Namespace, name: str) -> str:
    uid = namespace.get("pod", name)["metadata"]["uid"]
    (token,) = (namespace.cluster.folder / "pods" / uid / "volumes").glob("kube-api-access-*/token")
    return token.read_text()


async def review(client: KubernetesClient, token: str) -> dict[str, Any]:
    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    answer: dict[str, Any] = (await client.request("POST", path, body={"spec": {"token": token}}))["status"]
    return answer


async def test_a_token_names_its_pod_and_dies_with_it(namespace: Namespace, client: KubernetesClient) -> None:
    namespace.apply(pod("holder", *SLEEP, spec={"terminationGracePeriodSeconds": 1}))
    namespace.wait_ready("holder")
    token = pod_token(namespace, "holder")
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["kubernetes.io"]
    assert claims["pod"]["name"] == "holder"
    assert (await review(client, token))["authenticated"]
    namespace.kubectl("delete", "pod", "holder")

    async def refused() -> bool:
        return not (await review(client, token)).get("authenticated", False)

    await eventually("the token to be refused", refused)


async def test_a_node_may_not_touch_what_is_not_its_own(namespace: Namespace, cluster: LocalCluster) -> None:
    namespace.apply(secret("private", token="password"), pod("elsewhere", *SLEEP, spec={"nodeName": "another-node"}))
    kubeconfig = cluster.folder / "kubeconfigs" / "system-node-this-machine.yaml"
    base = f"/api/v1/namespaces/{namespace.name}"
    async with await connect(kubeconfig) as node:
        for method, path, body in (
            ("GET", f"{base}/secrets/private", None),
            ("PATCH", f"{base}/pods/elsewhere/status", {"status": {"phase": "Failed"}}),
            ("POST", f"{base}/serviceaccounts/default/token", {"spec": {"audiences": []}}),
        ):
            assert await status_of(node, method, path, body) == 403


async def status_of(client: KubernetesClient, method: str, path: str, body: Any) -> int:
    content_type = MERGE_PATCH if method == "PATCH" else "application/json"
    try:
        await client.request(method, path, body=body, content_type=content_type)
    except KubernetesError as error:
        return error.status
    return 200
