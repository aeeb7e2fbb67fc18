"""The command line with a kubeconfig alone: under the rights that RBAC gives a person, through the real API server."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.api.api_kit import Api, Site, Stage, png
from integration.api.faults import CUT, faulty_server
from integration.client.conftest import REFUSED, UNDRAWN
from integration.client.test_command_line import CommandLine
from kubediffusion.local import binaries
from kubediffusion.local.layout import CHART
from kubediffusion.local.testing import Namespace, wait_for

RBAC = "rbac.authorization.k8s.io"
EDITOR, VIEWER = "alice", "bob"


def own_address() -> str | None:
    """An address of this machine that is no loopback one; None where it has no network.

    To others the API server makes no connections for users: it would be a way around firewalls.
    """
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as unsent:
        try:
            unsent.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address: str = unsent.getsockname()[0]
    return None if address.startswith("127.") else address


@pytest.fixture(scope="module")
def namespace(client_stage: Stage) -> Namespace:
    """The namespace, in which two people have the roles that the chart gives people."""
    namespace = client_stage.namespace
    rules = {
        name: yaml.safe_load((CHART / "files" / "rbac" / f"{name}.yaml").read_text()) for name in ("viewer", "editor")
    }
    for user, role, own in ((EDITOR, "edit", rules["viewer"] + rules["editor"]), (VIEWER, "view", rules["viewer"])):
        roles = (("ClusterRole", role), ("Role", user))
        namespace.apply(
            {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": user}, "rules": own},
            *(
                {
                    "apiVersion": f"{RBAC}/v1",
                    "kind": "RoleBinding",
                    "metadata": {"name": f"{user}-{kind.lower()}"},
                    "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name},
                    "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
                }
                for kind, name in roles
            ),
        )
    return namespace


@pytest.fixture(scope="module")
def service(namespace: Namespace, client_site: Site, api: Api) -> Iterator[str | None]:
    """The API's Service, as the chart has it; the address that it leads to, or None where it cannot lead to any."""
    address = own_address()
    metadata = {
        "name": "kubediffusion-api",
        "labels": {"app.kubernetes.io/name": "kubediffusion", "app.kubernetes.io/component": "api"},
    }
    open_api = client_site.start(RATE_LIMIT="", BIND_ADDRESS="0.0.0.0")  # noqa: S104 - an address of this machine's own
    ports = [{"name": "http", "port": open_api.port, "protocol": "TCP"}]
    namespace.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}})
    if address is not None:
        pod = {"containers": [{"name": "api", "image": "api"}], "schedulerName": "nobody"}
        namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api"}, "spec": pod})
        status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
        namespace.kubectl(
            "patch", "pod", "api", "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}"
        )
        target = {"kind": "Pod", "name": "api", "namespace": namespace.name}
        subset = {"addresses": [{"ip": address, "targetRef": target}], "ports": ports}
        namespace.apply({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]})
        proxy = f"/api/v1/namespaces/{namespace.name}/services/kubediffusion-api:http/proxy/readyz"
        wait_for("the way through the Service", lambda: namespace.cluster.kubectl("get", "--raw", proxy))
    yield address
    namespace.kubectl("delete", "service/kubediffusion-api", "--ignore-not-found")


@pytest.fixture
def line(namespace: Namespace, tmp_path: Path) -> CommandLine:
    return line_of(namespace, tmp_path, EDITOR)


def line_of(namespace: Namespace, folder: Path, user: str) -> CommandLine:
    """The command line of a person, whose kubeconfig names the namespace."""
    source = namespace.cluster.control_plane.kubeconfig(user)
    return with_kubeconfig(namespace, folder, source)


