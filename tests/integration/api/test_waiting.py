"""One request instead of many polls: ``?wait=`` for tasks, ``Prefer: wait=`` for jobs."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from integration.api.api_kit import Api, Stage, png
from kubediffusion.local.testing import wait_for

CALLS = ThreadPoolExecutor(8, "calls")


def pending(call: Callable[[], httpx.Response], api: Api) -> Future[httpx.Response]:
    """Make a call in a thread, and return it once the API has it under way."""
    before = api.metric("kubediffusion_api_waiting_requests")
    future = CALLS.submit(call)
    wait_for("the request", lambda: api.metric("kubediffusion_api_waiting_requests") > before)
    assert not future.done()
    return future


def get(api: Api, path: str, **headers: str) -> httpx.Response:
    return httpx.get(api.url + path, headers=headers, timeout=90, trust_env=False)


def test_a_task_is_waited_for(api: Api, stage: Stage) -> None:
    task_id = api.generate()
    lookups = api.metric("kubediffusion_api_lookups_total")
    call = pending(lambda: get(api, f"/results/{task_id}?wait=60"), api)
    stage.bind(task_id)
    stage.run(task_id)
    api.wait_status(task_id, "processing")
    assert not call.done()
    stage.succeed(task_id, png())
    body = call.result(30).json()
    assert (body["status"], base64.b64decode(body["image_base64"])) == ("completed", png())
    assert api.metric("kubediffusion_api_lookups_total") == lookups
    # What has finished is answered at once.
    assert get(api, f"/results/{task_id}?wait=60").json() == body


def test_a_wait_ends_in_time(api: Api) -> None:
    task_id = api.generate()
    began = time.monotonic()
    assert get(api, f"/results/{task_id}?wait=0.5").json()["status"] == "pending"
    assert 0.5 <= time.monotonic() - began < 30
    assert get(api, f"/results/{task_id}?wait=0").json()["status"] == "pending"


@pytest.mark.parametrize("seconds", ["-1", "61", "long", "NaN"])
def test_a_wait_has_bounds(api: Api, seconds: str) -> None:
    answer = get(api, f"/results/{api.generate()}?wait={seconds}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "wait"]


def test_another_replica_waits_as_well(api: Api, replica: Api, stage: Stage) -> None:
    task_id = api.generate()
    call = pending(lambda: get(replica, f"/results/{task_id}?wait=60"), replica)
    stage.cancelled(task_id)
    assert call.result(30).json()["error_message"] == "Cancelled."


def test_a_job_that_is_deleted_meanwhile(api: Api) -> None:
    task_id = api.generate()
    call = pending(lambda: get(api, f"/results/{task_id}?wait=60"), api)
    assert api.http.delete(f"/v1/jobs/{task_id}").status_code == 204
    assert call.result(30).status_code == 404


def test_a_preference_when_a_job_is_created(api: Api, stage: Stage) -> None:
    body = {"prompt": "a preferred cat"}
    call = pending(
        lambda: httpx.post(
            f"{api.url}/v1/jobs", json=body, headers={"Prefer": "respond-async, wait=99"}, timeout=90, trust_env=False
        ),
        api,
    )
    (name,) = [job["name"] for job in api.http.get("/v1/jobs").json()["jobs"] if job["prompt"] == body["prompt"]]
    stage.complete(name, png())
    answer = call.result(30)
    assert (answer.status_code, answer.json()["phase"]) == (201, "Succeeded")
    assert (answer.headers["Preference-Applied"], answer.headers["Location"]) == ("wait=60", f"/v1/jobs/{name}")


def test_a_preference_when_a_job_is_shown(api: Api, stage: Stage) -> None:
    name = api.generate()
    call = pending(lambda: get(api, f"/v1/jobs/{name}", Prefer='Wait="30"'), api)
    stage.bind(name)
    stage.run(name)
    stage.fail(name, "PipelineFailed", "no luck")
    answer = call.result(30)
    assert (answer.json()["phase"], answer.headers["Preference-Applied"]) == ("Failed", "wait=30")


@pytest.mark.parametrize("prefer", ["", "wait", "wait=soon", "wait=-1", "waiting=5", "handling=lenient"])
def test_a_preference_that_is_not_understood_is_ignored(api: Api, prefer: str) -> None:
    answer = get(api, f"/v1/jobs/{api.generate()}", Prefer=prefer)
    assert answer.json()["phase"] == "Pending"
    assert "Preference-Applied" not in answer.headers


def test_who_hangs_up_is_waited_for_no_more(api: Api) -> None:
    task_id = api.generate()
    waiting = api.metric("kubediffusion_api_waiting_requests")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{api.url}/results/{task_id}?wait=60", timeout=1, trust_env=False)
    wait_for("the end of the wait", lambda: api.metric("kubediffusion_api_waiting_requests") == waiting)
    assert api.result(task_id)["status"] == "pending"
