"""What the API promises while its neighbours, or it, come and go."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import httpx

from integration.api.api_kit import MODEL, Api, Site, Stage, StartApi, png
from kubediffusion.api.errors import RETRY_AFTER_SECONDS
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources import meta
from kubediffusion.resources.runtime.nesting import DEEPEST


@contextlib.contextmanager
def api_server_away(namespace: Namespace) -> Iterator[None]:
    """Kill the API server, and bring it back in the end, with the controllers that later tests need."""
    cluster = namespace.cluster
    server = cluster.control_plane.apiserver
    server.kill()
    try:
        yield
    finally:
        server.start()
        server.wait_ready()
        # The controllers come back to it after a pause of their own.
        cluster.kubectl("--namespace", namespace.name, "delete", "configmap", "kube-root-ca.crt")
        wait_for("the controllers", lambda: namespace.get("configmap", "kube-root-ca.crt"))


def test_replicas_read_each_others_writes(api: Api, replica: Api) -> None:
    """A GET straight after the 202 never answers 404, whichever replica it reaches."""
    for number in range(50):
        writer, reader = (api, replica) if number % 2 else (replica, api)
        task_id = writer.generate(f"number {number}")
        assert reader.result(task_id)["prompt"] == f"number {number}"
        assert writer.result(task_id)["status"] == "pending"


def test_a_restart_loses_nothing(start_api: StartApi, stage: Stage) -> None:
    api = start_api()
    pending, done = api.generate("pending"), api.generate("done")
    stage.complete(done, png())
    api.wait_status(done, "completed")
    api.kill()
    api.start()
    assert api.result(pending)["status"] == "pending"
    assert base64.b64decode(api.result(done)["image_base64"]) == png()
    _ends_in_order(api)


def _ends_in_order(api: Api) -> None:
    """At SIGTERM, what is under way is answered, what was accepted exists, and the process ends with 0."""
    body = b'{"prompt": "the last cat"}'
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body[:5])
        wait_for("the request to be under way", lambda: api.http.get("/livez").status_code == 200)
        os.kill(api.pid, signal.SIGTERM)
        connection.sendall(body[5:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 202")
    assert api.stop() == 0
    assert "the last cat" in api.namespace.kubectl("get", "generationjobs", "--output=jsonpath={.items[*].spec.prompt}")


def test_while_the_api_server_restarts(api: Api, start_api: StartApi, stage: Stage) -> None:
    """Polls go on; a new process starts, says that it is not ready, and gets ready; what cannot be done is 503."""
    fresh = start_api()
    fresh.kill()
    task_ids = [api.generate(f"number {number}") for number in range(10)]
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        polling = pool.submit(_poll, api, task_ids, over)
        try:
            with api_server_away(stage.namespace):
                fresh.launch()
                assert api.http.post("/generate", json={"prompt": "a cat"}).status_code == 503
                wait_for("the new process to serve", lambda: _serves(fresh))
                assert fresh.http.get("/livez").status_code == 200
                assert fresh.http.get("/readyz").status_code == 503
                assert fresh.http.get("/health").status_code == 200
                unknown = fresh.http.get(f"/results/{task_ids[0]}")
                refused = fresh.http.post("/generate", json={"prompt": "a cat"})
                assert [(answer.status_code, answer.headers["Retry-After"]) for answer in (unknown, refused)] == [
                    (503, str(RETRY_AFTER_SECONDS)),
                    (503, "1"),
                ]
            wait_for("the new process to be ready", fresh.ready)
            stage.complete(task_ids[0], png())
            for server in (api, fresh):
                server.wait_status(task_ids[0], "completed")
                server.generate("after the restart")
        finally:
            over.set()
        polls, wrong = polling.result()
    assert not wrong, wrong[0].text
    assert polls > 100


def _poll(api: Api, task_ids: list[str], over: threading.Event) -> tuple[int, list[httpx.Response]]:
    polls, wrong = 0, []
    with httpx.Client(base_url=api.url, trust_env=False, timeout=30) as http:
        while not over.is_set():
            answers = [http.get(f"/results/{task_id}") for task_id in task_ids]
            polls += len(answers)
            wrong += [answer for answer in answers if answer.status_code != 200]
    return polls, wrong


def _serves(api: Api) -> bool:
    try:
        return api.http.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_storage_away_is_503_and_passes(uncached_api: Api, stage: Stage) -> None:
    api = uncached_api
    task_id = api.generate()
    stage.complete(task_id, png())
    api.wait_status(task_id, "completed")
    store = stage.namespace.cluster.store.process
    store.kill()
    try:
        answer = api.http.get(f"/results/{task_id}")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
        assert "storage" in answer.json()["detail"]
        # Signing asks nobody, and who only wants to know how far it is needs no image.
        assert api.result(task_id, image="url")["status"] == "completed"
        assert api.http.get(f"/v1/jobs/{task_id}").status_code == 200
    finally:
        store.start()
        store.wait_ready()
    assert base64.b64decode(api.result(task_id)["image_base64"]) == png()


def test_storage_that_hangs_holds_up_nothing_else(uncached_api: Api, stage: Stage) -> None:
    api = uncached_api
    done, pending = api.generate("done"), api.generate("pending")
    stage.complete(done, png())
    api.wait_status(done, "completed")
    store = stage.namespace.cluster.store.process
    store.signal(signal.SIGSTOP)
    try:
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            hanging = [pool.submit(api.http.get, f"/results/{done}") for _ in range(40)]
            for _ in range(20):
                assert api.result(pending)["status"] == "pending"
                assert api.result(done, image="url")["image_url"]
            api.generate("another")
            answers = [future.result() for future in hanging]
    finally:
        store.signal(signal.SIGCONT)
    assert {answer.status_code for answer in answers} == {503}
    assert "storage" in answers[0].json()["detail"]
    wait_for("the image", lambda: api.http.get(f"/results/{done}").status_code == 200)


def test_polling_costs_the_api_server_nothing(api: Api, stage: Stage) -> None:
    task_ids = [api.generate(f"number {number}") for number in range(20)]
    done = api.generate("done")
    stage.complete(done, png())
    api.wait_status(done, "completed")
    before = api.metric("kubediffusion_api_lookups_total")
    reads = api.metric('kubediffusion_api_image_reads_total{source="storage"}')
    for _ in range(10):
        for task_id in [*task_ids, done]:
            api.result(task_id)
    assert api.metric("kubediffusion_api_lookups_total") == before
    assert api.metric('kubediffusion_api_image_reads_total{source="storage"}') == reads


def test_probing_for_tasks_is_bounded_and_never_hides_one(start_api: StartApi, stage: Stage) -> None:
    api = start_api(UNKNOWN_TASK_LIMIT="5/minute")

    def probe(number: int) -> int:
        return api.http.get(f"/results/nothing-{number}").status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(probe, range(60)))
    assert set(statuses) == {404, 429}
    # A few may have been under way when the allowance ran out.
    assert 5 <= api.metric("kubediffusion_api_lookups_total") <= 5 + 8
    assert statuses.count(404) == 5
    # Whoever has used it up still sees what exists, once the watch has brought it.
    stage.namespace.kubectl("apply", "--filename=-", stdin=_job("late"))
    wait_for("the job", lambda: api.http.get("/results/late").status_code == 200)


def test_one_unknown_task_is_asked_for_seldom_and_found_at_once(start_api: StartApi, stage: Stage) -> None:
    """Those who wait for a job that does not exist yet share reads, and none is told 404 after it was created."""
    api = start_api(UNKNOWN_TASK_LIMIT="")
    created = threading.Event()
    late: list[int] = []
    polls = 0

    def poll() -> None:
        nonlocal polls
        with httpx.Client(base_url=api.url, trust_env=False, timeout=30) as http:
            for number in range(8):
                # Whoever is done before the job is there waits for it with the last one.
                exists = created.wait(60) if number == 7 else created.is_set()
                status = http.get("/results/awaited").status_code
                polls += 1
                if exists:
                    late.append(status)

    began = time.monotonic()
    pollers = [threading.Thread(target=poll) for _ in range(20)]
    for poller in pollers:
        poller.start()
    stage.namespace.kubectl("apply", "--filename=-", stdin=_job("awaited"))
    created.set()
    for poller in pollers:
        poller.join()
    assert len(late) >= 20
    assert set(late) == {200}
    assert polls == 160
    # One each half second, and the one that found it.
    assert 1 <= api.metric("kubediffusion_api_lookups_total") <= 2 + 2 * (time.monotonic() - began)


def _job(name: str) -> str:
    return f"""
