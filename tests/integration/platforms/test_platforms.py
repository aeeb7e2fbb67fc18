"""The parts where the platform chooses user and addresses: an arbitrary UID without a home, and IPv6 alone."""

from __future__ import annotations

import contextlib
import shutil
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from integration.api.api_kit import MODEL, Site, png, serving
from integration.secrets.planted import Part
from integration.worker.bench_of_workers import START_SECONDS, Bench, start
from kubediffusion.local import installation
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.generation_job import Phase

UNSHARE = shutil.which("unshare") or "unshare"
ANY_USER = (UNSHARE, "--user", "--map-user=1000650000", "--map-group=0")
"""Another user of group 0, whom no passwd file knows, as OpenShift runs Pods."""


class _Relay(socketserver.ThreadingMixIn, socketserver.TCPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    target: tuple[str, int]


class _Connection(socketserver.BaseRequestHandler):
    server: _Relay

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
            back.start()
            _copy(self.request, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(url: str) -> Iterator[str]:
    """Serve a server of IPv4 on the loopback address of IPv6, and yield its address there."""
    parts = urlsplit(url)
    with _Relay(("::1", 0), _Connection) as server:
        server.target = (parts.hostname or "", parts.port or 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{parts.scheme}://[::1]:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def site(namespace: Namespace, tmp_path: Path) -> Iterator[Site]:
    """A namespace with a model."""
    with serving(namespace, tmp_path) as own:
        yield own


@pytest.fixture
def over_ipv6(namespace: Namespace) -> Iterator[dict[str, str]]:
    """Settings under which API server and storage have addresses of IPv6, and a proxy that is away leads to others."""
    store = namespace.cluster.store
    with relay(namespace.cluster.control_plane.url) as server, relay(store.endpoint) as storage:
        yield {
            "API_SERVER": server,
            "AWS_ENDPOINT_URL_S3": storage,
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "example.com,::/64",
        }


def a_part(name: str, namespace: Namespace, folder: Path, settings: dict[str, str]) -> Part:
    """Start a part as any user, over IPv6 alone."""
    environment = dict(settings)
    account = {"api": installation.API, "operator": installation.OPERATOR}[name]
    plane = namespace.cluster.control_plane
    config = yaml.safe_load(plane.kubeconfig(f"system:serviceaccount:{namespace.name}:{account}").read_text())
    # Its certificate is of the address of IPv4.
    cluster = config["clusters"][0]["cluster"]
    cluster |= {"server": environment.pop("API_SERVER"), "tls-server-name": urlsplit(plane.url).hostname}
    file = folder / f"{name}.ipv6.kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return Part(name, namespace, folder, {**environment, "KUBECONFIG": str(file), "HOME": "/nowhere"}, "::1", ANY_USER)


def test_api_and_operator_serve_any_user_over_ipv6_alone(
    site: Site, namespace: Namespace, tmp_path: Path, over_ipv6: dict[str, str]
) -> None:
    settings = {**over_ipv6, "KUBEDIFFUSION_TRUSTED_PROXIES": "::1/128", "KUBEDIFFUSION_RATE_LIMIT": "1/hour"}
    api = a_part("api", namespace, tmp_path, settings)
    operator = None
    try:
        api.wait_ready()

        def generate(client: str) -> httpx.Response:
            return api.http.post("/generate", json={"prompt": "a cat"}, headers={"X-Forwarded-For": client})

        first, again, other = (generate(client) for client in ("2001:db8::1", "2001:db8::1", "2001:db8:1::1"))
        assert [answer.status_code for answer in (first, again, other)] == [202, 429, 202]
        name = first.json()["task_id"]
        deleted = {"metadata": {"name": "held", "finalizers": [meta.IMAGES_FINALIZER]}}
        spec = {"prompt": "a cat", "model": MODEL, "deletionPolicy": "Delete"}
        namespace.apply({"apiVersion": meta.API_VERSION, "kind": "GenerationJob", **deleted, "spec": spec})
        for job in (name, "held"):
            site.stage.complete(job, png())
        wait_for("the image", lambda: api.http.get(f"/results/{name}").json()["status"] == "completed")
        signed = api.http.get(f"/results/{name}", params={"image": "url"}).json()["image_url"]
        assert signed.startswith(over_ipv6["AWS_ENDPOINT_URL_S3"])
        assert httpx.get(signed, trust_env=False).content == png()
        operator = a_part("operator", namespace, tmp_path, over_ipv6)
        operator.wait_ready()
        namespace.kubectl("delete", "generationjob", "held", "--wait=false")
        wait_for(
            "the job and its image to go", lambda: not namespace.kubectl("get", "gj", "held", "--ignore-not-found")
        )
        assert operator.get("/metrics").startswith("200")
        assert (api.end(), operator.end()) == (0, 0)
    finally:
        for part in filter(None, (api, operator)):
            part.close()


async def test_a_worker_runs_as_any_user_and_stores_over_ipv6(
    namespace: Namespace, client: KubernetesClient, tiny_folder: Path, over_ipv6: dict[str, str]
) -> None:
    namespace.install()
    command = [*ANY_USER, str(Path(sys.executable).with_name("kubediffusion-worker"))]
    bench = Bench(namespace, client, tiny_folder)
    environment: dict[str, Any] = {key: value for key, value in over_ipv6.items() if key != "API_SERVER"}
    environment["NO_PROXY"] += ",127.0.0.0/8"
    start(namespace, "anybody", tiny_folder, command=command, HOME="/nowhere", **environment)
    namespace.wait_ready("anybody", START_SECONDS)
    await bench.run("over-ipv6", "anybody")
    job = await bench.reached("over-ipv6")
    assert job.status.phase is Phase.SUCCEEDED, job.status.error
    bench.check_images(job)