def with_kubeconfig(namespace: Namespace, folder: Path, source: Path) -> CommandLine:
    config = yaml.safe_load(source.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace.name
    own = folder / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    line = CommandLine(folder, "")
    del line.environment["KUBEDIFFUSION_SERVER"]
    line.environment |= {"KUBECONFIG": str(own), "HOME": str(folder)}
    return line


def jobs_of(namespace: Namespace, prompt: str) -> list[dict[str, Any]]:
    jobs = json.loads(namespace.kubectl("get", "generationjobs", "--output=json"))["items"]
    return [job for job in jobs if job["spec"]["prompt"] == prompt]


def test_a_picture_with_a_kubeconfig_alone(line: CommandLine, service: str | None) -> None:
    # The real kubectl finds the program on PATH.
    code, out, err = line.run(
        "diffuse",
        "a fox", "-o", "fox.png", "--seed", "7", "--set", "acceleration.featureCaching.interval=3",
        program=str(binaries.provide().path("kubectl")),
    )  # fmt: skip
    if service is None:
        # Without a network the API server has no way to anybody, and says so.
        assert (code, "Service kubediffusion-api leads nowhere" in err) == (1, True)
        return
    assert (code, out, err) == (0, "fox.png\n", "")
    assert (line.folder / "fox.png").read_bytes() == png()


def test_jobs_and_models_are_shown_as_over_http(line: CommandLine, api: Api) -> None:
    name = line.ok("shown in Kubernetes", "--no-wait", "--steps", "9").strip()
    assert line.ok("wait", name) == f"{name}\n"
    shown = line.json("get", name)
    over_http = api.http.get(f"/v1/jobs/{name}").json()
    same = ("name", "phase", "prompt", "priority", "progress", "worker", "error", "warnings", "attempt", "retries")
    assert {field: shown[field] for field in same} == {field: over_http[field] for field in same}
    assert {field: value for field, value in shown["parameters"].items() if value is not None} == {
        field: value for field, value in over_http["parameters"].items() if value is not None
    }
    assert [image["sha256"] for image in shown["images"]] == [image["sha256"] for image in over_http["images"]]
    [model] = line.json("models")
    [known] = api.http.get("/v1/models").json()["models"]
    assert {field: model[field] for field in ("name", "default", "available", "limits", "queued")} == {
        field: known[field] for field in ("name", "default", "available", "limits", "queued")
    }
    assert model["defaults"] == {field: known["defaults"][field] for field in model["defaults"]}
    assert name in {job["name"] for job in line.json("list", "--phase", "succeeded", "--limit", "0")}
    assert re.search(r"^phase +Succeeded, ", line.ok("explain", name), re.MULTILINE)


def test_what_changes_is_seen_as_it_comes(line: CommandLine, client_stage: Stage, namespace: Namespace) -> None:
    name = line.ok(f"{UNDRAWN} in Kubernetes", "--no-wait").strip()
    client_stage.waits(name, "WorkersBusy", "all at capacity")
    assert re.search(r"^waits +all at capacity \(WorkersBusy\)$", line.ok("explain", name), re.MULTILINE)
    assert line.run("wait", name, "--timeout", "0.2")[0] == 6
    waiting = line.start("wait", name)
    client_stage.bind(name)
    client_stage.run(name)
    client_stage.succeed(name, png())
    assert waiting.communicate(timeout=30)[0].decode() == f"{name}\n"
    assert line.run("cancel", name)[0] == 8


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a fox", "--steps", "200"), 2, "error: --steps (num_inference_steps): "),
        (("a fox", "--steps", "100000"), 2, "error: --steps (num_inference_steps): "),
        (("a fox", "--set", "spec.numImagez=2"), 2, "error: num_imagez: "),
        (("get", "no-such-job"), 3, 'error: generationjobs.kubediffusion.io "no-such-job" not found'),
        (("list", "--phase", "Lost"), 2, "'Lost' is none of Pending, "),
        (("list", "--namespace", "default"), 4, "hint: whoever runs the cluster gives the role `edit`"),
        ((f"{REFUSED} in Kubernetes",), 1, "the sampler cannot do this"),
    ],
)
def test_refusals_have_words_and_numbers(line: CommandLine, arguments: tuple[str, ...], code: int, words: str) -> None:
    got, out, err = line.run(*arguments)
    assert (got, out) == (code, "")
    assert words in " ".join(err.split())


def test_whoever_may_view_may_not_create(namespace: Namespace, tmp_path: Path) -> None:
    line = line_of(namespace, tmp_path, VIEWER)
    assert isinstance(line.json("list"), list)
    code, _, err = line.run("a fox")
    assert (code, "cannot create resource" in err) == (4, True)


def test_ctrl_c_cancels_what_was_started(line: CommandLine, namespace: Namespace) -> None:
    prompt = f"{UNDRAWN}: stopped {uuid.uuid4()}"
    process = line.start(prompt)
    [job] = wait_for("the job", lambda: jobs_of(namespace, prompt))
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    name = job["metadata"]["name"]
    assert (process.returncode, words.decode()) == (130, f"job {name} has been cancelled\n")
    assert jobs_of(namespace, prompt)[0]["spec"]["cancel"]


def test_a_lost_answer_makes_no_second_job(namespace: Namespace, tmp_path: Path) -> None:
    prompt = f"{UNDRAWN}: lost {uuid.uuid4()}"
    with faulty_server(namespace.cluster.control_plane.kubeconfig(EDITOR), tmp_path) as server:
        server.faults.creations[:] = [CUT, CUT]
        line = with_kubeconfig(namespace, tmp_path, server.kubeconfig)
        code, out, err = line.run(prompt, "--no-wait")
        assert (code, "tries again in" in err, server.faults.creations) == (0, True, [])
    name = out.strip()
    assert [job["metadata"]["name"] for job in jobs_of(namespace, prompt)] == [name]


def test_a_watch_that_is_too_old_or_breaks_off_is_begun_anew(
    namespace: Namespace, client_stage: Stage, tmp_path: Path
) -> None:
    with faulty_server(namespace.cluster.control_plane.kubeconfig(EDITOR), tmp_path) as server:
        line = with_kubeconfig(namespace, tmp_path, server.kubeconfig)
        name = line.ok(f"{UNDRAWN}: watched", "--no-wait").strip()
        server.faults.gone = 2
        waiting = line.start("wait", name)
        wait_for("the watches", lambda: server.faults.gone == 0)
        client_stage.bind(name)
        server.faults.away.set()
        client_stage.run(name)
        server.faults.away.clear()
        client_stage.succeed(name, png())
        assert waiting.communicate(timeout=60)[0].decode() == f"{name}\n"


def test_a_program_that_closes_nothing_ends_quietly(line: CommandLine) -> None:
    program = "from kubediffusion.client import Client; print(Client().submit('a fox').wait().phase)"
    process = subprocess.run(
        [sys.executable, "-Wdefault", "-c", program], env=line.environment, capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "Succeeded\n", "")


def test_without_the_api_s_service_it_says_what_helps(
    line: CommandLine, namespace: Namespace, service: str | None
) -> None:
    name = line.ok("drawn and not fetched", "--no-wait").strip()
    line.ok("wait", name)
    namespace.kubectl("delete", "service/kubediffusion-api")
    code, _, err = line.run("wait", name, "-o", "fox.png")
    assert (code, "there is no Service of KubeDiffusion's HTTP API" in err, "--server" in err) == (1, True, True)


def test_a_kubeconfig_that_is_none(line: CommandLine) -> None:
    Path(line.environment["KUBECONFIG"]).write_text("{")
    code, _, err = line.run("list")
    assert (code, "kubeconfig" in err) == (1, True)
    line.environment["KUBECONFIG"] = str(line.folder / "none")
    code, _, err = line.run("list")
    assert (code, "hint: name a kubeconfig in KUBECONFIG" in err) == (1, True)
