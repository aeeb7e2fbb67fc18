"""``/v1``: jobs in full, lists, the queue, cancelling and deleting, models."""

from __future__ import annotations

from typing import Any

import yaml

from integration.api.api_kit import MODEL, WORKER, Api, Site, Stage, png
from kubediffusion.local.testing import wait_for


def show(api: Api, name: str) -> dict[str, Any]:
    answer = api.http.get(f"/v1/jobs/{name}")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def create(api: Api, **fields: object) -> dict[str, Any]:
    answer = api.http.post("/v1/jobs", json={"prompt": "a cat", **fields})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{created['name']}"
    return created


def test_a_job_in_full(api: Api, stage: Stage) -> None:
    asked = {"num_inference_steps": 25, "width": 64, "height": 128, "scheduler": "DDIMScheduler", "priority": 3,
             "acceleration": {"guidance_interval": {"start": 0.0, "stop": 0.8}, "feature_caching": {"interval": 3}},
             "deterministic": True, "ttl_seconds_after_finished": 600, "deletion_policy": "Delete"}  # fmt: skip
    created = create(api, **asked)
    name = created["name"]
    assert created["phase"] == "Pending"
    assert {field: value for field, value in created["request"].items() if value is not None} == {
        "prompt": "a cat",
        **asked,
    }

    stage.waits(name, "WorkersBusy", "all 2 workers have their fill")
    wait_for("the reason", lambda: show(api, name)["waiting"])
    assert show(api, name)["waiting"] == {"reason": "WorkersBusy", "message": "all 2 workers have their fill"}
    stage.bind(name)
    stage.run(name, 12, 25)
    wait_for("progress", lambda: show(api, name)["progress"] == "12/25")
    running = show(api, name)
    assert (running["phase"], running["worker"], running["attempt"]) == ("Running", WORKER, 1)
    assert (running["queue_position"], running["waiting"]) == (None, None)

    stage.succeed(name, png(), warnings=("cut",))
    wait_for("the end", lambda: show(api, name)["phase"] == "Succeeded")
    done = show(api, name)
    image = done["images"][0]
    assert api.http.get(image["path"]).content == png()
    assert done["parameters"]["seed"] == 7
    assert done["completed_at"]
    assert done["warnings"] == ["cut"]
    assert done["error"] is None
    own = f"/v1/jobs/{name}"
    parts = {part: f"{own}/{part}" for part in ("cancel", "events", "recipe")}
    assert done["urls"] == {"self": own, **parts, "images": [f"{own}/images/0"]}


def test_a_job_that_is_as_it_was_is_not_sent_again(site: Site) -> None:
    api, replica, stage = site.start(), site.start(), site.stage
    ahead, name = create(api, priority=1)["name"], create(api)["name"]
    path = f"/v1/jobs/{name}"
    wait_for("the job", lambda: show(replica, name)["queue_position"] == 2)
    tag = api.http.get(path).headers["ETag"]
    for each, known in ((api, tag), (replica, tag), (replica, f'"x", {tag.removeprefix("W/")}'), (api, "*")):
        answer = each.http.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
    # Its place in the queue is part of it, and so is each write.
    stage.bind(ahead)
    wait_for("its turn", lambda: show(api, name)["queue_position"] == 1)
    moved = api.http.get(path, headers={"If-None-Match": tag})
    assert (moved.status_code, moved.json()["queue_position"]) == (200, 1)
    stage.bind(name)
    wait_for("its worker", lambda: show(api, name)["worker"])
    assert api.http.get(path, headers={"If-None-Match": moved.headers["ETag"]}).status_code == 200
    assert len({tag, moved.headers["ETag"], api.http.get(path).headers["ETag"]}) == 3


def test_jobs_are_listed_by_the_time_of_their_creation(site: Site) -> None:
    api = site.start(RATE_LIMIT="")
    first = create(api)
    # The API server counts whole seconds.
    others = [first]
    while others[-1]["created_at"] == first["created_at"]:
        others.append(create(api))
    moment = others[-1]["created_at"]
    *older, newest = others

    def listed(**query: str) -> list[str]:
        names: list[str] = []
        token: str | None = ""
        while token is not None:
            page = api.http.get(
                "/v1/jobs", params={**query, "limit": "2", **({"continue": token} if token else {})}
            ).json()
            names += [job["name"] for job in page["jobs"]]
            token = page["continue_token"]
        return names

    assert listed(created_after=moment) == [newest["name"]]
    assert sorted(listed(created_before=moment)) == sorted(job["name"] for job in older)
    assert listed(created_after=moment, created_before=moment) == []
    assert len(listed(created_after=first["created_at"])) == len(others)
    assert listed(created_after="1900-01-01T00:00:00+02:00") == listed()
    for wrong in ("yesterday", "2026-11-30T09:00:00", "0.5", "1764493200"):
        assert api.http.get("/v1/jobs", params={"created_after": wrong}).status_code == 422


