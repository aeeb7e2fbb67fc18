"""Where a page of a list ended, as clients hand it back."""

from __future__ import annotations

import base64

import pytest

from kubediffusion.api.errors import InvalidRequestError
from kubediffusion.api.job_cache.records import AgeKey
from kubediffusion.api.routes.cursors import decoded_cursor, encoded_cursor


def test_a_cursor_is_read_as_it_was_written() -> None:
    end = AgeKey(1_700_000_000.25, "a-job")
    assert decoded_cursor(encoded_cursor(end), "cursor") == end
    assert decoded_cursor(None, "cursor") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"{}", b"[]", b"[1]", b'[1,"a",2]', b'["x","a"]', b'[NaN,"a"]', b"\xff", b"[" * 40_000],
    ids=range(10),
)
def test_what_was_never_written_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decoded_cursor(base64.urlsafe_b64encode(content).decode(), "continue", "continue_token")
    assert refused.value.detail == [
        {"loc": ["query", "continue"], "msg": "This is no continue_token of a list", "type": "value_error"}
    ]


@pytest.mark.parametrize("text", ["nonsense", "!", "ä", "a"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        decoded_cursor(text, "cursor")
