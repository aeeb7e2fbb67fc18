"""The task API's view of a job."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.api.job_cache.results import (
    MAX_WARNING_LENGTH,
    WARNING_HEADER,
    around_image,
    cached_result,
    result_body,
    result_body_with_url,
    warning_headers,
)
from kubediffusion.api.schemas import TaskResult, TaskResultWithUrl
from unit.api.api_builders import cached

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@pytest.mark.parametrize(
    ("phase", "status", "message"),
    [
        ("Pending", "pending", None),
        ("Scheduled", "pending", None),
        ("Running", "processing", None),
        ("Succeeded", "completed", None),
        ("Failed", "failed", "broken"),
        ("Cancelled", "failed", "Cancelled: broken"),
    ],
)
def test_status(phase: str, status: str, message: str | None) -> None:
    body = json.loads(result_body(cached(phase=phase, status={"error": {"code": "C", "message": "broken"}})))
    assert (body["status"], body["error_message"]) == (status, message)


def test_a_failure_without_words_is_still_said() -> None:
    assert json.loads(result_body(cached(phase="Cancelled")))["error_message"] == "Cancelled."
    assert json.loads(result_body(cached(phase="Failed")))["error_message"] == "Failed."


@given(prompt=text, image=st.none() | st.binary(max_size=50), url=st.none() | text)
def test_any_answer_is_json_of_its_schema(prompt: str, image: bytes | None, url: str | None) -> None:
    made = cached(phase="Succeeded", spec={"prompt": prompt or "x"})
    before, after = around_image(made)
    plain = json.loads(result_body(made) if image is None else before + base64.b64encode(image) + after)
    assert list(plain) == ["task_id", "status", "prompt", "image_base64", "error_message"]
    assert TaskResult.model_validate(plain).prompt == (prompt or "x")
    assert (None if image is None else base64.b64decode(plain["image_base64"])) == image
    with_url = json.loads(result_body_with_url(made, url))
    assert TaskResultWithUrl.model_validate(with_url).image_url == url
    assert list(with_url) == [*plain, "image_url"]


def test_only_what_has_no_image_is_kept() -> None:
    assert cached_result(cached(phase="Succeeded")) is None
    result = cached_result(cached(phase="Running"))
    assert result is not None
    headers, body = result
    assert dict(headers)[b"content-length"] == str(len(body)).encode()


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_a_warning_is_one_line_of_ascii(warnings: list[str]) -> None:
    header = warning_headers(cached(status={"warnings": warnings}))[WARNING_HEADER]
    assert header.isascii()
    assert len(header) <= MAX_WARNING_LENGTH
    assert not any(ord(character) < 32 for character in header)
    # What is of printable ASCII comes through as it was said, but for the number of its spaces.
    for warning in warnings:
        if warning.isascii() and warning.isprintable():
            assert " ".join(warning.split()) in header or len(header) == MAX_WARNING_LENGTH
