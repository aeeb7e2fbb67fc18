"""No credential of the API or the operator is in anything that they write, in order or through errors that quote it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.api.api_kit import MODEL, Site, png
from integration.api.faults import faulty_server
from integration.secrets.planted import Part, found, in_url, refusing_proxy, secret
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources import meta

Start = Callable[..., Part]

PARTS = ["api", "operator"]

# Each has a planted value, with a newline at its end as a Secret that was made of a file has.
NO_USE_OF = {
    "AWS_SESSION_TOKEN": secret("session") + "\n",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": secret("container") + "\n",
    "ALL_PROXY": f"http://{in_url('all-proxy')}@127.0.0.1:9",
    "all_proxy": f"http://{in_url('other-all-proxy')}@127.0.0.1:9",
}


def kubeconfig_with(config: Path, folder: Path, cluster: dict[str, str]) -> Path:
    """Copy a kubeconfig with a planted token in the place of its credentials, and other fields of its cluster."""
    content = yaml.safe_load(config.read_text())
    content["users"][0]["user"] = {"token": secret("kubeconfig")}
    content["clusters"][0]["cluster"].update(cluster)
    copy = folder / "planted.kubeconfig"
    copy.write_text(yaml.safe_dump(content))
    return copy


def a_job(name: str, **spec: str) -> dict[str, Any]:
    metadata = {"name": name, "finalizers": [meta.IMAGES_FINALIZER] if spec else []}
    spec = {"prompt": "a cat", "model": MODEL, **spec}
    return {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "metadata": metadata, "spec": spec}


def says_trouble(part: Part) -> bool:
    log = part.log.read_text()
    return '"level": "warning"' in log or '"level": "error"' in log


def test_the_search_finds_what_is_planted() -> None:
    basic = f"somebody:{secret('c')}"
    error = f"{{'Proxy-Authorization': 'Basic {b64encode(basic.encode()).decode()}'}}"
    outputs = {"plain": f"x {secret('a')}", "URL": in_url("b"), "Basic": error, "none": "nothing is here"}
    assert [place.partition(":")[0] for place in found(outputs)] == ["plain", "URL", "Basic"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("status", [401, 502, 302, 200])
def test_an_api_server_that_quotes_requests_tells_nothing(
    site: Site, start: Start, namespace: Namespace, tmp_path: Path, part: str, status: int
) -> None:
    """It knows the token no longer, or a proxy before it echoes, redirects for ever, or has a page of its own."""
    with faulty_server(namespace.cluster.admin, tmp_path) as server:
        config = kubeconfig_with(server.kubeconfig, tmp_path, {})
        environment = {"KUBECONFIG": str(config), "KUBEDIFFUSION_RESYNC_SECONDS": "1", **NO_USE_OF}
        running = start(part, **environment)
        running.wait_ready()
        site.stage.model("watched", default=False)
        outputs = {f"ready {name}": text for name, text in running.outputs().items()}
        server.faults.echo = status
        site.stage.model("watched", default=False, torchDtype="float32")
        namespace.apply(a_job("watched"))
        if part == "api":
            outputs["POST"] = running.http.post("/generate", json={"prompt": "a cat"}).text
        wait_for("it to meet the fault", lambda: server.faults.echoed > 3)
        wait_for("it to say so", lambda: says_trouble(running))
        fresh = start(part, **environment)
        wait_for("another to say so", lambda: says_trouble(fresh))
        outputs |= running.outputs() | {f"fresh {name}": text for name, text in fresh.outputs().items()}
        server.faults.echo = 0
        for one in (running, fresh):
            if not one.recovers():
                # A node starts it again.
                start(part, **environment).wait_ready()
            outputs[f"log of {one.log.name}"] = one.log.read_text()
    assert found(outputs) == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("where", ["HTTPS_PROXY", "https_proxy", "kubeconfig"])
def test_a_proxy_that_refuses_tells_nothing(
    start: Start, namespace: Namespace, tmp_path: Path, part: str, where: str
) -> None:
    namespace.install()
    with refusing_proxy() as port:
        address = f"http://{in_url('proxy')}@127.0.0.1:{port}"
        # Of the addresses that are for examples: only the proxy could reach it.
        cluster = {"server": "https://192.0.2.1:6443"} | ({"proxy-url": address} if where == "kubeconfig" else {})
        config = kubeconfig_with(namespace.cluster.admin, tmp_path, cluster)
        environment = {} if where == "kubeconfig" else {where: address}
        running = start(part, KUBECONFIG=str(config), **environment)
        wait_for("it to say so", lambda: "407" in running.log.read_text())
        assert found(running.outputs()) == []
        assert running.end() == 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("setting", ["endpoint", "kubeconfig"])
def test_a_setting_that_cannot_be_read_tells_nothing(
    site: Site, start: Start, tmp_path: Path, part: str, setting: str
) -> None:
    """The process ends, and what it ends with quotes the setting."""
    config = tmp_path / "broken.kubeconfig"
    config.write_text(f"users: [{{user: {{token: {secret('token')}\n")
    broken = {
        "endpoint": {"AWS_ENDPOINT_URL_S3": f"http://{in_url('endpoint')}@local host:9"},
        "kubeconfig": {"KUBECONFIG": str(config)},
    }
    ending = start(part, **broken[setting])
    assert ending.process.wait(60) != 0
    log = ending.log.read_text()
    assert ("Invalid endpoint" if setting == "endpoint" else "not valid YAML") in log
    assert found({"log": log}) == []
    assert [line for line in log.split("\n") if line and not line.startswith("{")] == []


STORAGE = ("wrong key", "away", "no TLS", "proxy")


@pytest.mark.parametrize("fault", STORAGE)
def test_storage_that_refuses_tells_nothing(site: Site, start: Start, namespace: Namespace, fault: str) -> None:
    with refusing_proxy() as port:
        environments = {
            "wrong key": {"AWS_SECRET_ACCESS_KEY": secret("key") + "\n"},
            "away": {"AWS_ENDPOINT_URL_S3": f"http://{in_url('endpoint')}@127.0.0.1:9"},
            "no TLS": {"AWS_ENDPOINT_URL_S3": f"https://{in_url('endpoint')}@127.0.0.1:{port}"},
            "proxy": {"HTTP_PROXY": f"http://{in_url('proxy')}@127.0.0.1:{port}", "NO_PROXY": "localhost"},
        }
        environment = {"AWS_SECRET_ACCESS_KEY": secret("key"), **environments[fault]}
        namespace.apply(a_job("held", deletionPolicy="Delete"))
        site.stage.complete("held", png())
        api, operator = (start(part, **environment) for part in PARTS)
        outputs: dict[str, str] = {}
        api.wait_ready()
        operator.wait_ready()
        wait_for("the image to be named", lambda: "Succeeded" in api.get("/v1/jobs/held"))
        outputs |= {path: api.get(path) for path in ("/results/held", "/v1/jobs/held/images/0", "/v1/jobs/held")}
        assert outputs["/results/held"].startswith("503")
        signed = api.get("/results/held?image=url")
        assert "X-Amz-Signature" in signed
        namespace.kubectl("delete", "generationjob", "held", "--wait=false")
        wait_for("the job to say what holds it", lambda: meta.IMAGES_HELD_ANNOTATION in str(site.stage.job("held")))
        wait_for("the Event", lambda: "ImagesHeld" in namespace.kubectl("get", "events"))
        outputs["events"] = namespace.kubectl("get", "events", "--output=json")
        outputs["job"] = json.dumps(site.stage.job("held"))
        for part in (api, operator):
            outputs |= {f"{part.name} {name}": text for name, text in part.outputs().items()}
            assert "cannot " in outputs[f"{part.name} log"]
        signature = signed.partition("X-Amz-Signature=")[2][:64]
        assert len(signature) == 64
        assert found({**outputs, "signed": signed.replace("s3://", "")}) == []
        assert [name for name, text in outputs.items() if signature in text] == []
        namespace.kubectl("patch", "generationjob", "held", "--type=merge", '--patch={"metadata":{"finalizers":null}}')
