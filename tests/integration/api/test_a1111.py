"""A client of AUTOMATIC1111's web UI, webuiapi, against the local control plane."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import httpx
import pytest
from PIL import Image
from webuiapi import WebUIApi

from integration.api.api_kit import MODEL, Api, Site, Stage, listed, png
from integration.api.calls import begun, newest, spec, webui_client
from kubediffusion.local import installation
from kubediffusion.local.testing import wait_for
from kubediffusion.resources import meta
from kubediffusion.resources.image_keys import image_key

PATH = "/sdapi/v1/txt2img"


@pytest.fixture
def client(api: Api) -> WebUIApi:
    return webui_client(api)


def test_its_client_draws(client: WebUIApi, api: Api, stage: Stage) -> None:
    call, name = begun(lambda: client.txt2img(prompt="a hare"), api, "a hare")
    assert spec(stage, name) == {
        "prompt": "a hare", "numInferenceSteps": 20, "guidanceScale": 7, "width": 512, "height": 512, "numImages": 1,
        "scheduler": "EulerAncestralDiscreteScheduler", "activeDeadlineSeconds": 600,
    }  # fmt: skip
    stage.complete(name, png("navy"))
    drawn = call.result(30)
    assert drawn.image.convert("RGB").tobytes() == Image.open(io.BytesIO(png("navy"))).tobytes()
    assert (drawn.parameters["steps"], drawn.parameters["sampler_name"]) == (20, "Euler a")
    # What somebody played the worker with says how it ran, not what was asked for.
    assert (drawn.info["seed"], drawn.info["steps"], drawn.info["sd_model_name"]) == (0, 25, MODEL)


def test_every_field_reaches_the_job_and_its_images(client: WebUIApi, api: Api, stage: Stage) -> None:
    def ask() -> Any:
        return client.txt2img(
            prompt="two hares, running", negative_prompt="cats", steps=9, cfg_scale=3.5,
            width=64, height=128, seed=5, batch_size=2, n_iter=2, sampler_name="ddim",
            override_settings={"sd_model_checkpoint": MODEL, "CLIP_stop_at_last_layers": 2},
        )  # fmt: skip

    call, name = begun(ask, api, "two hares, running")
    assert spec(stage, name) == {
        "prompt": "two hares, running", "negativePrompt": "cats", "model": MODEL, "numInferenceSteps": 9,
        "guidanceScale": 3.5, "width": 64, "height": 128, "seed": 5, "numImages": 4, "scheduler": "DDIMScheduler",
        "activeDeadlineSeconds": 600,
    }  # fmt: skip
    stage.complete(name, png(), png("blue"))
    drawn = call.result(30)
    texts = [
        "two hares, running\n"
        f"Steps: 25, CFG scale: 9, Seed: {seed}, Size: 16x16, Model: {MODEL}, Version: KubeDiffusion"
        for seed in (0, 1)
    ]
    assert [image.text["parameters"] for image in drawn.images] == texts
    assert drawn.info["infotexts"] == texts
    assert drawn.info["all_seeds"] == [0, 1]
    # As programs read it that show or repeat images of the web UI.
    found = dict(re.findall(r"\s*(\w[\w \-/]+):\s*(\"(?:\\.|[^\\\"])+\"|[^,]*)(?:,|$)", texts[1].split("\n")[-1]))
    assert (found["Steps"], found["Seed"], found["Size"], found["Model"]) == ("25", "1", "16x16", MODEL)


def test_a_prompt_of_another_script_is_in_the_image(api: Api, stage: Stage) -> None:
    prompt = "ein Hase, 兎, \N{RABBIT FACE}"
    body = {"prompt": prompt, "seed": -1, "override_settings": {"CLIP_stop_at_last_layers": 2}}
    call, name = begun(lambda: api.http.post(PATH, json=body), api, prompt)
    assert "seed" not in spec(stage, name)
    stage.complete(name, png("purple", 300), warnings=("the prompt was cut",))
    answer = call.result(30)
    assert answer.headers["X-KubeDiffusion-Job"] == name
    without_effect = "override_settings.CLIP_stop_at_last_layers has no effect here"
    assert answer.headers["X-KubeDiffusion-Warning"] == f"the prompt was cut; {without_effect}"
    (image,) = answer.json()["images"]
    with Image.open(io.BytesIO(base64.b64decode(image, validate=True))) as opened:
        opened.load()
        assert opened.text["parameters"].splitlines()[0] == prompt  # type: ignore[attr-defined]
        assert opened.getpixel((299, 299)) == (128, 0, 128)


@pytest.mark.parametrize("size", range(6))
def test_images_of_every_length_stay_whole(api: Api, stage: Stage, size: int) -> None:
    """Base64 is made of three bytes each, wherever an image and its text begin and end."""
    prompt = "a hare" + " of length" * 7 + "." * size
    call, name = begun(lambda: api.http.post(PATH, json={"prompt": prompt}), api, prompt)
    stage.complete(name, png("green", 700))
    (image,) = call.result(30).json()["images"]
    data = base64.b64decode(image, validate=True)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.text["parameters"].splitlines()[0] == prompt  # type: ignore[attr-defined]
    before, _, after = data.partition(data[33 : 33 + 12 + int.from_bytes(data[33:37])])
    assert before + after == png("green", 700)


def test_large_images_pass_through(uncached_api: Api, stage: Stage) -> None:
    """Above 4 MiB an image comes in pieces, and the text is put into the first."""
    noise = io.BytesIO()
    Image.effect_noise((2300, 2300), 100).convert("RGB").save(noise, "PNG", compress_level=0)
    assert len(noise.getvalue()) > 4 * 1024 * 1024
    prompt = "a very large hare"
    call, name = begun(lambda: uncached_api.http.post(PATH, json={"prompt": prompt}), uncached_api, prompt)
    stage.complete(name, noise.getvalue())
    (image,) = call.result(30).json()["images"]
    data = base64.b64decode(image, validate=True)
    length = 12 + int.from_bytes(data[33:37])
    assert data[:33] + data[33 + length :] == noise.getvalue()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"width": 65}, "width", "multiple of 8"),
    ({"height": 4096}, "height", "exceeds"),
    ({"batch_size": 0}, "batch_size", "greater than or equal to 1"),
    ({"batch_size": 2, "n_iter": 3}, "batch_size", "6 exceeds the limit 4"),
    ({"batch_size": 9, "n_iter": 9}, "batch_size", "less than or equal to 16"),
    ({"steps": 0}, "steps", "greater than or equal to 1"),
    ({"steps": 151}, "steps", "exceeds the limit 150"),
    ({"cfg_scale": "much"}, "cfg_scale", "number"),
    ({"seed": -2}, "seed", "greater than or equal to -1"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
    ({"sampler_name": "DPM++ 2M Karras"}, "sampler_name", "ask for DDIM, DPM++ 2M, Euler, Euler a"),
    ({"sampler_index": "Nonsense"}, "sampler_index", "There is no sampler 'Nonsense'"),
    ({"scheduler": "Karras"}, "scheduler", "must be automatic"),
    ({"override_settings": {"sd_model_checkpoint": "v1-5-pruned"}}, "override_settings.sd_model_checkpoint", "known"),
    ({"enable_hr": True}, "enable_hr", "by width and height"),
    ({"tiling": True}, "tiling", "leave it out"),
    ({"restore_faces": True}, "restore_faces", "leave it out"),
    ({"script_name": "x/y/z plot"}, "script_name", "no scripts"),
    ({"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts", "no script 'ADetailer'"),
]


@pytest.mark.parametrize(("fields", "field", "words"), REFUSED)
def test_what_cannot_be_had_is_refused_by_name(api: Api, fields: dict[str, Any], field: str, words: str) -> None:
    answer = api.http.post(PATH, json={"prompt": "a hare never drawn", **fields})
    assert answer.status_code == 422
    body = answer.json()
    assert (body["error"], body["body"]) == ("Unprocessable Entity", "")
    assert [".".join(problem["loc"]) for problem in body["detail"]] == [f"body.{field}"]
    assert body["errors"].startswith(f"{field}: ")
    assert words in body["errors"]
    assert newest(api, "a hare never drawn") is None


def test_a_job_that_fails(client: WebUIApi, api: Api, stage: Stage) -> None:
    call, name = begun(lambda: client.txt2img(prompt="an impossible hare"), api, "an impossible hare")
    stage.bind(name)
    stage.run(name)
    stage.fail(name, "OutOfMemory", "it takes 90 GB")
    with pytest.raises(RuntimeError) as failed:
        call.result(30)
    status, text = failed.value.args
    assert (status, json.loads(text)) == (
        500, {"error": "OutOfMemory", "detail": "it takes 90 GB", "body": "", "errors": "it takes 90 GB"}
    )  # fmt: skip


def test_an_image_that_is_gone_is_an_error_and_no_half_answer(client: WebUIApi, api: Api, stage: Stage) -> None:
    call, name = begun(lambda: client.txt2img(prompt="a stolen hare"), api, "a stolen hare")
    stage.bind(name)
    stage.run(name)
    key = image_key(installation.PREFIX, stage.namespace.name, stage.job(name)["metadata"]["uid"], 0)
    stage.claim(name, listed(0, f"s3://{installation.BUCKET}/{key}", png()))
    with pytest.raises(RuntimeError) as gone:
        call.result(30)
    assert gone.value.args[0] == 410


def test_a_client_that_hangs_up_cancels_its_job(api: Api, stage: Stage) -> None:
    prompt = "a hare that nobody waits for"

    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            api.http.post(PATH, json={"prompt": prompt}, timeout=4)

    call, name = begun(ask, api, prompt)
    call.result(30)
    wait_for("the cancellation", lambda: spec(stage, name).get("cancel"))


def test_a_repeatable_request_survives_its_connection(api: Api, stage: Stage) -> None:
    prompt, key = "a hare asked for twice", {"Idempotency-Key": "hare-1"}

    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            api.http.post(PATH, json={"prompt": prompt}, headers=key, timeout=4)

    call, name = begun(ask, api, prompt)
    call.result(30)
    stage.complete(name, png())
    again = api.http.post(PATH, json={"prompt": prompt}, headers=key)
    assert (again.status_code, again.headers["X-KubeDiffusion-Job"]) == (200, name)
    assert "cancel" not in spec(stage, name)


def test_models_and_samplers(client: WebUIApi, api: Api) -> None:
    assert client.util_get_model_names() == [MODEL]
    assert client.util_get_current_model() == MODEL
    assert client.util_get_sampler_names() == [
        "DDIM", "DPM++ 2M", "Euler", "Euler a", "Heun", "LMS", "PLMS", "UniPC"
    ]  # fmt: skip
    assert client.util_get_scheduler_names() == ["automatic"]


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M", "Euler", "Euler a", "Heun", "LMS", "PLMS", "UniPC"])
def test_every_sampler_that_is_listed_is_taken(api: Api, stage: Stage, sampler: str) -> None:
    (shown,) = [each for each in api.http.get("/sdapi/v1/samplers").json() if each["name"] == sampler]
    prompt = f"a hare by {sampler}"
    call, name = begun(lambda: api.http.post(PATH, json={"prompt": prompt, "sampler_index": sampler}), api, prompt)
    assert spec(stage, name)["scheduler"] == shown["aliases"][0]
    stage.complete(name, png())
    assert call.result(30).status_code == 200


def test_settings_are_not_kept(client: WebUIApi, api: Api) -> None:
    # What holds already may be said.
    assert client.set_options({"sd_model_checkpoint": MODEL}) is None
    assert client.set_options({}) is None
    for wanted in ({"sd_model_checkpoint": "other"}, {"CLIP_stop_at_last_layers": 2}):
        refused = api.http.post("/sdapi/v1/options", json=wanted)
        assert refused.status_code == 501
        assert next(iter(wanted)) in refused.json()["detail"]
        assert "override_settings.sd_model_checkpoint" in refused.json()["detail"]


def test_progress_is_that_of_the_keys_own_jobs(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "bob"):
        (folder / name).write_text(f"key of {name}")
    api = site.start(API_KEYS_FILE=str(folder))
    api.http.headers["X-API-Key"] = "key of alice"
    alice, bob = (webui_client(api, **{"X-API-Key": f"key of {name}"}) for name in ("alice", "bob"))
    assert alice.get_progress()["state"]["job_count"] == 0
    jobs = [api.generate(f"hare {place}") for place in range(2)]
    for name in jobs:
        site.stage.bind(name)
        site.stage.run(name, 5, 20)

    def begun_both() -> bool:
        return bool(alice.get_progress()["state"]["job_count"] == 2 and alice.get_progress()["progress"] == 0.25)

    wait_for("progress", begun_both)
    state = alice.get_progress()["state"]
    site.stage.preview(state["job"], png("green"))
    shown = wait_for("a preview", lambda: alice.get_progress()["current_image"])
    assert base64.b64decode(shown) == png("green")
    assert api.http.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    assert bob.get_progress()["current_image"] is None
    assert (state["job"] in jobs, state["sampling_step"], state["sampling_steps"]) == (True, 5, 20)
    assert bob.get_progress()["progress"] == 0
    bob.util_wait_for_ready()
    for name in jobs:
        site.stage.succeed(name, png())
    wait_for("the end", lambda: alice.get_progress()["state"]["job_count"] == 0)
    assert site.stage.job(jobs[1])["metadata"]["annotations"][meta.CLIENT_ANNOTATION] == "alice"
    wrong = webui_client(api, **{"X-API-Key": "wrong"})
    assert wrong.get_progress() == {
        "error": "Unauthorized", "detail": "This API key is not valid.", "body": "",
        "errors": "This API key is not valid.",
    }  # fmt: skip


def test_what_this_server_does_not_do_says_so(client: WebUIApi, api: Api) -> None:
    assert "Close the connection" in client.interrupt()["detail"]
    assert api.http.post("/sdapi/v1/interrupt").status_code == 501
    unknown = api.http.get("/sdapi/v1/upscalers")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "Not Found")
    broken = api.http.post(PATH, content=b"{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, "not valid JSON" in broken.json()["errors"]) == (422, True)
