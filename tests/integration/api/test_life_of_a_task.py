"""A task from its submission to its image, as a client of the task API sees it, on a real API server and storage."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess

import httpx

from integration.api.api_kit import Api, Site, Stage, StartApi, png
from kubediffusion.local.testing import wait_for

RESULT_FIELDS = ["task_id", "status", "prompt", "image_base64", "error_message"]


def curl(*arguments: str) -> dict[str, str]:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--noproxy", "*", *arguments], capture_output=True, check=True, text=True
    )
    body: dict[str, str] = json.loads(done.stdout)
    return body


def test_the_two_commands_of_the_readme(api: Api, stage: Stage) -> None:
    accepted = curl(
        "-X", "POST", f"{api.url}/generate", "-H", "Content-Type: application/json",
        "-d", '{"prompt": "A photo of an astronaut riding a horse on the moon", "num_inference_steps": 25, '
        '"guidance_scale": 9.0}',
    )  # fmt: skip
    task_id = accepted["task_id"]
    assert accepted == {
        "task_id": task_id,
        "status": "pending",
        "message": "Task received and queued for processing.",
    }
    pending = curl("-X", "GET", f"{api.url}/results/{task_id}")
    assert list(pending) == RESULT_FIELDS
    assert pending["status"] == "pending"
    spec = stage.job(task_id)["spec"]
    assert spec == {
        "prompt": "A photo of an astronaut riding a horse on the moon",
        "numInferenceSteps": 25,
        "guidanceScale": 9.0,
    }

    stage.bind(task_id)
    stage.run(task_id)
    assert api.wait_status(task_id, "processing")["image_base64"] is None
    stage.succeed(task_id, png())
    api.wait_status(task_id, "completed")
    completed = curl("-X", "GET", f"{api.url}/results/{task_id}")
    assert list(completed) == RESULT_FIELDS
    assert base64.b64decode(completed["image_base64"]) == png()
    assert completed["error_message"] is None


def test_a_failed_task_says_why(api: Api, stage: Stage) -> None:
    task_id = api.generate()
    stage.bind(task_id)
    stage.fail(task_id, "PipelineFailed", "it cannot be painted")
    failed = api.wait_status(task_id, "failed")
    assert failed["error_message"] == "it cannot be painted"
    assert failed["image_base64"] is None


def test_a_job_of_kubectl_is_a_task(api: Api, stage: Stage) -> None:
    stage.namespace.kubectl("apply", "--filename=-", stdin="""
