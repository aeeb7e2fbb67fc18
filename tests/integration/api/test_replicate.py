"""Replicate's own client against the local control plane."""

from __future__ import annotations

import asyncio
import io
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.pagination import paginate

from integration.api.api_kit import MODEL, Api, Site, Stage, png
from integration.api.calls import CALLS, begun, newest, spec
from kubediffusion.local.testing import wait_for
from kubediffusion.resources import meta
from kubediffusion.resources.testing import present

OWNER = "shared-api"
REFERENCE = f"{OWNER}/{MODEL}"


@pytest.fixture
def client(api: Api) -> Client:
    return client_of(api)


def client_of(api: Api, key: str = "none", **options: Any) -> Client:
    made = Client(key, base_url=f"{api.url}/replicate", **options)
    made.poll_interval = 0.05
    return made


def colors(files: list[FileOutput], kind: str) -> list[Any]:
    """Return a pixel of each image, which is of this kind."""
    found = []
    for file in files:
        with Image.open(io.BytesIO(file.read())) as opened:
            assert opened.format == kind
            found.append(np.asarray(opened.convert("RGB"), int)[9, 9])
    return found


def test_run_returns_files(client: Client, api: Api, stage: Stage) -> None:
    call, name = begun(lambda: client.run(REFERENCE, input={"prompt": "a fox"}), api, "a fox")
    assert spec(stage, name) == {"prompt": "a fox", "model": MODEL}
    stage.complete(name, png(), png("blue"))
    files = call.result(30)
    assert [type(file) for file in files] == [FileOutput] * 2
    assert [file.read() for file in files] == [png(), png("blue")]
    assert files[0].url.startswith("data:image/png;base64,")


def test_every_field_reaches_the_job(client: Client, api: Api, stage: Stage) -> None:
    asked = {
        "prompt": "two foxes", "negative_prompt": "cats", "width": 64, "height": 128, "num_outputs": 2,
        "num_inference_steps": 9, "guidance_scale": 3, "seed": 5, "scheduler": "K_EULER_ANCESTRAL", "priority": 2,
        "output_format": "webp", "output_quality": 90,
    }  # fmt: skip
    ignored = {"refine": "no_refiner", "apply_watermark": False, "lora_scale": 0.6, "go_fast": True}
    prediction = client.models.predictions.create(REFERENCE, {**asked, **ignored})
    assert spec(stage, prediction.id) == {
        "prompt": "two foxes", "model": MODEL, "negativePrompt": "cats", "width": 64, "height": 128, "numImages": 2,
        "numInferenceSteps": 9, "guidanceScale": 3, "seed": 5, "scheduler": "EulerAncestralDiscreteScheduler",
        "priority": 2,
    }  # fmt: skip
    assert prediction.input == {**asked, "scheduler": "EulerAncestralDiscreteScheduler"}
    assert stage.job(prediction.id)["metadata"]["annotations"] == {
        meta.OUTPUT_ENCODING_ANNOTATION: "webp;quality=90"
    }  # fmt: skip


def test_the_life_of_a_prediction(client: Client, api: Api, stage: Stage) -> None:
    version = present(client.models.get(REFERENCE).latest_version)
    prediction = client.predictions.create(version, {"prompt": "a fox that is watched"})
    assert (prediction.status, prediction.model, prediction.version) == ("starting", REFERENCE, version.id)
    assert (prediction.logs, prediction.error, prediction.output, prediction.metrics) == ("", None, None, {})
    base = f"{api.url}/replicate/v1/predictions/{prediction.id}"
    assert prediction.urls == {"get": base, "cancel": f"{base}/cancel"}
    stage.bind(prediction.id)
    stage.run(prediction.id)
    wait_for("processing", lambda: client.predictions.get(prediction.id).status == "processing")
    stage.succeed(prediction.id, png(), warnings=("the prompt was cut",))
    prediction.wait()
    assert prediction.status == "succeeded"
    created, completed = (
        datetime.fromisoformat(present(at)) for at in (prediction.created_at, prediction.completed_at)
    )
    assert present(prediction.metrics)["total_time"] == (completed - created).total_seconds()
    shown = api.http.get(f"/replicate/v1/predictions/{prediction.id}")
    assert shown.headers["X-KubeDiffusion-Warning"] == "the prompt was cut"


