"""Webhooks as clients of the HTTP API ask for them: /v1, the task API, and Replicate's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client

from integration.api.api_kit import MODEL, Api, StartApi, apis, png, problems
from integration.deliverer.deliverers import Jobs, Receiver, verified
from kubediffusion.local.testing import Namespace
from kubediffusion.resources import meta


@pytest.fixture(scope="session")
def start_api(shared: Namespace, shared_stage: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartApi]:
    """Starts an API in the shared namespace."""
    with apis(shared, tmp_path_factory.mktemp("api")) as start:
        yield start


@pytest.fixture(scope="session")
def api(start_api: StartApi, receiver: Receiver) -> Api:
    """An API whose clients may ask for webhooks."""
    return start_api(RATE_LIMIT="", WEBHOOKS="true", WEBHOOK_ALLOWED_HOSTS=receiver.host)


@pytest.fixture(scope="session")
def replicate(api: Api) -> Client:
    return Client(api_token="none", base_url=f"{api.url}/replicate")


def test_a_job_of_v1_tells_its_end(api: Api, jobs: Jobs, receiver: Receiver) -> None:
    webhook = {"url": receiver.url("200?secret=of-mine"), "events": ["started", "completed"]}
    created = api.http.post("/v1/jobs", json={"prompt": "a fox", "webhook": webhook})
    assert created.status_code == 201, created.text
    name = created.json()["name"]
    assert created.json()["request"]["webhook"] == {**webhook, "secret_name": None}
    assert created.json()["webhook"] is None
    jobs.stage.complete(name, png())
    jobs.wait_told(name, lambda state: "completed" in state.get("delivered", ()))
    shown = api.http.get(f"/v1/jobs/{name}").json()
    assert shown["webhook"]["response_status"] == 200
    uid = jobs.stage.job(name)["metadata"]["uid"]
    message = verified(receiver.requests(uid)[-1])
    # The job as it is shown, but for how the telling goes.
    assert message["data"] == {**shown, "webhook": None}


def test_a_task_tells_its_end(api: Api, jobs: Jobs, receiver: Receiver) -> None:
    name = api.generate(webhook={"url": receiver.url("200")})
    jobs.stage.complete(name, png())
    jobs.wait_delivered(name)


@pytest.mark.parametrize(
    ("webhook", "field", "reason"),
    [
        ({"url": "http://example.com/"}, "body.webhook", "it is not https"),
        ({"url": "nowhere"}, "body.webhook.url", "match pattern"),
        ({"url": "https://me:mine@example.com"}, "body.webhook.url", "match pattern"),
        ({"url": "https://example.com:0/"}, "body.webhook", "its port is 0"),
        ({"url": "https://example.com", "secret_name": "kubediffusion-s3"}, "body.webhook", "kubediffusion-webhooks"),
        ({"url": "https://example.com", "events": []}, "body.webhook.events", "at least 1"),
        ({"url": "https://example.com", "event": "completed"}, "body.webhook.event", "did you mean 'events'?"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(api: Api, webhook: dict[str, Any], field: str, reason: str) -> None:
    said = problems(api.http.post("/v1/jobs", json={"prompt": "a fox", "webhook": webhook}))
    assert reason in said[field]
    assert "mine" not in str(said)


def test_where_nothing_is_delivered_a_webhook_is_refused(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="")
    body = {"prompt": "a fox", "webhook": {"url": "https://example.com"}}
    for answer in (api.http.post("/v1/jobs", json=body), api.http.post("/generate", json=body)):
        assert "This installation delivers no webhooks" in problems(answer)["body.webhook"]


def test_a_prediction_is_told_in_its_own_form(
    replicate: Client, api: Api, jobs: Jobs, receiver: Receiver, shared: Namespace
) -> None:
    prediction = replicate.predictions.create(
        version=f"{shared.name}/{MODEL}",
        input={"prompt": "a fox", "num_outputs": 2},
        webhook=receiver.url("200"),
        webhook_events_filter=["start", "completed"],
    )
    uid = jobs.stage.job(prediction.id)["metadata"]["uid"]
    jobs.stage.bind(prediction.id)
    jobs.stage.run(prediction.id)
    jobs.wait_delivered(prediction.id, "started")
    jobs.stage.succeed(prediction.id, png(), png("blue"))
    jobs.wait_delivered(prediction.id, "started", "completed")
    start, end = (verified(request) for request in receiver.requests(uid))
    assert (start["id"], start["status"], start["output"]) == (prediction.id, "processing", None)
    assert (end["id"], end["status"]) == (prediction.id, "succeeded")
    shown = api.http.get(f"/replicate/v1/predictions/{prediction.id}").json()
    assert {key: end[key] for key in end.keys() - {"output"}} == {key: shown[key] for key in shown.keys() - {"output"}}
    # Its images have addresses, as in lists; the key of the API opens them.
    assert [api.http.get(address).status_code for address in end["output"]] == [200, 200]
    # The client reads a prediction out of a message.
    assert replicate.predictions.get(end["id"]).status == "succeeded"


@pytest.mark.parametrize(
    ("asked", "events"),
    [
        ({"webhook": "https://a.example"}, ["started", "completed"]),
        ({"webhook": "https://a.example", "webhook_events_filter": ["output"]}, ["completed"]),
        ({"webhook": "https://a.example", "webhook_events_filter": ["completed", "logs", "start"]}, None),
        ({"webhook": "https://a.example", "webhook_events_filter": ["logs"]}, []),
        ({"webhook_completed": "https://a.example"}, ["completed"]),
    ],
)
def test_events_are_filtered_as_replicate_s_clients_ask(
    api: Api, jobs: Jobs, asked: dict[str, Any], events: list[str] | None
) -> None:
    body = {"version": f"any/{MODEL}", "input": {"prompt": "a fox"}, **asked}
    created = api.http.post("/replicate/v1/predictions", json=body)
    assert created.status_code == 201, created.text
    job = jobs.stage.job(created.json()["id"])
    wanted = ["started", "completed"] if events is None else events
    assert job["spec"].get("webhook") == ({"url": "https://a.example", "events": wanted} if wanted else None)
    noted = job["metadata"].get("annotations", {})
    assert noted.get(meta.PREDICTIONS_URL_ANNOTATION) == (f"{api.url}/replicate/v1" if wanted else None)
    jobs.stage.delete(created.json()["id"])


def test_a_prediction_that_is_asked_for_again_by_another_name_of_the_server_is_the_same(api: Api, jobs: Jobs) -> None:
    body = {"version": f"any/{MODEL}", "input": {"prompt": "a fox"}, "webhook": "https://a.example"}
    answers = [
        api.http.post(
            "/replicate/v1/predictions", json=body, headers={"Idempotency-Key": "one-key", "Host": f"{host}:1"}
        )
        for host in ("a.example", "b.example")
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    jobs.stage.delete(answers[0].json()["id"])


def test_what_is_secret_in_an_address_is_in_no_log(api: Api, jobs: Jobs, receiver: Receiver, deliverer: Path) -> None:
    """Nor the path: a capability may be in it."""
    uid = jobs.ended("secret", receiver.url("500?token=hidden-in-query"))
    jobs.wait_told("secret", lambda state: state.get("responseStatus") == 500)
    receiver.wait_for(uid, 1)
    told = jobs.told("secret")
    for text in (deliverer.read_text(), api.log.read_text(), str(told)):
        assert "hidden-in-query" not in text
    jobs.stage.delete("secret")
