"""The task API, clause by clause, as its clients rely on it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from integration.api.api_kit import Api, Site, png
from kubediffusion.local.testing import wait_for

RESULT_FIELDS = {"task_id", "status", "prompt", "image_base64", "error_message"}
REQUEST = {
    "prompt": "A photo of an astronaut riding a horse on the moon",
    "num_inference_steps": 25,
    "guidance_scale": 9.0,
}


class TaskClient:
    """What somebody writes against the task API: submit, poll, decode."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, trust_env=False)

    def generate(self, **request: object) -> str:
        answer = self.http.post("/generate", json=request)
        assert answer.status_code == 202
        task_id: str = answer.json()["task_id"]
        return task_id

    def wait(self, task_id: str) -> bytes:
        """Poll until the image is there, as there is nothing else in the task API."""

        def image() -> bytes | None:
            answer = self.http.get(f"/results/{task_id}")
            assert answer.status_code == 200
            body = answer.json()
            if body["status"] == "failed":
                raise RuntimeError(body["error_message"])
            assert body["status"] in {"pending", "processing", "completed"}
            return base64.b64decode(body["image_base64"]) if body["status"] == "completed" else None

        return wait_for(f"the image of {task_id}", image)


@pytest.fixture
def client(server: Api) -> Iterator[TaskClient]:
    tasks = TaskClient(server.url)
    yield tasks
    tasks.http.close()


def test_accepted(server: Api) -> None:
    answer = server.http.post("/generate", json=REQUEST)
    assert answer.status_code == 202
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"task_id", "status", "message"}
    assert isinstance(body["task_id"], str)
    assert body["task_id"]
    assert body["status"] == "pending"
    assert body["message"] == "Task received and queued for processing."


def test_every_documented_field_is_taken(server: Api, site: Site) -> None:
    request = {**REQUEST, "negative_prompt": "blurry", "seed": 42}
    spec = site.stage.job(server.http.post("/generate", json=request).json()["task_id"])["spec"]
    assert spec == {
        "prompt": REQUEST["prompt"],
        "negativePrompt": "blurry",
        "numInferenceSteps": 25,
        "guidanceScale": 9.0,
        "seed": 42,
    }


def test_null_is_the_same_as_nothing(server: Api, site: Site) -> None:
    request = {"prompt": "a cat", "negative_prompt": None, "seed": None}
    spec = site.stage.job(server.http.post("/generate", json=request).json()["task_id"])["spec"]
    assert spec == {"prompt": "a cat"}


def test_numbers_may_come_as_text_or_with_a_point(server: Api) -> None:
    """FastAPI takes ``"25"`` and ``25.0`` for an integer; clients may have come to send that."""
    for steps in ("25", 25.0):
        assert server.http.post("/generate", json={"prompt": "x", "num_inference_steps": steps}).status_code == 202


def test_pending(client: TaskClient) -> None:
    task_id = client.generate(**REQUEST)
    assert client.http.get(f"/results/{task_id}").json() == {
        "task_id": task_id,
        "status": "pending",
        "prompt": REQUEST["prompt"],
        "image_base64": None,
        "error_message": None,
    }


def test_the_whole_way(client: TaskClient, site: Site) -> None:
    task_id = client.generate(prompt="un café — 雪", num_inference_steps=5)
    site.stage.bind(task_id)
    site.stage.run(task_id)
    wait_for("processing", lambda: client.http.get(f"/results/{task_id}").json()["status"] == "processing")
    site.stage.succeed(task_id, png("teal"))
    image = Image.open(io.BytesIO(client.wait(task_id)))
    assert (image.format, image.size) == ("PNG", (16, 16))
    body = client.http.get(f"/results/{task_id}").json()
    assert set(body) == RESULT_FIELDS
    assert body["prompt"] == "un café — 雪"
    assert body["error_message"] is None


def test_failed(client: TaskClient, site: Site) -> None:
    task_id = client.generate(prompt="a cat")
    site.stage.bind(task_id)
    site.stage.fail(task_id, "OutOfMemory", "the job does not fit the device")
    with pytest.raises(RuntimeError, match="does not fit"):
        client.wait(task_id)
    assert set(client.http.get(f"/results/{task_id}").json()) == RESULT_FIELDS


def test_unknown(server: Api) -> None:
    answer = server.http.get("/results/3f2b9a52-6d1c-4d0e-9d0a-8f1f3f1f0a11")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Task ID not found."}


@pytest.mark.parametrize(
    ("request_body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "num_inference_steps": "many"}, "num_inference_steps"),
        ({"prompt": "x", "guidance_scale": "strong"}, "guidance_scale"),
        ({"prompt": "x", "seed": "lucky"}, "seed"),
    ],
)
def test_bad_input_names_its_field(server: Api, request_body: dict[str, object], field: str) -> None:
    answer = server.http.post("/generate", json=request_body)
    assert answer.status_code == 422
    problems = answer.json()["detail"]
    assert [problem["loc"] for problem in problems] == [["body", field]]
    assert all(set(problem) == {"loc", "msg", "type"} and problem["msg"] for problem in problems)


def test_the_edges_of_the_ranges(server: Api) -> None:
    inside: list[dict[str, object]] = [
        {"prompt": "x"},
        {"prompt": "x" * 4000},
        {"num_inference_steps": 1},
        {"num_inference_steps": 150},
        {"guidance_scale": 0},
        {"guidance_scale": 50},
        {"seed": 0},
        {"seed": 2**63 - 1},
    ]
    outside: list[dict[str, object]] = [
        {"prompt": ""},
        {"prompt": "x" * 4001},
        {"num_inference_steps": 0},
        {"num_inference_steps": 151},
        {"guidance_scale": -0.1},
        {"guidance_scale": 50.1},
        {"seed": -1},
        {"seed": 2**63},
    ]
    for bodies, status in ((inside, 202), (outside, 422)):
        for body in bodies:
            answer = server.http.post("/generate", json={"prompt": "x", **body})
            assert answer.status_code == status, (body, answer.text)


def test_health(server: Api, site: Site) -> None:
    answer = server.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "model_status": "available"})
    site.stage.available("False", "LoadFailed", "no such folder")
    try:
        wait_for("unavailable", lambda: server.http.get("/health").json()["model_status"] == "unavailable")
        assert server.http.get("/health").status_code == 200
        refused = server.http.post("/generate", json=REQUEST)
        assert refused.status_code == 503
        assert set(refused.json()) == {"detail"}
    finally:
        site.stage.available("True", "Ready")
        wait_for("available", lambda: server.http.get("/health").json()["model_status"] == "available")


def test_documentation(server: Api) -> None:
    page = server.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/generate", "/results/{task_id}", "/health"} <= set(paths)