def test_a_recipe_names_what_was_run(api: Api, stage: Stage) -> None:
    name = create(api, prompt="a fox\nin the snow: ❄", negative_prompt="rain")["name"]
    early = api.http.get(f"/v1/jobs/{name}/recipe")
    assert (early.status_code, early.json()) == (409, {"detail": "The job has no recipe yet: it is Pending."})
    stage.complete(name, png())
    wait_for("the end", lambda: show(api, name)["phase"] == "Succeeded")
    recipe = api.http.get(f"/v1/jobs/{name}/recipe")
    found = yaml.safe_load(recipe.text)
    assert (found["kind"], found["metadata"]) == ("GenerationJob", {"name": f"{name}-again"})
    assert found["spec"] == {"prompt": "a fox\nin the snow: ❄", "model": MODEL, "numInferenceSteps": 25,
                             "guidanceScale": 9.0, "seed": 7, "numImages": 1,
                             "promptWeighting": False, "acceleration": {}}  # fmt: skip
    for query, accept in (("?format=json", "*/*"), ("", "application/json")):
        as_json = api.http.get(f"/v1/jobs/{name}/recipe{query}", headers={"Accept": accept})
        assert as_json.json() == found
    assert (
        api.http.get(f"/v1/jobs/{name}/recipe?format=yaml", headers={"Accept": "application/json"}).text == recipe.text
    )
    assert api.http.get(f"/v1/jobs/{name}/recipe?format=toml").status_code == 422


def test_a_job_shows_its_time_to_live_from_its_creation(site: Site) -> None:
    """Its own, else its model's, else the installation's: no part has to write it later."""
    site.stage.model("brief", default=False, ttlSecondsAfterFinished=1800)
    api = site.start(DEFAULT_TTL_SECONDS="3600")
    asked: dict[str, dict[str, Any]] = {
        "the installation's": {},
        "the model's": {"model": "brief"},
        "its own": {"model": "brief", "ttl_seconds_after_finished": 0},
    }
    created = {whose: create(api, **fields) for whose, fields in asked.items()}
    shown = {whose: job["request"]["ttl_seconds_after_finished"] for whose, job in created.items()}
    assert shown == {"the installation's": 3600, "the model's": 1800, "its own": 0}
    specs = {whose: site.stage.job(job["name"])["spec"]["ttlSecondsAfterFinished"] for whose, job in created.items()}
    assert specs == shown

    # 0 leaves it to the operator, whose setting may be another.
    other = site.start(DEFAULT_TTL_SECONDS="0")
    assert "ttlSecondsAfterFinished" not in site.stage.job(create(other)["name"])["spec"]
    # It is no part of what was asked for: a request that is sent again, and would get another one, is the same job.
    body, key = {"prompt": "a cat"}, {"Idempotency-Key": "once"}
    answers = [client.http.post("/v1/jobs", json=body, headers=key) for client in (api, other)]
    assert len({answer.json()["name"] for answer in answers}) == 1


def test_the_queue_is_by_priority_then_age(site: Site) -> None:
    api = site.start()
    first, second = create(api), create(api, model=MODEL)
    urgent = create(api, priority=5)
    assert urgent["queue_position"] == 1
    assert [show(api, job["name"])["queue_position"] for job in (urgent, first, second)] == [1, 2, 3]
    site.stage.bind(urgent["name"])
    wait_for("the queue to move", lambda: show(api, first["name"])["queue_position"] == 1)
    assert show(api, second["name"])["queue_position"] == 2
    assert show(api, urgent["name"])["queue_position"] is None