@pytest.mark.parametrize(("kind", "format_name"), [("webp", "WEBP"), ("jpg", "JPEG")])
def test_files_of_other_formats(client: Client, api: Api, stage: Stage, kind: str, format_name: str) -> None:
    prompt = f"a fox as {kind}"
    asked = {"prompt": prompt, "output_format": kind}
    call, name = begun(lambda: client.run(REFERENCE, asked, wait=False), api, prompt)
    stage.complete(name, png("navy", 64), png("green", 64))
    np.testing.assert_allclose(colors(call.result(30), format_name), [(0, 0, 128), (0, 128, 0)], atol=5)


def test_behind_a_proxy_that_ends_tls_files_have_addresses(start_api: Any, stage: Stage) -> None:
    api = start_api(RATE_LIMIT="", TRUSTED_PROXIES="127.0.0.1", ROOT_PATH="/pictures")
    client = client_of(api, headers={"X-Forwarded-Proto": "https", "Host": "pictures.example"})
    asked = {"prompt": "a fox at an address", "output_format": "webp", "output_quality": 100}
    call, name = begun(lambda: client.run(REFERENCE, asked), api, "a fox at an address")
    stage.complete(name, png("navy", 64), png("green", 64))
    base = f"https://pictures.example/pictures/replicate/v1/predictions/{name}/output"
    files = call.result(30)
    assert [(type(file), file.url) for file in files] == [
        (FileOutput, f"{base}/{index}.webp?quality=100") for index in (0, 1)
    ]
    # As the proxy passes it on.
    answer = api.http.get(files[1].url.removeprefix("https://pictures.example"))
    assert answer.headers["Content-Type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as opened:
        assert opened.getpixel((9, 9)) == (0, 128, 0)
    path = f"/replicate/v1/predictions/{name}/output"
    assert api.http.get(f"{path}/0.png").content == png("navy", 64)
    assert api.http.head(f"{path}/0.png").headers["Content-Length"] == str(len(png("navy", 64)))
    missing = api.http.get(f"{path}/2.png")
    assert (missing.status_code, missing.json()["detail"]) == (404, "The job has no image 2; it is Succeeded.")
    assert api.http.get(f"{path}/0.gif").json()["invalid_fields"][0]["field"] == "kind"


def test_a_version_is_what_a_model_loads(client: Client, api: Api, site: Site) -> None:
    (model,) = client.models.list()
    assert (model.id, model.visibility, model.url) == (
        REFERENCE, "private", f"{api.url}/replicate/v1/models/{REFERENCE}"
    )  # fmt: skip
    (version,) = model.versions.list()
    assert model.versions.get(version.id) == version == model.latest_version
    assert version.openapi_schema["components"]["schemas"]["Input"]["required"] == ["prompt"]
    with pytest.raises(ReplicateError) as refused:
        model.versions.get("0" * 64)
    assert (refused.value.status, version.id in str(refused.value.detail)) == (404, True)
    own = client_of(site.start(RATE_LIMIT=""))
    before = own.models.get("whoever", MODEL).latest_version
    assert before == version.copy(update={"created_at": before.created_at if before else None})
    site.stage.model(workers={"maxReplicas": 3})
    site.stage.model("other", default=False)
    wait_for("the other model", lambda: len(own.models.list()) == 2)
    assert own.models.get("whoever", MODEL).latest_version == before
    site.stage.model(source={"path": "/models/another"})
    wait_for("another version", lambda: own.models.get("whoever", MODEL).latest_version != before)
    with pytest.raises(ReplicateError) as stale:
        own.predictions.create(version, {"prompt": "never drawn"})
    assert (stale.value.status, "version: There is no such version" in str(stale.value.detail)) == (422, True)


@pytest.mark.parametrize("reference", ["{id}", "whoever/{name}:{id}", "whoever/{name}"])
def test_versions_by_every_name(client: Client, stage: Stage, reference: str) -> None:
    version = present(client.models.get(REFERENCE).latest_version)
    named = reference.format(id=version.id, name=MODEL)
    prediction = client.predictions.create(named, {"prompt": "a fox of a version"})
    assert spec(stage, prediction.id)["model"] == MODEL


@pytest.mark.parametrize(
    "reference", ["none", "", "/", "a/", "/:", "a/:", ":", "a/none", "a/tiny:none", "a/none:{id}", "tiny"]
)
def test_versions_that_are_not_there(api: Api, client: Client, reference: str) -> None:
    version = present(client.models.get(REFERENCE).latest_version)
    body = {"version": reference.format(id=version.id), "input": {"prompt": "never drawn"}}
    answer = api.http.post("/replicate/v1/predictions", json=body)
    assert answer.status_code == 422
    assert [problem["field"] for problem in answer.json()["invalid_fields"]] == ["version"]


def test_run_of_a_pinned_version(client: Client, api: Api, stage: Stage) -> None:
    version = present(client.models.get(REFERENCE).latest_version)
    pinned = f"{REFERENCE}:{version.id}"
    call, name = begun(lambda: client.run(pinned, input={"prompt": "a pinned fox"}), api, "a pinned fox")
    stage.complete(name, png())
    (file,) = call.result(30)
    assert file.read() == png()


async def test_the_asynchronous_client(api: Api, stage: Stage) -> None:
    client = client_of(api)
    task = asyncio.create_task(client.async_run(REFERENCE, input={"prompt": "a fox meanwhile"}))
    name = await asyncio.to_thread(wait_for, "the job", lambda: newest(api, "a fox meanwhile"), 30)
    await asyncio.to_thread(stage.complete, name, png())
    answer: Any = await task
    (file,) = answer
    assert await file.aread() == png()


def test_run_polls_when_the_wait_is_over(client: Client, api: Api, stage: Stage) -> None:
    """Its client takes the answer to a wait for the end unless it says ``starting``, also while the job runs."""
    prompt = "a fox that takes its time"
    held: list[httpx.Response] = []

    def ask() -> Any:
        options: dict[str, Any] = {"event_hooks": {"response": [held.append]}}
        return client_of(api, **options).run(REFERENCE, input={"prompt": prompt}, wait=1)

    call, name = begun(ask, api, prompt)
    stage.bind(name)
    stage.run(name)
    wait_for("the answer to the wait, and a poll", lambda: len(held) > 2 or call.done())
    assert not call.done()
    assert held[0].headers["Preference-Applied"] == "wait=1"
    assert {answer.json()["status"] for answer in held[1:3]} == {"processing"}
    stage.succeed(name, png())
    assert [file.read() for file in call.result(30)] == [png()]


@pytest.mark.parametrize("wait", [True, False])
def test_a_prediction_that_fails(client: Client, api: Api, stage: Stage, wait: bool) -> None:
    prompt = f"an impossible fox {wait}"
    call, name = begun(lambda: client.run(REFERENCE, input={"prompt": prompt}, wait=wait), api, prompt)
    stage.bind(name)
    stage.run(name)
    stage.fail(name, "OutOfMemory", "it takes 90 GB")
    with pytest.raises(ModelError, match="it takes 90 GB") as failed:
        call.result(30)
    assert failed.value.prediction.status == "failed"


def test_cancel(client: Client, stage: Stage) -> None:
    prediction = client.models.predictions.create(REFERENCE, {"prompt": "an unwanted fox"})
    call = CALLS.submit(prediction.cancel)
    wait_for("the cancellation", lambda: spec(stage, prediction.id).get("cancel"))
    stage.cancelled(prediction.id)
    call.result(30)
    assert (prediction.status, prediction.output, prediction.error) == ("canceled", None, None)
    # Once more changes nothing, as there.
    assert client.predictions.cancel(prediction.id).status == "canceled"


def test_what_has_succeeded_is_not_cancelled(client: Client, stage: Stage) -> None:
    prediction = client.models.predictions.create(REFERENCE, {"prompt": "a fox that was quicker"})
    stage.complete(prediction.id, png())
    wait_for("success", lambda: client.predictions.get(prediction.id).status == "succeeded")
    assert client.predictions.cancel(prediction.id).status == "succeeded"


def test_lists_in_pages(site: Site) -> None:
    api = site.start(RATE_LIMIT="")
    client = client_of(api)
    made = [client.models.predictions.create((OWNER, MODEL), {"prompt": f"fox {place}"}).id for place in range(101)]
    site.stage.complete(made[-1], png())
    wait_for("success", lambda: client.predictions.get(made[-1]).status == "succeeded")
    first, second = paginate(client.predictions.list)
    assert (len(first), len(second), second.next) == (100, 1, None)
    assert {prediction.id for page in (first, second) for prediction in page} == set(made)
    (done,) = [prediction for page in (first, second) for prediction in page if prediction.id == made[-1]]
    # Addresses, as a hundred images in one answer would be too much.
    assert api.http.get(done.output[0]).content == png()
    wrong = api.http.get("/replicate/v1/predictions", params={"cursor": "nonsense"})
    assert (wrong.status_code, wrong.json()["invalid_fields"][0]["field"]) == (422, "cursor")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"width": 65}, "input.width", "multiple of 8"),
    ({"width": 4096}, "input.width", "exceeds"),
    ({"num_outputs": 0}, "input.num_outputs", "greater than or equal to 1"),
    ({"num_outputs": 100}, "input.num_outputs", "less than or equal to 16"),
    ({"num_outputs": 5}, "input.num_outputs", "exceeds the limit 4"),
    ({"num_inference_steps": 0}, "input.num_inference_steps", "greater than or equal to 1"),
    ({"guidance_scale": "much"}, "input.guidance_scale", "number"),
    ({"prompt": ""}, "input.prompt", "at least 1 character"),
    ({"scheduler": "KarrasDPM"}, "input.scheduler", "must be one of DDIM, DPMSolverMultistep"),
    ({"output_format": "gif"}, "input.output_format", "'png', 'jpg' or 'webp'"),
    ({"output_quality": 101}, "input.output_quality", "less than or equal to 100"),
]