apiVersion: kubediffusion.io/v1alpha1
kind: GenerationJob
metadata: {{name: {name}}}
spec: {{prompt: a dog}}
"""


def test_a_deeply_nested_model_keeps_the_api_from_no_other(site: Site, namespace: Namespace) -> None:
    """Kubernetes takes many times the depth that Python's JSON reads: in a list, and in a watch."""
    watches = site.start()
    depth = DEEPEST // 2
    workers = '{"affinity":' + '{"a":' * depth + "1" + "}" * depth + "}"
    collection = f"/apis/{meta.API_VERSION}/namespaces/{namespace.name}/diffusionmodels"
    metadata = f'"apiVersion":"{meta.API_VERSION}","kind":"DiffusionModel","metadata":{{"name":"deep"}}'
    body = f'{{{metadata},"spec":{{"source":{{"path":"/models/x"}},"workers":{workers}}}}}'
    # As kubectl hands it on: Python could not write it.
    namespace.kubectl("create", "--raw", collection, "-f", "-", stdin=body)

    def known(api: Api) -> bool:
        return {model["name"] for model in api.http.get("/v1/models").json()["models"]} == {"deep", MODEL}

    wait_for("the model in the watch", lambda: known(watches))
    site.stage.available("False", "LoadFailed", "told after it", "deep")
    wait_for("a later change", lambda: "told after it" in watches.http.get("/v1/models/deep").text)
    lists = site.start()
    wait_for("the model in the list", lambda: known(lists))
    for api in (watches, lists):
        assert api.http.get(f"/results/{api.generate()}").status_code == 200
