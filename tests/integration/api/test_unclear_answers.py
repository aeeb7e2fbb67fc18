"""An error of the API server after it committed a job: the client that sends its request again has one job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import httpx
import pytest

from integration.api.api_kit import Api, Site
from integration.api.faults import CUT, FaultyServer, faulty_server
from kubediffusion.local import installation
from kubediffusion.local.testing import Namespace, wait_for


@pytest.fixture(scope="module")
def server(shared: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    namespace = shared.stage.namespace
    user = f"system:serviceaccount:{namespace.name}:{installation.API}"
    identity = namespace.cluster.control_plane.kubeconfig(user)
    with faulty_server(identity, tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.fixture(scope="module")
def unlucky(shared: Site, server: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that reaches the API server through the faults."""
    environment = {"KUBECONFIG": str(server.kubeconfig), "KUBEDIFFUSION_RATE_LIMIT": ""}
    api = Api(shared.stage.namespace, tmp_path_factory.mktemp("unlucky"), environment)
    with contextlib.closing(api):
        api.start()
        yield api


@pytest.fixture
def namespace(shared: Site) -> Namespace:
    return shared.stage.namespace


def jobs_of(namespace: Namespace, prompt: str) -> list[str]:
    listed = json.loads(namespace.kubectl("get", "generationjobs", "--output=json"))["items"]
    return [job["metadata"]["name"] for job in listed if job["spec"]["prompt"] == prompt]


def post(api: Api, prompt: str, path: str = "/generate", **headers: str) -> httpx.Response:
    return api.http.post(path, json={"prompt": prompt}, headers=headers)


@pytest.fixture(autouse=True)
def struck(server: FaultyServer) -> Iterator[None]:
    """Every fault that a test ordered has struck."""
    yield
    assert server.faults.creations == []


@pytest.mark.parametrize("path", ["/generate", "/v1/jobs"])
@pytest.mark.parametrize("status", [CUT, 408, 500, 502, 503, 504])
def test_a_job_that_was_committed_is_accepted(
    unlucky: Api, server: FaultyServer, namespace: Namespace, status: int, path: str
) -> None:
    server.faults.creations, server.faults.committed = [status], True
    prompt = f"committed before {status} at {path}"
    answer = post(unlucky, prompt, path)
    assert answer.status_code in {201, 202}, answer.text
    assert jobs_of(namespace, prompt) == [answer.json().get("task_id") or answer.json()["name"]]


@pytest.mark.parametrize("status", [CUT, 408, 504])
def test_a_job_that_was_lost_is_written_again(
    unlucky: Api, server: FaultyServer, namespace: Namespace, status: int
) -> None:
    server.faults.creations, server.faults.committed = [status], False
    prompt = f"lost before {status}"
    answer = post(unlucky, prompt)
    assert answer.status_code == 202, answer.text
    assert jobs_of(namespace, prompt) == [answer.json()["task_id"]]


@pytest.mark.parametrize("status", [500, 503])
def test_a_job_that_was_refused_is_not_there_when_the_client_hears_so(
    unlucky: Api, server: FaultyServer, namespace: Namespace, status: int
) -> None:
    server.faults.creations, server.faults.committed = [status], False
    prompt = f"refused with {status}"
    answer = post(unlucky, prompt)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert jobs_of(namespace, prompt) == []


@pytest.mark.parametrize("key", [None, "order-68"])
def test_where_nobody_can_be_asked_the_client_that_tries_again_has_one_job(
    unlucky: Api, server: FaultyServer, namespace: Namespace, key: str | None
) -> None:
    prompt = f"nobody to ask, key {key}"
    headers = {} if key is None else {"Idempotency-Key": key}
    server.faults.creations, server.faults.committed, server.faults.away_after = [CUT], True, True
    first = post(unlucky, prompt, **headers)
    assert first.status_code == 503, first.text
    assert len(jobs_of(namespace, prompt)) == 1
    server.faults.away_after = False
    server.faults.away.clear()
    again = post(unlucky, prompt, **headers)
    assert again.status_code == 202, again.text
    wait_for("one job", lambda: jobs_of(namespace, prompt) == [again.json()["task_id"]], 60)