@pytest.mark.parametrize(("fields", "field", "words"), REFUSED)
def test_what_cannot_be_had_is_refused_by_name(
    client: Client, api: Api, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ReplicateError) as refused:
        client.models.predictions.create(REFERENCE, {"prompt": "a fox never drawn", **fields})
    error = refused.value
    assert (error.status, error.title) == (422, "Input validation failed")
    assert (error.detail or "").startswith(f"- {field}: ")
    assert words in (error.detail or "")
    assert newest(api, "a fox never drawn") is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"webhook": "https://example.com/hook"}, "webhook"),
        ({"webhook_completed": "https://example.com/hook"}, "webhook"),
        ({"webhook": "https://example.com", "webhook_events_filter": ["everything"]}, "webhook_events_filter.0"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_this_server_does_not_do_is_refused(client: Client, api: Api, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ReplicateError) as refused:
        client.models.predictions.create(REFERENCE, {"prompt": "a fox never told of"}, **options)
    assert (refused.value.status, (refused.value.detail or "").startswith(f"- {field}: ")) == (422, True)
    assert newest(api, "a fox never told of") is None


def test_what_is_not_there(client: Client, api: Api) -> None:
    for ask in (
        lambda: client.run("stability-ai/sdxl", input={"prompt": "never drawn"}),
        lambda: client.models.get("stability-ai/sdxl"),
    ):
        with pytest.raises(ReplicateError) as refused:
            ask()
        assert (refused.value.status, refused.value.title) == (404, "Not Found")
        assert refused.value.detail == f"There is no model 'sdxl'; known models: {REFERENCE}."
    with pytest.raises(ReplicateError) as unknown:
        client.predictions.get("01975f0a-6c1e-7d3b-9f56-2f0c8a4be1d7")
    assert (unknown.value.status, unknown.value.detail) == (404, "Task ID not found.")
    for path in ("/replicate/v1/files", "/replicate/v1/nothing"):
        answer = api.http.get(path)
        assert answer.json() == {"title": "Not Found", "detail": "Not Found", "status": 404}
    broken = api.http.post("/replicate/v1/predictions", content=b"{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["title"]) == (422, "Input validation failed")
    assert "not valid JSON" in broken.json()["detail"]


def test_a_client_that_hangs_up_cancels_its_job(api: Api, stage: Stage) -> None:
    path, prompt = f"/replicate/v1/models/{REFERENCE}/predictions", "a fox that nobody waits for"

    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            api.http.post(path, json={"input": {"prompt": prompt}}, headers={"Prefer": "wait"}, timeout=4)

    call, name = begun(ask, api, prompt)
    call.result(30)
    wait_for("the cancellation", lambda: spec(stage, name).get("cancel"))


def test_a_repeatable_request_survives_its_connection(api: Api, stage: Stage) -> None:
    path, prompt = f"/replicate/v1/models/{REFERENCE}/predictions", "a fox asked for twice"
    body: dict[str, Any] = {"input": {"prompt": prompt, "output_format": "webp"}}
    headers = {"Prefer": "wait", "Idempotency-Key": "fox-1"}

    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            api.http.post(path, json=body, headers=headers, timeout=4)

    call, name = begun(ask, api, prompt)
    call.result(30)
    stage.complete(name, png())
    again = api.http.post(path, json=body, headers=headers)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (201, name, "succeeded")
    assert "cancel" not in spec(stage, name)
    body["input"]["output_format"] = "jpg"
    other = api.http.post(path, json=body, headers=headers)
    assert (other.status_code, other.json()["invalid_fields"][0]["field"]) == (422, "Idempotency-Key")


def test_images_that_are_gone(client: Client, api: Api, stage: Stage) -> None:
    prediction = client.models.predictions.create(REFERENCE, {"prompt": "a stolen fox"})
    stage.complete(prediction.id, png("purple"))
    stage.remove(stage.job(prediction.id)["status"]["images"][0]["uri"])
    prediction.wait()
    assert (prediction.status, prediction.output) == ("succeeded", None)
    path = f"/replicate/v1/predictions/{prediction.id}"
    assert api.http.get(path).json()["data_removed"] is True
    assert api.http.get(f"{path}/output/0.png").status_code == 410


def test_jobs_of_other_doors_are_predictions_too(client: Client, api: Api, stage: Stage) -> None:
    name = api.generate("a fox of another door")
    assert client.predictions.get(name).model == REFERENCE
    stage.complete(name, png())
    wait_for("success", lambda: client.predictions.get(name).status == "succeeded")
    assert client.predictions.get(name).input == {"prompt": "a fox of another door"}


def test_keys_and_rates_in_the_form_of_replicate(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "alice").write_text("s3cret")
    api = site.start(API_KEYS_FILE=str(folder), RATE_LIMIT="1/hour")
    for token in ("wrong", ""):
        with pytest.raises(ReplicateError) as refused:
            client_of(api, token).models.list()
        assert (refused.value.status, refused.value.title) == (401, "Unauthorized")
    alice = client_of(api, "s3cret")
    prediction = alice.models.predictions.create((OWNER, MODEL), {"prompt": "a fox"})
    with pytest.raises(ReplicateError) as slowed:
        alice.models.predictions.create((OWNER, MODEL), {"prompt": "a fox"})
    assert (slowed.value.status, slowed.value.title) == (429, "Too Many Requests")
    # What keeps the form of the answer does not take the place of whose the job is.
    assert site.stage.job(prediction.id)["metadata"]["annotations"] == {meta.CLIENT_ANNOTATION: "alice"}


def test_a_model_that_cannot_be_used_says_why(site: Site) -> None:
    site.stage.available("False", "LoadFailed", "no such folder")
    api = site.start()
    assert client_of(api).models.get(OWNER, MODEL).description == "no such folder"
    with pytest.raises(ReplicateError) as refused:
        client_of(api).run(REFERENCE, input={"prompt": "never drawn"})
    assert (refused.value.status, "no such folder" in (refused.value.detail or "")) == (503, True)