apiVersion: kubediffusion.io/v1alpha1
kind: GenerationJob
metadata: {name: by-hand}
spec: {prompt: a dog}
""")  # fmt: skip
    # At once, whether the watch has shown it or not.
    assert api.result("by-hand") == {
        "task_id": "by-hand",
        "status": "pending",
        "prompt": "a dog",
        "image_base64": None,
        "error_message": None,
    }
    stage.complete("by-hand", png("blue"))
    assert base64.b64decode(api.wait_status("by-hand", "completed")["image_base64"]) == png("blue")


def test_unknown_tasks_are_404(api: Api) -> None:
    for task_id in ("no-such-task", "01975f0a-6c1e-7d3b-9f56-2f0c8a4be1d7", "NOT%20a%20name", "-", "a" * 300):
        answer = api.http.get(f"/results/{task_id}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Task ID not found."}), task_id


def test_a_deleted_task_is_404(api: Api) -> None:
    task_id = api.generate()
    api.http.delete(f"/v1/jobs/{task_id}").raise_for_status()
    assert api.http.get(f"/results/{task_id}").status_code == 404


def test_a_warning_is_a_header(api: Api, stage: Stage) -> None:
    task_id = api.generate()
    stage.complete(task_id, png(), warnings=("The prompt was cut: “…très long”",))
    api.wait_status(task_id, "completed")
    header = api.http.get(f"/results/{task_id}").headers["X-KubeDiffusion-Warning"]
    assert header.startswith("The prompt was cut")


def test_a_presigned_url_gives_the_image_to_anybody(api: Api, stage: Stage) -> None:
    task_id = api.generate()
    assert api.result(task_id, image="url")["image_url"] is None
    stage.complete(task_id, png("green"))
    api.wait_status(task_id, "completed")
    body = api.result(task_id, image="url")
    assert list(body) == [*RESULT_FIELDS, "image_url"]
    assert body["image_base64"] is None
    assert httpx.get(body["image_url"], trust_env=False).content == png("green")


def test_a_presigned_url_is_for_the_address_that_clients_know(start_api: StartApi, stage: Stage) -> None:
    store = stage.namespace.cluster.store.endpoint
    api = start_api(S3_PUBLIC_ENDPOINT=store.replace("127.0.0.1", "localhost"), IMAGE_FORM="url")
    task_id = api.generate()
    stage.complete(task_id, png("green"))
    body = api.wait_status(task_id, "completed")
    assert body["image_url"].startswith("http://localhost:")
    assert httpx.get(body["image_url"], trust_env=False).content == png("green")
    # Who wants the bytes themselves still gets them.
    assert base64.b64decode(api.result(task_id, image="base64")["image_base64"]) == png("green")


def test_every_image_and_its_hash(api: Api, stage: Stage) -> None:
    task_id = api.generate(num_images=2)
    stage.complete(task_id, png("red"), png("blue"))
    api.wait_status(task_id, "completed")
    for index, data in enumerate((png("red"), png("blue"))):
        answer = api.http.get(f"/v1/jobs/{task_id}/images/{index}")
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.content == data
        tag = answer.headers["ETag"]
        assert tag == f'"{hashlib.sha256(data).hexdigest()}"'
        again = api.http.get(f"/v1/jobs/{task_id}/images/{index}", headers={"If-None-Match": tag})
        assert again.status_code == 304
        redirect = api.http.get(f"/v1/jobs/{task_id}/images/{index}", params={"image": "url"})
        assert redirect.status_code == 307
        assert httpx.get(redirect.headers["Location"], trust_env=False).content == data
    assert api.http.get(f"/v1/jobs/{task_id}/images/2").status_code == 404


def test_a_stored_image_that_is_gone_or_altered(uncached_api: Api, stage: Stage) -> None:
    api = uncached_api
    task_id = api.generate()
    stage.complete(task_id, png())
    api.wait_status(task_id, "completed")
    uri = stage.job(task_id)["status"]["images"][0]["uri"]
    stage.overwrite(uri, png("black"))
    assert api.http.get(f"/results/{task_id}").status_code == 502
    stage.remove(uri)
    gone = api.http.get(f"/results/{task_id}")
    assert (gone.status_code, gone.json()) == (410, {"detail": "The image has been deleted from storage."})


def test_health_follows_the_model(site: Site) -> None:
    api, stage = site.start(), site.stage
    assert api.http.get("/health").json() == {"status": "ok", "model_status": "available"}
    stage.available("False", "LoadFailed", "no such folder: /models/tiny")
    wait_for("the model to be unavailable", lambda: health(api) == "unavailable")
    refused = api.http.post("/generate", json={"prompt": "a cat"})
    assert refused.status_code == 503
    assert "no such folder" in refused.json()["detail"]
    stage.available("True", "Ready")
    wait_for("the model to be available", lambda: health(api) == "available")
    api.generate()


def health(api: Api) -> str:
    answer = api.http.get("/health")
    assert answer.status_code == 200
    status: str = answer.json()["model_status"]
    return status


def test_without_any_model_there_is_503(site: Site) -> None:
    api = site.start()
    site.stage.namespace.kubectl("delete", "diffusionmodels", "--all")
    wait_for("the model to be gone", lambda: health(api) == "unavailable")
    refused = api.http.post("/generate", json={"prompt": "a cat"})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]
