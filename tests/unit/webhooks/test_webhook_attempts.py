"""When an event is sent again, when it is given up, and what a job's status says meanwhile."""

from __future__ import annotations

import datetime as dt
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.api.webhooks.attempts import FIRST_PAUSE, LONGEST_PAUSE, RETRY_SECONDS, due_time, status_after
from kubediffusion.api.webhooks.sender import Answer, retry_after_seconds
from kubediffusion.resources.generation_job import GenerationJobSpec, GenerationJobStatus, Phase
from kubediffusion.resources.owed_webhooks import held_until, owed_event
from kubediffusion.resources.webhook import Webhook, WebhookEvent, WebhookStatus

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(seconds=RETRY_SECONDS)
DONE, BROKEN = Answer(204, None), Answer(500, "the receiver answered 500")
STARTED, COMPLETED = WebhookEvent.STARTED, WebhookEvent.COMPLETED
BOTH = GenerationJobSpec(prompt="a fox", webhook=Webhook(url="https://a.example", events=(STARTED, COMPLETED)))


def test_success_leaves_nothing_to_do() -> None:
    told = status_after(None, COMPLETED, DONE, NOW)
    assert (told.delivered, told.attempts, told.response_status) == ((COMPLETED,), 1, 204)
    assert (told.next_attempt_time, told.message, told.failure) == (None, None, None)
    assert owed_event(BOTH, GenerationJobStatus(phase=Phase.SUCCEEDED, webhook=told)) is None


def test_pauses_double_and_are_shortened_by_a_half_at_most() -> None:
    told, now = None, NOW
    for attempt in range(12):
        told = status_after(told, COMPLETED, BROKEN, now)
        assert told.next_attempt_time is not None
        pause = (told.next_attempt_time - now).total_seconds()
        whole = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
        assert whole / 2 <= pause <= whole
        now = told.next_attempt_time


@given(answers=st.lists(st.sampled_from([BROKEN, Answer(None, "away"), Answer(429, "busy", 7200.0)]), min_size=60))
def test_an_event_is_sent_for_a_day_and_then_given_up_after_few_attempts(answers: list[Answer]) -> None:
    told, now = None, NOW
    for answer in answers:
        told = status_after(told, COMPLETED, answer, now)
        if told.failure is not None:
            break
        assert told.next_attempt_time is not None
        assert now < told.next_attempt_time <= NOW + DAY
        now = told.next_attempt_time
    assert told is not None
    assert told.failure is not None
    assert (told.failure.code, now, told.attempts <= 40) == ("Expired", NOW + DAY, True)


def test_a_receiver_s_wish_is_obeyed_within_the_day() -> None:
    for seconds, wanted in ((3600.0, 3600.0), (10 * RETRY_SECONDS, RETRY_SECONDS)):
        told = status_after(None, COMPLETED, Answer(503, "busy", seconds), NOW)
        assert told.next_attempt_time == NOW + dt.timedelta(seconds=wanted)


def test_one_that_wants_no_more_or_may_not_be_called_is_owed_nothing() -> None:
    for answer, code in ((Answer(410, "410"), "Gone"), (Answer(None, "private", refused=True), "Refused")):
        told = status_after(None, COMPLETED, answer, NOW)
        assert told.failure is not None
        assert (told.failure.code, told.next_attempt_time) == (code, None)
        assert owed_event(BOTH, GenerationJobStatus(phase=Phase.FAILED, webhook=told)) is None


def test_the_end_is_told_although_the_start_was_given_up_unless_the_receiver_is_gone() -> None:
    for answer, owed in ((Answer(None, "private", refused=True), COMPLETED), (Answer(410, "410"), None)):
        told = status_after(None, STARTED, answer, NOW)
        assert owed_event(BOTH, GenerationJobStatus(phase=Phase.RUNNING, webhook=told)) is None
        assert owed_event(BOTH, GenerationJobStatus(phase=Phase.SUCCEEDED, webhook=told)) is owed


def test_the_end_is_told_at_once_although_the_start_waits() -> None:
    told = status_after(None, STARTED, BROKEN, NOW)
    assert due_time(told, STARTED) == told.next_attempt_time
    assert due_time(told, COMPLETED) is None
    then = status_after(told, COMPLETED, DONE, NOW)
    assert (then.delivered, then.attempts) == ((COMPLETED,), 1)


def test_a_job_owes_what_has_happened_and_was_asked_for() -> None:
    default = GenerationJobSpec(prompt="a fox", webhook=Webhook(url="https://a.example"))
    none = GenerationJobSpec(prompt="a fox")
    for phase in Phase:
        status = GenerationJobStatus(phase=phase)
        ended = phase in {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}
        assert owed_event(none, status) is None
        assert owed_event(default, status) is (COMPLETED if ended else None)
        assert owed_event(BOTH, status) is (COMPLETED if ended else STARTED if phase is Phase.RUNNING else None)


def test_a_job_is_held_until_its_end_is_told_and_no_longer_than_the_bound() -> None:
    ended = GenerationJobStatus(phase=Phase.SUCCEEDED, completion_time=NOW)
    assert held_until(BOTH, ended, 3600) == NOW + dt.timedelta(hours=1)
    assert held_until(BOTH, ended, 0) is None
    assert held_until(GenerationJobSpec(prompt="a fox"), ended, 3600) is None
    told = ended.model_copy(update={"webhook": WebhookStatus(delivered=(COMPLETED,))})
    assert held_until(BOTH, told, 3600) is None
    late = dt.datetime(9999, 12, 31, 23, tzinfo=dt.UTC)
    assert held_until(BOTH, ended.model_copy(update={"completion_time": late}), 86_400) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "-1", "nan", "inf", "1e999", "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2300"),
        *("Fri, 31 Dec 9999 23:59:59 -2300", "Mon, 01 Jan 2024 00:00:00 +9999999999999999"),
        "Mon, 99999999999999999999 Jan 2024 00:00:00 GMT",
    ],
)
def test_a_receiver_s_wish_that_is_none_is_passed_over(text: str) -> None:
    assert retry_after_seconds(text) is None


@given(text=st.text(max_size=60))
def test_a_receiver_may_wish_for_anything(text: str) -> None:
    seconds = retry_after_seconds(text)
    assert seconds is None or 0 < seconds < float("inf")


def test_a_receiver_may_wish_for_a_time() -> None:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    seconds = retry_after_seconds(format_datetime(moment, usegmt=True))
    assert seconds is not None
    assert 0 < seconds <= 3600
