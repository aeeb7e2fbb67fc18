"""Who gets in and what is refused: keys, limits, sizes, fields, and what the cluster itself refuses."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.api.api_kit import COMMAND, MODEL, Api, Site, StartApi, generate, png, problems
from kubediffusion.api.main import listening_sockets
from kubediffusion.local.testing import json_lines, wait_for

"""What admission webhooks and policies of a test are asked about."""


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"prompt": ""}, "body.prompt", "at least 1"),
        ({"prompt": "x" * 4001}, "body.prompt", "at most 4000"),
        ({"negative_prompt": "x" * 4001}, "body.negative_prompt", "at most 4000"),
        ({"num_inference_steps": 0}, "body.num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": 151}, "body.num_inference_steps", "exceeds the limit 150"),
        ({"num_inference_steps": 2.5}, "body.num_inference_steps", "valid integer"),
        ({"guidance_scale": -1}, "body.guidance_scale", "greater than or equal to 0"),
        ({"guidance_scale": 50.5}, "body.guidance_scale", "less than or equal to 50"),
        ({"seed": -1}, "body.seed", "greater than or equal to 0"),
        ({"seed": 2**63}, "body.seed", "less than or equal to 9223372036854775807"),
        ({"seed": 2**63 - 1, "num_images": 2}, "body.seed", "beyond 9223372036854775807"),
        ({"width": 513}, "body.width", "multiple of 8"),
        ({"height": 2048}, "body.height", "exceeds the limit 1024"),
        ({"num_images": 5}, "body.num_images", "exceeds the limit 4"),
        ({"scheduler": "Nonsense"}, "body.scheduler", "DDIMScheduler"),
        ({"acceleration": 3}, "body.acceleration", "should be an object"),
        ({"acceleration": {"feature_cachin": {}}}, "body.acceleration.feature_cachin", "'feature_caching'?"),
        (
            {"acceleration": {"feature_caching": {"interval": 0}}},
            "body.acceleration.feature_caching.interval",
            "greater than or equal to 1",
        ),
        (
            {"acceleration": {"guidance_interval": {"start": 0.8, "stop": 0.2}}},
            "body.acceleration.guidance_interval",
            "start, 0.8, must be below stop, 0.2",
        ),
        ({"model": "unknown"}, "body.model", "known models: tiny"),
        ({"numInferenceSteps": 5}, "body.numInferenceSteps", "did you mean 'num_inference_steps'?"),
        ({"promt": "x"}, "body.promt", "did you mean 'prompt'?"),
        ({"steps": 5}, "body.steps", "did you mean 'num_inference_steps'?"),
        ({"cfg_scale_xyz": 5}, "body.cfg_scale_xyz", "Unknown field"),
    ],
)
def test_a_bad_value_is_refused_by_name(api: Api, body: dict[str, object], field: str, reason: str) -> None:
    assert reason in problems(generate(api, **body))[field]


def test_what_a_models_pipeline_cannot_do_is_refused_at_every_door(site: Site) -> None:
    api, wish = site.start(RATE_LIMIT=""), {"prompt": "a cat", "negative_prompt": "rain", "width": 520, "height": 512}
    site.stage.knows(MODEL, name="FluxPipeline", sizeMultiple=16, negativePrompt=False)
    wait_for("the API to know the pipeline", lambda: generate(api, **wish).status_code == 422, 30)
    predictions = f"/replicate/v1/models/any/{MODEL}/predictions"
    doors = {
        "/generate": wish,
        "/v1/jobs": wish,
        "/v1/images/generations": {"prompt": "a cat", "negative_prompt": "rain", "size": "520x512"},
        "/sdapi/v1/txt2img": wish,
        predictions: {"input": wish},
    }
    for path, body in doors.items():
        answer = api.http.post(path, json=body)
        assert answer.status_code in {400, 422}, path
        for words in ("negative_prompt", "is not guided by it here; leave it out", "no multiple of 16"):
            assert words in answer.text, path
    # Clients send an empty one that nobody typed.
    fitting = {"prompt": "a cat", "negative_prompt": "", "width": 512, "height": 512}
    for path, body in {"/generate": fitting, "/v1/jobs": fitting, predictions: {"input": fitting}}.items():
        assert api.http.post(path, json=body).status_code in {201, 202}, path


def test_a_task_that_a_model_has_not_is_refused_at_every_door(site: Site) -> None:
    api, image = site.start(RATE_LIMIT=""), base64.b64encode(png()).decode()
    site.stage.knows(MODEL, name="TextPipeline", tasks=["text-to-image"])
    doors: dict[str, Mapping[str, object]] = {
        "/v1/jobs": {"inputs": [{"role": "image", "id": "a" * 64}]},
        "/sdapi/v1/img2img": {"init_images": [image]},
    }
    words = f"model '{MODEL}' has no task image-to-image; it has text-to-image. Ask for another model"
    asked: dict[str, Any] = {"data": {"prompt": "a cat"}, "files": {"image": png()}}
    wait_for("the refusal of an edit", lambda: words in api.http.post("/v1/images/edits", **asked).text, 30)
    for path, fields in doors.items():

        def refused(path: str = path, fields: Mapping[str, object] = fields) -> bool:
            return words in api.http.post(path, json={"prompt": "a cat", **fields}).text

        wait_for(f"the refusal at {path}", refused, 30)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["guidance_scale", "num_inference_steps", "seed", "prompt"])
def test_what_is_no_number_is_refused(api: Api, field: str, value: str) -> None:
    body = f'{{"prompt": "a cat", "{field}": {value}}}'
    answer = api.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert f"body.{field}" in problems(answer)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 5000]
)
def test_what_is_no_json_object_is_refused(api: Api, body: bytes) -> None:
    answer = api.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert "body" in problems(answer)


def test_another_content_type_is_refused(api: Api) -> None:
    answer = api.http.post("/generate", content=b'{"prompt": "a cat"}', headers={"Content-Type": "text/plain"})
    assert "application/json" in problems(answer)["body"]


def test_an_answer_does_not_echo_what_was_sent(api: Api) -> None:
    answer = generate(api, prompt="x" * 4001, seed="my secret")
    assert "xxx" not in answer.text
    assert "my secret" not in answer.text


def test_a_body_over_64_kib_is_413(api: Api) -> None:
    answer = generate(api, prompt="x" * 70_000)
    assert (answer.status_code, answer.json()) == (
        413,
        {"detail": "The request body is too large: at most 65536 bytes are taken."},
    )

    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(20):
            yield b"x" * 10_000

    chunked = api.http.post("/generate", content=endless(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413


def test_a_body_that_never_ends_is_413_before_its_end(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"x" * 32_768
        for _ in range(3):
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        assert connection.recv(1024).startswith(b"HTTP/1.1 413")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.data())
def test_any_body_is_accepted_or_refused_never_an_error(api: Api, body: st.DataObject) -> None:
    known = ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "seed", "width", "model", "other"]
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2)
    )
    content = body.draw(
        st.one_of(
            st.binary(max_size=200),
            st.dictionaries(st.sampled_from(known), values, max_size=5).map(lambda value: json.dumps(value).encode()),
            st.fixed_dictionaries({"prompt": st.text(max_size=20)}, optional={"seed": st.integers(0, 2**63)}).map(
                lambda value: json.dumps(value).encode()
            ),
        )
    )
    answer = api.http.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in {202, 422}, answer.text
    assert "detail" in answer.json() or "task_id" in answer.json()


@given(task_id=st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_task_id_is_answered(api: Api, task_id: str) -> None:
    assert api.http.get(f"/results/{quote(task_id, safe='')}").status_code in {200, 404, 429}


def test_a_key_of_idempotency_gives_one_job(api: Api, replica: Api) -> None:
    headers = {"Idempotency-Key": "order-66"}
    first = api.http.post("/generate", json={"prompt": "a cat", "seed": 1}, headers=headers)
    assert first.status_code == 202
    for server in (api, replica):
        for path, status in (("/generate", 202), ("/v1/jobs", 201)):
            again = server.http.post(path, json={"prompt": "a cat", "seed": 1}, headers=headers)
            assert again.status_code == status, again.text
            assert again.json().get("task_id", again.json().get("name")) == first.json()["task_id"]
        changed = server.http.post("/generate", json={"prompt": "a dog"}, headers=headers)
        assert "another request" in problems(changed)["header.Idempotency-Key"]


def test_a_key_of_idempotency_at_the_same_moment_on_two_replicas(api: Api, replica: Api) -> None:
    def send(number: int) -> httpx.Response:
        server = (api, replica)[number % 2]
        return server.http.post("/generate", json={"prompt": "a cat"}, headers={"Idempotency-Key": "order-67"})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_prompts_stay_out_of_the_log(api: Api, start_api: StartApi) -> None:
    silent, talking = api, start_api(LOG_PROMPTS="true")
    for server in (silent, talking):
        task_id = server.generate("a very personal prompt")
        assert task_id in server.log.read_text()
    assert "personal" not in silent.log.read_text()
    assert "personal" in talking.log.read_text()
    lines = json_lines(talking.log.read_text())
    assert [line["job"] for line in lines if line.get("prompt") == "a very personal prompt"] == [task_id]


def test_a_requests_id_comes_back(api: Api) -> None:
    assert api.http.get("/health", headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"
    assert api.http.get("/health", headers={"X-Request-ID": "x" * 200}).headers["X-Request-ID"] != "x" * 200
    accepted = api.http.post("/generate", json={"prompt": "a cat"}, headers={"X-Request-ID": "order-7"}).json()
    lines = json_lines(api.log.read_text())
    assert [line["job"] for line in lines if line.get("request_id") == "order-7"] == [accepted["task_id"]]
    ids = {api.http.get("/nowhere").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


def test_the_documentation_needs_no_internet(api: Api) -> None:
    page = api.http.get("/docs").text
    assert "http" not in page.replace("http-equiv", "")
    assert api.http.get("/docs/assets/swagger-ui-bundle.js").status_code == 200
    document = api.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    request = document["components"]["schemas"]["JobRequest"]["properties"]
    assert (request["num_inference_steps"]["default"], request["guidance_scale"]["default"]) == (50, 7.5)
    assert all(field.get("description") for field in request.values())


def test_it_serves_over_every_family_of_addresses(start_api: StartApi) -> None:
    api = start_api(BIND_ADDRESS="")
    families = set()
    for listening in listening_sockets("", 0):
        families.add(listening.family)
        listening.close()
    assert socket.AF_INET in families
    hosts = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "[::1]"}
    for family in families:
        answer = httpx.get(f"http://{hosts[family]}:{api.port}/livez", trust_env=False)
        assert answer.status_code == 200


def test_wrong_settings_are_named() -> None:
    environment = {"PATH": os.environ["PATH"], "KUBEDIFFUSION_PORT": "none", "KUBEDIFFUSION_RATE_LIMIT": "fast"}
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "KUBEDIFFUSION_PORT" in done.stderr
    assert "KUBEDIFFUSION_RATE_LIMIT" in done.stderr