def test_lists_page_by_page(site: Site) -> None:
    api, stage = site.start(), site.stage
    stage.model("other", default=False)
    wait_for("the model", lambda: len(api.http.get("/v1/models").json()["models"]) == 2)
    names = [create(api, model="other" if number % 3 == 0 else None)["name"] for number in range(7)]
    stage.complete(names[1], png())
    api.wait_status(names[1], "completed")

    def pages(**query: Any) -> list[list[str]]:
        found: list[list[str]] = []
        token: str | None = None
        while True:
            answer = api.http.get("/v1/jobs", params={**query, **({"continue": token} if token else {})}).json()
            found.append([job["name"] for job in answer["jobs"]])
            token = answer["continue_token"]
            if token is None:
                return found

    newest_first = pages(limit=100)[0]
    assert sorted(newest_first) == sorted(names)
    # Within a second the names decide, which sort by time.
    assert newest_first == sorted(names, reverse=True)
    assert pages(limit=3) == [newest_first[:3], newest_first[3:6], newest_first[6:]]
    assert pages(limit=7) == [newest_first]
    assert pages(phase="Succeeded") == [[names[1]]]
    assert pages(phase=["Succeeded", "Pending"]) == [newest_first]
    assert sorted(pages(model="other")[0]) == sorted(names[::3])
    assert len(pages(model=MODEL)[0]) == 4
    wrongs: tuple[dict[str, str], ...] = ({"phase": "Nonsense"}, {"limit": "0"}, {"continue": "!"}, {"continue": "e30"})
    for wrong in wrongs:
        assert api.http.get("/v1/jobs", params=wrong).status_code == 422


def test_cancelling(api: Api, stage: Stage) -> None:
    name = api.generate()
    cancelled = api.http.post(f"/v1/jobs/{name}/cancel")
    assert cancelled.status_code == 202
    assert cancelled.json()["cancel_requested"] is True
    assert stage.job(name)["spec"]["cancel"] is True
    assert api.http.post(f"/v1/jobs/{name}/cancel").status_code == 202
    stage.cancelled(name)
    assert api.wait_status(name, "failed")["error_message"].startswith("Cancelled")
    assert api.http.post(f"/v1/jobs/{name}/cancel").status_code == 409
    assert api.http.post("/v1/jobs/nothing/cancel").status_code == 404


def test_deleting(api: Api) -> None:
    name = api.generate()
    assert api.http.delete(f"/v1/jobs/{name}").status_code == 204
    assert api.http.get(f"/v1/jobs/{name}").status_code == 404
    assert api.http.delete(f"/v1/jobs/{name}").status_code == 404
    assert name not in api.http.get("/v1/jobs").text


def test_a_path_says_all_that_it_may_be_asked_for_with(api: Api) -> None:
    for path, methods in (("/v1/jobs", "GET, HEAD, POST"), ("/v1/jobs/x", "DELETE, GET, HEAD"), ("/generate", "POST")):
        refused = api.http.patch(path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, methods)


def test_models(api: Api) -> None:
    models = api.http.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == [MODEL]
    assert models[0]["default"] is True
    assert models[0]["available"] is True
    assert models[0]["limits"]["num_inference_steps"] == 150
    assert (models[0]["defaults"]["num_inference_steps"], models[0]["defaults"]["guidance_scale"]) == (50, 7.5)


def test_metrics(site: Site) -> None:
    api = site.start()

    def requests(method: str, route: str, status: int) -> float:
        return api.metric(f'kubediffusion_api_requests_total{{method="{method}",route="{route}",status="{status}"}}')

    names = [api.generate() for _ in range(3)]
    for name in names[:2]:
        api.result(name)
    assert requests("POST", "/generate", 202) == 3
    assert requests("GET", "/results/{task_id}", 200) == 2
    assert api.metric("kubediffusion_api_cached_jobs") == 3
    assert api.metric("kubediffusion_api_unfinished_jobs") == 3
    site.stage.complete(names[0], png())
    api.wait_status(names[0], "completed")
    assert api.metric("kubediffusion_api_cached_jobs") == 3
    assert api.metric("kubediffusion_api_unfinished_jobs") == 2

    def delayed() -> bool:
        # Where the watch shows a job before its creation is answered, there is no delay to count.
        api.generate()
        return api.metric("kubediffusion_api_watch_lag_seconds_count") >= 1

    wait_for("the watch's delay", delayed)
    # No route of a client's choosing becomes a label; it is counted all the same.
    before = requests("GET", "none", 404)
    api.http.get("/nowhere/at/all")
    assert requests("GET", "none", 404) == before + 1
    assert "nowhere" not in api.http.get("/metrics").text
