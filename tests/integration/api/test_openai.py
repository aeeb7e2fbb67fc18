"""OpenAI's own client, and the calls of programs that speak its images API, against the local control plane."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from integration.api.api_kit import MODEL, Api, Site, Stage, listed, png
from integration.api.calls import begun, newest, spec
from kubediffusion.local import installation
from kubediffusion.local.testing import wait_for
from kubediffusion.resources.image_keys import image_key


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", timeout=60) as made:
        yield made


def test_a_prompt_alone_is_enough(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    call, name = begun(lambda: client.images.generate(prompt="an owl"), api, "an owl")
    assert spec(stage, name) == {"prompt": "an owl", "activeDeadlineSeconds": 600}
    stage.complete(name, png())
    answer = call.result(30)
    (image,) = answer.data
    assert base64.b64decode(image.b64_json) == png()
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")
    assert image.url is None


def test_every_field_reaches_the_job(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    def ask() -> Any:
        return client.images.with_raw_response.generate(
            prompt="two owls", model=MODEL, n=2, size="64x128", quality="high", style="vivid", moderation="low",
            user="somebody", background="auto", response_format="b64_json",
            extra_body={"num_inference_steps": 9, "guidance_scale": 3, "seed": 5, "negative_prompt": "cats",
                        "scheduler": "DDIMScheduler", "priority": 2, "active_deadline_seconds": 60, "svg": {}},
        )  # fmt: skip

    call, name = begun(ask, api, "two owls")
    assert spec(stage, name) == {
        "prompt": "two owls", "model": MODEL, "numImages": 2, "width": 64, "height": 128, "numInferenceSteps": 9,
        "guidanceScale": 3, "seed": 5, "negativePrompt": "cats", "scheduler": "DDIMScheduler", "priority": 2,
        "activeDeadlineSeconds": 60,
    }  # fmt: skip
    stage.complete(name, png(), png("blue"), warnings=("the prompt was cut",))
    answer = call.result(30)
    assert [base64.b64decode(image.b64_json) for image in answer.parse().data] == [png(), png("blue")]
    assert answer.headers["X-KubeDiffusion-Job"] == name
    assert answer.headers["X-KubeDiffusion-Warning"] == "the prompt was cut"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("compression", [None, 60])
def test_images_come_in_other_formats(
    client: openai.OpenAI, api: Api, stage: Stage, kind: Any, compression: int | None
) -> None:
    prompt = f"an owl in {kind} {compression}"
    options: Any = {} if compression is None else {"output_compression": compression}
    call, name = begun(lambda: client.images.generate(prompt=prompt, output_format=kind, **options), api, prompt)
    stage.complete(name, png("navy", 64), png("green", 64))
    answer = call.result(30)
    assert answer.output_format == kind
    colors = []
    for image in answer.data:
        with Image.open(io.BytesIO(base64.b64decode(image.b64_json))) as opened:
            assert (opened.format, opened.size) == (kind.upper(), (64, 64))
            colors.append(np.asarray(opened.convert("RGB"), int)[9, 9])
    np.testing.assert_allclose(colors, [(0, 0, 128), (0, 128, 0)], atol=3)


def test_an_address_instead_of_bytes(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    call, name = begun(
        lambda: client.images.generate(prompt="an owl by address", response_format="url"), api, "an owl by address"
    )
    stage.complete(name, png("green"))
    (image,) = call.result(30).data
    assert image.b64_json is None
    assert httpx.get(image.url, trust_env=False).content == png("green")


def test_a_stream(client: openai.OpenAI, api: Api, stage: Stage) -> None:
    def ask() -> list[Any]:
        return list(client.images.generate(prompt="owls in a stream", n=2, stream=True, partial_images=2))

    call, name = begun(ask, api, "owls in a stream")
    stage.complete(name, png(), png("blue"))
    events = call.result(30)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [base64.b64decode(event.b64_json) for event in events] == [png(), png("blue")]
    assert {(event.size, event.output_format) for event in events} == {("16x16", "png")}


async def test_the_asynchronous_client(api: Api, stage: Stage) -> None:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", timeout=60) as client:
        task = asyncio.create_task(client.images.generate(prompt="an owl meanwhile"))
        name = await asyncio.to_thread(wait_for, "the job", lambda: newest(api, "an owl meanwhile"), 30)
        await asyncio.to_thread(stage.complete, name, png())
        answer: Any = await task
    assert base64.b64decode(answer.data[0].b64_json) == png()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"size": "big"}, "size", "It must be WIDTHxHEIGHT in pixels, such as 512x512, or auto"),
    ({"size": "65x64"}, "size", "multiple of 8"),
    ({"size": "4096x4096"}, "size", "exceeds"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 100}, "n", "less than or equal to 16"),
    ({"background": "transparent"}, "background", "opaque"),
    ({"response_format": "path"}, "response_format", "'b64_json' or 'url'"),
    ({"output_format": "svg"}, "output_format", "'png', 'jpeg' or 'webp'"),
    ({"output_format": "jpeg", "response_format": "url"}, "output_format", "Storage holds PNG files"),
    ({"stream": True, "response_format": "url"}, "response_format", "do not stream"),
    ({"output_compression": 101}, "output_compression", "less than or equal to 100"),
    ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
    ({"guidance_scale": "much"}, "guidance_scale", "number"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
]


@pytest.mark.parametrize(("fields", "field", "words"), REFUSED)
def test_what_cannot_be_had_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="never drawn", extra_body=fields)
    body: Any = refused.value.body
    assert (body["type"], body["param"], body["code"]) == ("invalid_request_error", field, "invalid_value")
    assert words in body["message"]


def test_a_model_that_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt="never drawn", model="dall-e-9")
    body: Any = refused.value.body
    assert body["code"] == "model_not_found"
    assert body["message"] == f"model: There is no model 'dall-e-9'; known models: {MODEL}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_fails_is_tried_once(client: openai.OpenAI, api: Api, stage: Stage, stream: bool) -> None:
    prompt = f"an impossible owl {stream}"
    call, name = begun(lambda: list(client.images.generate(prompt=prompt, stream=stream)), api, prompt)
    stage.bind(name)
    stage.run(name)
    stage.fail(name, "OutOfMemory", "it takes 90 GB")
    with pytest.raises(openai.APIError) as failed:
        call.result(30)
    assert failed.value.body == {
        "message": "it takes 90 GB", "type": "server_error", "param": None, "code": "OutOfMemory"
    }  # fmt: skip
    jobs = api.http.get("/v1/jobs", params={"limit": 500}).json()["jobs"]
    assert [job["prompt"] for job in jobs].count(prompt) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_job(api: Api, stage: Stage, stream: bool) -> None:
    prompt = f"an owl that nobody waits for {stream}"
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", timeout=4, max_retries=0) as impatient:

        def ask() -> None:
            answer = impatient.images.generate(prompt=prompt, stream=stream)
            if isinstance(answer, openai.Stream):
                answer.close()

        call, name = begun(ask, api, prompt)
        assert isinstance(call.exception(30), type(None) if stream else openai.APITimeoutError)
        wait_for("the cancellation", lambda: spec(stage, name).get("cancel"))


def test_a_repeatable_request_survives_its_connection(api: Api, stage: Stage) -> None:
    prompt = "an owl asked for twice"
    key = {"Idempotency-Key": "owl-1"}
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", timeout=4, max_retries=0) as impatient:
        call, name = begun(lambda: impatient.images.generate(prompt=prompt, extra_headers=key), api, prompt)
        assert isinstance(call.exception(30), openai.APITimeoutError)
        stage.complete(name, png())
        again = impatient.images.generate(prompt=prompt, extra_headers=key, timeout=30)
    assert base64.b64decode((again.data or [])[0].b64_json or "") == png()
    assert "cancel" not in spec(stage, name)


def test_keys_and_rates_in_the_form_of_openai(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "alice").write_text("s3cret")
    api = site.start(API_KEYS_FILE=str(folder), RATE_LIMIT="1/hour")
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.images.generate(prompt="an owl")
        body: Any = refused.value.body
        assert (body["code"], body["message"]) == ("invalid_api_key", "This API key is not valid.")
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="s3cret", max_retries=0) as alice:
        # A model that is not there counts as a creation, too.
        with pytest.raises(openai.NotFoundError):
            alice.images.generate(prompt="an owl", model="none")
        with pytest.raises(openai.RateLimitError) as slowed:
            alice.images.generate(prompt="an owl")
        # An hour after the creation that counted, but for the seconds since.
        assert 3500 < int(slowed.value.response.headers["Retry-After"]) <= 3600
        assert [model.id for model in alice.models.list()] == [MODEL]


def test_models(client: openai.OpenAI, api: Api) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "shared-api")
    assert model.created > 1_500_000_000
    shown = client.models.retrieve(MODEL)
    assert (shown.id, shown.created, shown.object) == (MODEL, model.created, "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")
    # What was there before is still there.
    assert api.http.get("/v1/models").json()["models"][0]["name"] == MODEL
    assert api.http.get(f"/v1/models/{MODEL}").json()["defaults"]["num_inference_steps"] == 50


OPEN_WEBUI = {"model": MODEL, "prompt": "an owl for Open WebUI", "n": 1, "size": "64x64", "response_format": "b64_json"}
"""``image_generations`` of its backend, engine openai: ``routers/images.py``."""

LITELLM = {"model": MODEL, "prompt": "an owl for LiteLLM", "n": 1, "size": "64x64", "quality": "standard", "user": "u"}
"""``OpenAIChatCompletion.image_generation`` hands these to OpenAI's client: ``llms/openai/openai.py``."""


