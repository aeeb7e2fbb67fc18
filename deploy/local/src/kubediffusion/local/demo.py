"""The demo: one prompt, from the HTTP request to the PNG, by the path that every job takes."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubediffusion.local.errors import LocalError, NotInTimeError
from kubediffusion.local.layout import DEMO
from kubediffusion.local.processes import killed_with_parent
from kubediffusion.local.progress import say
from kubediffusion.local.service import NAMESPACE, Service
from kubediffusion.resources import meta

REQUEST = {
    "prompt": "A photo of an astronaut riding a horse on the moon",
    "num_inference_steps": 25,
    "guidance_scale": 9.0,
}
IMAGE = DEMO / "astronaut.png"
SECONDS = 900.0
POLL_SECONDS = 0.3
SHOWN = f"{meta.GENERATION_JOBS},{meta.DIFFUSION_MODELS},jobs,pods"


def run(service: Service, image: Path) -> None:
    """Generate the image, and show how.

    Args:
        service: What generates it.
        image: The file that it goes to.

    Raises:
        LocalError: It did not come about.
    """
    say(f"\n$ curl -X POST {service.url}/generate -H 'Content-Type: application/json' -d '{json.dumps(REQUEST)}'")
    accepted = exchange(f"{service.url}/generate", REQUEST)
    say(json.dumps(accepted))
    task = str(accepted["task_id"])
    say(f"\n$ kubectl get generationjobs {task} --watch")
    with _watched(service, task):
        result = _finished(service, task)
    if result["status"] != "completed":
        raise LocalError(f"the image was not generated: {result['error_message']}")
    save(image, base64.b64decode(result["image_base64"]))
    say(f"\n$ curl {service.url}/results/{task}")
    say(json.dumps({**result, "image_base64": f"{result['image_base64'][:24]}…"}, ensure_ascii=False))
    say(f"\n$ kubectl get {SHOWN}")
    say(service.cluster.kubectl("get", SHOWN, f"--namespace={NAMESPACE}").rstrip())
    say(f"\nThe image is {image}\nNow everything stops; make up keeps it running.")


def exchange(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make a GET request, or a POST request of a body, and return the answer.

    Raises:
        LocalError: The server refuses, or does not answer.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 # our own
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        raise LocalError(f"{url} answers {error.code}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise LocalError(f"{url} does not answer: {error}") from error


def save(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _finished(service: Service, task: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        result = exchange(f"{service.url}/results/{task}")
        if result["status"] in {"completed", "failed"}:
            return result
        service.check()
        time.sleep(POLL_SECONDS)
    raise NotInTimeError(f"task {task} neither completed nor failed", SECONDS)


@contextmanager
def _watched(service: Service, task: str) -> Iterator[None]:
    """Show the job's rows as kubectl prints them."""
    command = [str(service.kubectl), "get", meta.GENERATION_JOBS, task, f"--namespace={NAMESPACE}", "--watch"]
    environment = {"KUBECONFIG": str(service.cluster.admin), "HOME": str(service.cluster.folder)}
    watch = subprocess.Popen(
        killed_with_parent(command), stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        yield
        # The last row is on its way, and kubectl writes it to the terminal itself: nothing here learns that it has.
        time.sleep(POLL_SECONDS)
    finally:
        watch.terminate()
        watch.wait()
