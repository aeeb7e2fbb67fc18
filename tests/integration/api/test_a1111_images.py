"""Images of images over AUTOMATIC1111's ``img2img``, by its client webuiapi, against the local control plane."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from webuiapi import WebUIApi

from integration.api.api_kit import Api, Stage, png
from integration.api.calls import begun, newest, spec, webui_client
from kubediffusion.api import inputs

PATH = "/sdapi/v1/txt2img"
IMG2IMG = "/sdapi/v1/img2img"


@pytest.fixture
def client(api: Api) -> WebUIApi:
    return webui_client(api)


def test_its_client_draws_over_an_image(client: WebUIApi, api: Api, stage: Stage) -> None:
    photo = Image.new("RGB", (24, 16), "navy")
    call, name = begun(
        lambda: client.img2img([photo], prompt="a hare over it", width=64, height=64, denoising_strength=0.4, seed=5),
        api, "a hare over it",
    )  # fmt: skip
    (given,) = spec(stage, name).pop("inputs")
    assert {**spec(stage, name), "inputs": None} == {
        "prompt": "a hare over it", "numInferenceSteps": 20, "guidanceScale": 7, "width": 64, "height": 64, "seed": 5,
        "numImages": 1, "scheduler": "EulerAncestralDiscreteScheduler", "strength": 0.4, "inputs": None,
        "activeDeadlineSeconds": 600,
    }  # fmt: skip
    assert given["role"] == "image"
    begins = Image.open(io.BytesIO(stage.input(name, "image")))
    assert (begins.size, begins.getpixel((0, 0))) == ((24, 16), (0, 0, 128))
    stage.complete(name, png("green"))
    drawn = call.result(30)
    assert drawn.image.convert("RGB").tobytes() == Image.open(io.BytesIO(png("green"))).tobytes()
    # Images are not sent back.
    assert (drawn.parameters["init_images"], drawn.parameters["denoising_strength"]) == (None, 0.4)


@pytest.mark.parametrize("inverted", [0, 1])
def test_its_client_paints_a_part_anew(client: WebUIApi, api: Api, stage: Stage, inverted: int) -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    prompt = f"half a hare {inverted}"
    call, name = begun(
        lambda: client.img2img([Image.new("RGB", (16, 16))], mask_image=mask, prompt=prompt,
                               inpainting_mask_invert=inverted),
        api, prompt,
    )  # fmt: skip
    painted = Image.open(io.BytesIO(stage.input(name, "mask")))
    assert (painted.getpixel((0, 0)), painted.getpixel((15, 0))) == ((0, 255) if inverted else (255, 0))
    assert spec(stage, name)["strength"] == 0.75
    stage.complete(name, png())
    assert len(call.result(30).images) == 1


def test_what_has_no_effect_on_a_mask_is_said(api: Api, stage: Stage) -> None:
    mask = Image.new("RGBA", (16, 16))
    mask.paste((0, 0, 0, 255), (0, 0, 8, 16))
    file = io.BytesIO()
    mask.save(file, "PNG")
    image = base64.encodebytes(png()).decode()
    body = {
        "prompt": "a hare in a corner", "init_images": [f"data:image/png;base64,{image}", image],
        "mask": base64.b64encode(file.getvalue()).decode(), "mask_blur": 4, "inpainting_fill": 0,
        "inpaint_full_res": True,
    }  # fmt: skip
    call, name = begun(lambda: api.http.post(IMG2IMG, json=body), api, "a hare in a corner")
    # Of a mask with transparency the opaque part is painted, whatever its colour.
    painted = Image.open(io.BytesIO(stage.input(name, "mask")))
    assert (painted.getpixel((0, 0)), painted.getpixel((15, 0))) == (255, 0)
    stage.complete(name, png())
    answer = call.result(30)
    assert answer.status_code == 200
    for word in ("first alone", "mask_blur", "inpainting_fill", "inpaint_full_res"):
        assert word in answer.headers["X-KubeDiffusion-Warning"]


WRONG_IMAGES: list[tuple[dict[str, Any], str, str]] = [
    ({"init_images": []}, "init_images", "at least 1 item"),
    ({"init_images": ["http://127.0.0.1/hare.png"]}, "init_images", "No address is taken"),
    ({"init_images": ["§§§"]}, "init_images", "no base64"),
    ({"init_images": [base64.b64encode(b"GIF89a").decode()]}, "init_images", "none of PNG, JPEG, WEBP"),
    ({"mask": base64.b64encode(png()[:-40]).decode()}, "mask", "none of PNG, JPEG, WEBP"),
    ({"denoising_strength": 1.5}, "denoising_strength", "less than or equal to 1"),
    ({"resize_mode": 1}, "resize_mode", "crop or fill"),
    ({"initial_noise_multiplier": 1.2}, "initial_noise_multiplier", "must be 1"),
    ({"width": 65}, "width", "multiple of 8"),
    ({"sampler_name": "Nonsense"}, "sampler_name", "There is no sampler"),
]


@pytest.mark.parametrize(("fields", "field", "words"), WRONG_IMAGES)
def test_images_that_cannot_be_had_are_refused_by_name(
    api: Api, fields: dict[str, Any], field: str, words: str
) -> None:
    image = base64.b64encode(png()).decode()
    answer = api.http.post(IMG2IMG, json={"prompt": "never drawn over", "init_images": [image], **fields})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", field]
    assert words in answer.json()["errors"]
    assert newest(api, "never drawn over") is None


def test_no_request_holds_a_place_while_its_job_runs(api: Api, stage: Stage) -> None:
    image = base64.b64encode(png()).decode()
    calls = []
    for number in range(inputs.AT_ONCE + 1):
        prompt = f"a hare among {number} others"
        body = {"prompt": prompt, "init_images": [image]}
        calls.append(begun(lambda body=body: api.http.post(IMG2IMG, json=body), api, prompt))  # type: ignore[misc]
    for call, name in calls:
        stage.complete(name, png())
        assert call.result(30).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"prompt": "\\ud800"}', b"[" * 5000])
def test_what_is_no_request_for_an_image_of_an_image_is_refused(api: Api, body: bytes) -> None:
    answer = api.http.post(IMG2IMG, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (422, "Unprocessable Entity")


def test_a_body_of_images_has_a_bound_of_its_own(api: Api) -> None:
    noise = io.BytesIO()
    Image.effect_noise((512, 512), 100).save(noise, "PNG")
    image = base64.b64encode(noise.getvalue()).decode()
    assert len(image) > 128 * 1024
    # More than a body without images may have: what is wrong is the sampler.
    asked = {"prompt": "never drawn over", "init_images": [image], "sampler_name": "none"}
    assert api.http.post(IMG2IMG, json=asked).json()["errors"].startswith("sampler_name")
    assert api.http.post(PATH, json={**asked, "init_images": [image]}).status_code == 413
    large = api.http.post(IMG2IMG, content=bytes(29 * 2**20))
    assert (large.status_code, large.json()["error"]) == (413, "Request Entity Too Large")
    over = {"prompt": "never drawn over", "init_images": [base64.b64encode(bytes(20 * 2**20 + 1)).decode()]}
    assert "The image is too large" in api.http.post(IMG2IMG, json=over).json()["errors"]