@pytest.mark.parametrize("body", [OPEN_WEBUI, LITELLM], ids=["Open WebUI", "LiteLLM"])
def test_what_other_programs_send(api: Api, stage: Stage, body: dict[str, Any]) -> None:
    def ask() -> httpx.Response:
        return httpx.post(
            f"{api.url}/v1/images/generations",
            json=body,
            headers={"Authorization": "Bearer none", "Content-Type": "application/json"},
            timeout=30,
            trust_env=False,
        )

    call, name = begun(ask, api, body["prompt"])
    stage.complete(name, png())
    answer = call.result(30)
    assert answer.status_code == 200
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == png()


def test_a_broken_body_has_an_error_in_the_same_form(api: Api) -> None:
    answer = api.http.post("/v1/images/generations", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert json.loads(answer.content)["error"]["type"] == "invalid_request_error"
    assert api.http.get("/v1/images/generations").status_code == 405
    assert api.http.get("/v1/images/generations").json()["error"]["message"] == "Method Not Allowed"
    assert api.http.post("/v1/images/nothing", json={}).status_code == 404


def test_an_image_that_is_gone_is_an_error_and_no_half_answer(api: Api, client: openai.OpenAI, stage: Stage) -> None:
    quick = client.with_options(max_retries=0)
    call, name = begun(lambda: quick.images.generate(prompt="a stolen owl"), api, "a stolen owl")
    uid = stage.job(name)["metadata"]["uid"]
    stage.bind(name)
    stage.run(name)
    key = image_key(installation.PREFIX, stage.namespace.name, uid, 0)
    stage.claim(name, listed(0, f"s3://{installation.BUCKET}/{key}", png()))
    with pytest.raises(openai.APIStatusError) as gone:
        call.result(30)
    assert gone.value.status_code == 410
