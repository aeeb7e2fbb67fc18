"""What a receiver is told, and what the job says of it."""

from __future__ import annotations

import base64
import json

import pytest

from integration.deliverer.deliverers import KEY, Jobs, Receiver, secret, verified
from kubediffusion.local.testing import Namespace, wait_for


def test_the_end_of_a_job_is_told_once_and_signed(jobs: Jobs, receiver: Receiver) -> None:
    uid = jobs.ended("plain", receiver.url("204"))
    state = jobs.wait_delivered("plain")
    assert (state["attempts"], state["responseStatus"]) == (1, 204)
    assert state.keys().isdisjoint({"nextAttemptTime", "message", "failure"})
    (request,) = receiver.requests(uid)
    message = verified(request)
    assert request["headers"]["webhook-id"] == f"{uid}-completed"
    assert request["headers"]["content-type"] == "application/json"
    assert (message["type"], message["data"]["name"], message["data"]["phase"]) == (
        "job.completed",
        "plain",
        "Succeeded",
    )
    assert message["timestamp"] == jobs.stage.job("plain")["status"]["completionTime"]
    assert message["data"]["images"][0]["path"] == "/v1/jobs/plain/images/0"


def test_a_message_that_was_changed_on_its_way_is_not_taken(jobs: Jobs, receiver: Receiver) -> None:
    uid = jobs.ended("changed", receiver.url("200"))
    jobs.wait_delivered("changed")
    (request,) = receiver.requests(uid)
    for other in (request | {"body": request["body"].replace("Succeeded", "Failed")}, request):
        wrong = other is request
        with pytest.raises(Exception, match="No matching signature"):
            verified(other, "whsec_" + base64.b64encode(b"x" * 32).decode() if wrong else KEY)


def test_start_and_end_are_told_one_after_the_other(jobs: Jobs, receiver: Receiver) -> None:
    uid = jobs.create("both", receiver.url("200"), events=["started", "completed"])
    jobs.stage.bind("both")
    assert not receiver.requests(uid)
    jobs.stage.run("both")
    jobs.wait_delivered("both", "started")
    jobs.stage.succeed("both")
    jobs.wait_delivered("both", "started", "completed")
    types = [(verified(request)["type"], verified(request)["data"]["phase"]) for request in receiver.requests(uid)]
    assert types == [("job.started", "Running"), ("job.completed", "Succeeded")]


@pytest.mark.parametrize("phase", ["Failed", "Cancelled"])
def test_every_end_is_told(jobs: Jobs, receiver: Receiver, phase: str) -> None:
    name = phase.lower()
    uid = jobs.create(name, receiver.url("200"))
    jobs.stage.bind(name)
    if phase == "Failed":
        jobs.stage.fail(name, "InternalError", "it broke")
    else:
        jobs.stage.cancelled(name)
    jobs.wait_delivered(name)
    (request,) = receiver.requests(uid)
    assert verified(request)["data"]["phase"] == phase


def test_what_is_not_asked_for_is_not_told(jobs: Jobs, receiver: Receiver) -> None:
    """An end that only its start was asked of, and a job without a webhook: nothing is written of them."""
    uid = jobs.create("start-alone", receiver.url("200"), events=["started"])
    jobs.stage.complete("start-alone")
    jobs.stage.create("silent", {"prompt": "a fox"})
    jobs.stage.complete("silent")
    jobs.ended("after", receiver.url("200"))
    jobs.wait_delivered("after")
    assert "webhook" not in jobs.stage.job("silent")["status"]
    assert {verified(request)["type"] for request in receiver.requests(uid)} <= {"job.started"}


def test_a_failed_attempt_is_made_again_with_the_same_id_and_a_new_signature(jobs: Jobs, receiver: Receiver) -> None:
    uid = jobs.ended("again", receiver.url("500,200"))
    failed = jobs.wait_told("again", lambda state: state.get("responseStatus") == 500)
    assert failed["message"] == "the receiver answered 500"
    assert failed["nextAttemptTime"] > failed["lastAttemptTime"]
    state = jobs.wait_delivered("again")
    assert (state["attempts"], state["responseStatus"], state["firstAttemptTime"]) == (
        2,
        200,
        failed["firstAttemptTime"],
    )
    first, second = receiver.requests(uid)
    assert first["headers"]["webhook-id"] == second["headers"]["webhook-id"]
    assert verified(first) == verified(second)
    assert int(second["headers"]["webhook-timestamp"]) >= int(first["headers"]["webhook-timestamp"])


