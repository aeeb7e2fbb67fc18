"""Edits over OpenAI's images API, by its own client, against the local control plane."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from integration.api.api_kit import Api, Stage, png
from integration.api.calls import begun, spec


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", timeout=60) as made:
        yield made


def rgba(side: int = 16) -> bytes:
    """A mask as OpenAI has it: its left half is fully transparent."""
    mask = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, side // 2, side))
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def test_an_image_is_edited(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    def ask() -> Any:
        return client.images.edit(
            image=png("navy"), prompt="an owl over it", n=2, size="64x128", quality="high", user="u",
            extra_body={
                "seed": 5, "strength": 0.4, "guidance_scale": 2.5, "deterministic": True,
                "acceleration": {"guidance_interval": {"start": 0, "stop": 0.5}},
            },
        )  # fmt: skip

    call, name = begun(ask, api, "an owl over it")
    asked = spec(stage, name)
    (given,) = asked.pop("inputs")
    assert given["role"] == "image"
    assert asked == {
        "prompt": "an owl over it", "numImages": 2, "width": 64, "height": 128, "seed": 5, "strength": 0.4,
        "guidanceScale": 2.5, "deterministic": True, "activeDeadlineSeconds": 600,
        "acceleration": {"guidanceInterval": {"start": 0, "stop": 0.5}},
    }  # fmt: skip
    assert Image.open(io.BytesIO(stage.input(name, "image"))).getpixel((0, 0)) == (0, 0, 128)
    stage.complete(name, png(), png("blue"))
    assert [base64.b64decode(image.b64_json) for image in call.result(30).data] == [png(), png("blue")]


def test_what_is_transparent_in_a_mask_is_edited(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    def ask() -> Any:
        # As clients of several images send one.
        images = [("owl.png", png(), "image/png")]
        return client.images.edit(image=images, mask=rgba(), prompt="half an owl", output_format="jpeg")

    call, name = begun(ask, api, "half an owl")
    mask = Image.open(io.BytesIO(stage.input(name, "mask")))
    assert (mask.mode, mask.getpixel((0, 0)), mask.getpixel((15, 0))) == ("L", 255, 0)
    assert {each["role"] for each in spec(stage, name)["inputs"]} == {"image", "mask"}
    stage.complete(name, png())
    answer = call.result(30)
    assert answer.output_format == "jpeg"
    with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))) as opened:
        assert opened.format == "JPEG"


def test_a_form_as_others_send_it(api: Api, stage: Stage) -> None:
    """Fields that were left empty, an object as JSON, more than one of a name, and a name that nobody knows."""
    fields = {
        "model": "",
        "size": "",
        "n": ["3", "1"],
        "acceleration": '{"feature_caching": {"interval": 2}}',
        "x[": "y",
    }
    call, name = begun(
        lambda: api.http.post(
            "/v1/images/edits", data={"prompt": "an owl by form", **fields}, files={"image[0]": ("a.png", png())}
        ),
        api, "an owl by form",
    )  # fmt: skip
    asked = spec(stage, name)
    asked.pop("inputs")
    assert asked == {
        "prompt": "an owl by form", "numImages": 1, "acceleration": {"featureCaching": {"interval": 2}},
        "activeDeadlineSeconds": 600,
    }  # fmt: skip
    stage.complete(name, png())
    assert call.result(30).status_code == 200


def test_an_edit_in_a_stream_and_by_address(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    def ask() -> list[Any]:
        return list(client.images.edit(image=png(), prompt="an owl in an edited stream", stream=True))

    call, name = begun(ask, api, "an owl in an edited stream")
    stage.complete(name, png("blue"))
    (event,) = call.result(30)
    assert (event.type, base64.b64decode(event.b64_json)) == ("image_edit.completed", png("blue"))
    call, name = begun(
        lambda: client.images.edit(image=png(), prompt="an edited owl's address", response_format="url"),
        api, "an edited owl's address",
    )  # fmt: skip
    stage.complete(name, png("green"))
    assert httpx.get(call.result(30).data[0].url, trust_env=False).content == png("green")


REFUSED_EDITS: list[tuple[dict[str, Any], str, str]] = [
    ({"image": b"GIF89a"}, "image", "none of PNG, JPEG, WEBP"),
    ({"image": [png(), png("blue")]}, "image", "One image is taken, and here are 2"),
    ({"mask": png()}, "mask", "no fully transparent pixels"),
    ({"mask": b"GIF89a"}, "mask", "none of PNG, JPEG, WEBP"),
    ({"mask": rgba(32)}, "mask", "the size of the image, 16x16, and it is 32x32"),
    ({"markup": rgba()}, "markup", "leave it out"),
    ({"size": "65x64"}, "size", "multiple of 8"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"background": "transparent"}, "background", "opaque"),
    ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
    ({"extra_body": {"strength": 1.5}}, "strength", "less than or equal to 1"),
    ({"extra_body": {"acceleration": {"none": 1}}}, "none", "Unknown field"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
]


@pytest.mark.parametrize(("fields", "field", "words"), REFUSED_EDITS)
def test_edits_that_cannot_be_had_are_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(**{"image": png(), "prompt": "never drawn", **fields})
    body: Any = refused.value.body
    assert (body["type"], body["param"]) == ("invalid_request_error", field)
    assert words in body["message"]


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("application/json", b'{"prompt": "an owl"}', "multipart/form-data"),
        ("multipart/form-data", b"", "boundary"),
        ("multipart/form-data; boundary=x", b"", "Field required"),
        ("multipart/form-data; boundary=x", b"--x\r\n", "Field required"),
        ("multipart/form-data; boundary=x", b"nothing of the kind", "cannot be read"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--', '"name"'),
        ("multipart/form-data; boundary=x; charset=none",
         b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nowl\r\n--x--\r\n', "It is missing"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(api: Api, kind: str, body: bytes, words: str) -> None:
    answer = api.http.post("/v1/images/edits", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer.json()["error"]["message"]


def test_forms_have_bounds(api: Api) -> None:
    large = api.http.post("/v1/images/edits", data={"prompt": "an owl"}, files={"image": bytes(29 * 2**20)})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
    image = api.http.post("/v1/images/edits", data={"prompt": "an owl"}, files={"image": bytes(20 * 2**20 + 1)})
    assert (image.status_code, "The image is too large" in image.json()["error"]["message"]) == (413, True)
    field = api.http.post("/v1/images/edits", data={"prompt": "x" * 70_000}, files={"image": png()})
    assert (field.status_code, "maximum size" in field.json()["error"]["message"]) == (400, True)
    files = [("image[]", png())] * 30
    many = api.http.post("/v1/images/edits", data={"prompt": "an owl"}, files=files)
    assert (many.status_code, "Too many files" in many.json()["error"]["message"]) == (400, True)


def test_variations_say_what_to_do_instead(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused, pytest.deprecated_call():
        client.images.create_variation(image=png())
    assert (refused.value.status_code, "POST /v1/images/edits" in refused.value.message) == (501, True)
