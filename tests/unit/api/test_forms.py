"""Forms with images in them: read into memory, bounded, and objects as OpenAI's client sends them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from typing import Any

import httpx
import pytest
from starlette.types import Message

from kubediffusion.api.app import create_app
from kubediffusion.api.dependencies import ImagesRequest
from kubediffusion.api.errors import ClientGoneError, InvalidRequestError
from kubediffusion.api.forms import MAX_FIELD_BYTES, MAX_FIELDS, Form, read_form
from kubediffusion.api.inputs import InputStore
from kubediffusion.api.settings import Settings
from unit.api.api_builders import caller


def received(*messages: Message, content_type: str) -> ImagesRequest:
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0) if left else {"type": "http.disconnect"}

    headers = [(b"content-type", content_type.encode())]
    scope = {"type": "http", "headers": headers, "app": create_app(Settings())}
    return ImagesRequest(scope, receive)


def read(*messages: Message, content_type: str) -> Form:
    async def run() -> Form:
        # No storage is asked while a form is read.
        with InputStore(object(), Settings()).place(caller("me")) as place:  # type: ignore[arg-type]
            return await read_form(received(*messages, content_type=content_type), place)

    return asyncio.run(run())


def form_of(**parts: Any) -> Form:
    asked = httpx.Request("POST", "http://a", **parts)
    body = asked.read()
    pieces = [body[at : at + 64 * 1024] for at in range(0, len(body), 64 * 1024)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    return read(*messages, {"type": "http.request", "body": b""}, content_type=asked.headers["content-type"])


def test_large_files_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def roll(_: object) -> None:
        raise AssertionError("a file was written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", roll)
    data = bytes(range(256)) * 4096 * 3
    form = form_of(data={"prompt": "ein Hase, 兎"}, files={"image": data})
    assert form.fields == {"prompt": "ein Hase, 兎"}
    assert [(file.field, file.data == data) for file in form.files] == [("image", True)]


def test_objects_are_written_with_brackets() -> None:
    fields = {"a": "1", "b[c]": "2", "b[d][e]": "3", "f": "4", "f[g]": "5", "h[]": "6", "[": "7", "i]": "8"}
    assert Form(fields, []).tree() == {
        "a": "1", "b": {"c": "2", "d": {"e": "3"}}, "f": {"g": "5"}, "h": {"": "6"}, "": {"": "7"}, "i": "8",
    }  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [
        {"data": {"prompt": "x" * (MAX_FIELD_BYTES + 1)}},
        {"data": {f"field {number}": "x" for number in range(MAX_FIELDS + 1)}},
        {"files": [("image", b"x")] * 21},
    ],
)
def test_what_is_not_bounded_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        form_of(**{"files": {"image": b"x"}, "data": {"a": "b"}, **parts})


def test_a_client_that_goes_in_the_midst_is_gone() -> None:
    begun = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc'
    message = {"type": "http.request", "body": begun, "more_body": True}
    with pytest.raises(ClientGoneError):
        read(message, content_type="multipart/form-data; boundary=x")


def test_without_a_boundary_nothing_is_found() -> None:
    for content_type in ("multipart/form-data; boundary=", "multipart/form-data; boundary=\xe9", "multipart/form-data"):
        message = {"type": "http.request", "body": b"--\r\n"}
        with contextlib.suppress(InvalidRequestError):
            assert read(message, content_type=content_type).files == []