@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_that_asks_for_time_gets_it(jobs: Jobs, receiver: Receiver, status: int) -> None:
    uid = jobs.ended(f"patient-{status}", receiver.url(f"{status},200"))
    jobs.wait_delivered(f"patient-{status}")
    first, second = receiver.requests(uid)
    assert second["time"] - first["time"] >= 1


def test_a_receiver_that_wants_no_more_gets_no_more(jobs: Jobs, receiver: Receiver) -> None:
    uid = jobs.create("gone", receiver.url("410"), events=["started", "completed"])
    jobs.stage.bind("gone")
    jobs.stage.run("gone")
    state = jobs.wait_told("gone", lambda state: "failure" in state)
    assert state["failure"]["code"] == "Gone"
    jobs.stage.succeed("gone")
    jobs.ended("after-gone", receiver.url("200"))
    jobs.wait_delivered("after-gone")
    assert len(receiver.requests(uid)) == 1


def test_the_body_of_an_answer_is_not_read(jobs: Jobs, receiver: Receiver) -> None:
    jobs.ended("endless", receiver.url("endless"))
    jobs.wait_delivered("endless")


def test_a_receiver_that_says_nothing_delays_no_other(jobs: Jobs, receiver: Receiver, shared: Namespace) -> None:
    silent = [jobs.ended(f"silent-{number}", f"http://127.0.0.1:{receiver.port}/silent") for number in range(6)]
    wait_for("the silent ones to be asked", lambda: any(receiver.requests(uid) for uid in silent))
    jobs.ended("beside-silent", receiver.url("200"))
    state = jobs.wait_delivered("beside-silent")
    assert state["attempts"] == 1
    said = jobs.wait_told("silent-0", lambda state: "message" in state)
    assert said["message"] == "no answer within 3 seconds"
    assert "responseStatus" not in said


def test_each_key_of_the_secret_signs(jobs: Jobs, receiver: Receiver, shared: Namespace) -> None:
    """While a key is changed both the old one and the new one verify."""
    new = "whsec_" + base64.b64encode(b"another key of a test, 32 bytes.").decode()
    shared.apply(secret(key=KEY, next=new))
    try:
        uid = jobs.ended("two-keys", receiver.url("200"))
        jobs.wait_delivered("two-keys")
    finally:
        shared.kubectl("delete", "secret", "kubediffusion-webhooks")
        shared.apply(secret())
    (request,) = receiver.requests(uid)
    assert verified(request, KEY) == verified(request, new)


def test_without_a_secret_nothing_is_sent_until_it_is_there(jobs: Jobs, receiver: Receiver, shared: Namespace) -> None:
    shared.kubectl("delete", "secret", "kubediffusion-webhooks")
    try:
        uid = jobs.ended("unsigned", receiver.url("200"))
        state = jobs.wait_told("unsigned", lambda state: "message" in state)
        assert "Secret kubediffusion-webhooks does not exist in namespace webhooks; create it" in state["message"]
        assert not receiver.requests(uid)
    finally:
        shared.apply(secret())
    jobs.wait_delivered("unsigned")
    (request,) = receiver.requests(uid)
    verified(request)


def test_a_secret_that_the_installation_does_not_name_is_not_read(jobs: Jobs, receiver: Receiver) -> None:
    uid = jobs.ended("foreign-secret", receiver.url("200"), secretName="kubediffusion-s3")
    state = jobs.wait_told("foreign-secret", lambda state: "message" in state)
    assert "is none of those to sign with" in state["message"]
    assert not receiver.requests(uid)


def test_the_state_of_a_webhook_is_small_beside_its_job(jobs: Jobs, receiver: Receiver) -> None:
    jobs.ended("small", receiver.url("200"))
    assert len(json.dumps(jobs.wait_delivered("small"))) < 400
