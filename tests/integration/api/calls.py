"""Calls of clients that end when somebody has played operator and worker meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from webuiapi import WebUIApi

from integration.api.api_kit import Api, Stage
from kubediffusion.local.testing import wait_for

Call = Callable[[], Any]

CALLS = ThreadPoolExecutor(4, "calls")


def newest(api: Api, prompt: str) -> str | None:
    """Return the name of the job of a prompt, which no other test has."""
    jobs = api.http.get("/v1/jobs").json()["jobs"]
    return next((job["name"] for job in jobs if job["prompt"] == prompt), None)


def begun(call: Call, api: Api, prompt: str) -> tuple[Future[Any], str]:
    """Make a call in a thread, and return it with the name of its job once that is there."""
    future = CALLS.submit(call)

    def job() -> str | None:
        if future.done() and (error := future.exception()) is not None:
            raise error
        return newest(api, prompt)

    return future, wait_for(f"a job of {prompt!r}", job)


def spec(stage: Stage, name: str) -> dict[str, Any]:
    """Return a job's spec, as it is in the cluster."""
    found: dict[str, Any] = stage.job(name)["spec"]
    return found


def webui_client(api: Api, **headers: str) -> WebUIApi:
    """Return the web UI's own client for an API, with more headers."""
    made = WebUIApi(baseurl=f"{api.url}/sdapi/v1")
    made.session.trust_env = False
    made.session.headers.update(headers)
    return made
