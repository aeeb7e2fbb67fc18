"""Previews, as clients get them: while somebody asks, of a job that runs, and to whom it belongs."""

from __future__ import annotations

import base64
import time
from functools import partial

import httpx
import pytest

from integration.api.api_kit import Api, Site, Stage, png
from integration.api.followers import following
from kubediffusion.local.testing import wait_for
from kubediffusion.resources import meta


def asked_at(stage: Stage, name: str) -> str | None:
    found: str | None = stage.job(name)["metadata"].get("annotations", {}).get(meta.PREVIEW_REQUESTED_AT_ANNOTATION)
    return found


def running(api: Api, stage: Stage) -> str:
    name = api.generate()
    stage.bind(name)
    stage.run(name)
    api.wait_phase(name, "Running")
    return name


def preview(api: Api, name: str) -> httpx.Response | None:
    answer = api.http.get(f"/v1/jobs/{name}/preview")
    return answer if answer.status_code == 200 else None


def test_who_asks_has_the_worker_make_previews_and_gets_them_from_any_replica(
    api: Api, replica: Api, stage: Stage
) -> None:
    name = running(api, stage)
    assert asked_at(stage, name) is None
    missing = api.http.get(f"/v1/jobs/{name}/preview")
    assert (missing.status_code, missing.headers["Retry-After"]) == (404, "1")
    wait_for("the worker to be told", lambda: asked_at(stage, name))
    stage.preview(name, png("green"), index=2)
    for each in (api, replica):
        answer = wait_for("a preview", partial(preview, each, name))
        assert (answer.content, answer.headers["Content-Type"]) == (png("green"), "image/png")
        assert answer.headers["X-KubeDiffusion-Image-Index"] == "2"
        assert answer.headers["Cache-Control"] == "no-store"
        same = each.http.get(f"/v1/jobs/{name}/preview", headers={"If-None-Match": answer.headers["ETag"]})
        assert same.status_code == 304
    stage.succeed(name, png())
    api.wait_phase(name, "Succeeded")
    ended = api.http.get(f"/v1/jobs/{name}/preview")
    assert (ended.status_code, "Retry-After" in ended.headers) == (404, False)


def test_asking_often_writes_seldom(api: Api, stage: Stage) -> None:
    name = running(api, stage)
    for _ in range(50):
        api.http.get(f"/v1/jobs/{name}/preview")
    first = wait_for("the request", lambda: asked_at(stage, name))
    began = time.monotonic()
    while time.monotonic() - began < 1:
        api.http.get(f"/v1/jobs/{name}/preview")
    assert asked_at(stage, name) == first


def test_a_preview_of_an_attempt_that_is_over_is_none(api: Api, stage: Stage) -> None:
    name = running(api, stage)
    stage.preview(name, png("green"), attempt=7)
    assert api.http.get(f"/v1/jobs/{name}/preview").status_code == 404


def test_a_job_that_waits_is_left_alone(api: Api, stage: Stage) -> None:
    name = api.generate()
    answer = api.http.get(f"/v1/jobs/{name}/preview")
    assert (answer.status_code, "Pending" in answer.json()["detail"]) == (404, True)
    assert asked_at(stage, name) is None


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_has_previews_where_they_were_asked_for(api: Api, stage: Stage, wanted: bool) -> None:
    name = running(api, stage)
    stage.preview(name, png("green"))
    with following(api, f"/v1/jobs/{name}/events?previews={str(wanted).lower()}") as follower:
        follower.until("state")
        if wanted:
            shown = follower.until("preview").json()
            assert shown["index"] == 0
            assert base64.b64decode(shown["image"].removeprefix("data:image/png;base64,")) == png("green")
            stage.preview(name, png("blue"))
            wait_for("the next", lambda: [event.event for event in follower.events].count("preview") == 2)
        stage.succeed(name, png())
        follower.until("end")
        kinds = [event.event for event in follower.events]
    assert kinds.count("preview") == (2 if wanted else 0)
    assert (asked_at(stage, name) is not None) is wanted


def test_previews_are_for_the_key_that_created_the_job(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "bob"):
        (folder / name).write_text(f"key of {name}")
    api = site.start(API_KEYS_FILE=str(folder))
    api.http.headers["X-API-Key"] = "key of alice"
    job = running(api, site.stage)
    site.stage.preview(job, png("green"))
    bob = {"X-API-Key": "key of bob"}
    assert api.http.get(f"/v1/jobs/{job}/preview", headers=bob).status_code == 404
    assert asked_at(site.stage, job) is None
    with following(api, f"/v1/jobs/{job}/events?previews=true", **bob) as follower:
        follower.until("state")
        assert wait_for("a preview", partial(preview, api, job), 30).content == png("green")
        site.stage.succeed(job, png())
        follower.until("end")
        assert "preview" not in {event.event for event in follower.events}
