"""Who gets in, and how often: keys, rates, caps, and the addresses that proxies vouch for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from integration.api.api_kit import MODEL, Api, Site, Stage, StartApi, generate, png, problems
from kubediffusion.local.testing import json_lines, wait_for

OPEN = (
    "/",
    "/page/page.js",
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/docs/assets/swagger-ui.css",
)


def test_keys(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "alice").write_text("alice-key\n")
    api = start_api(API_KEYS_FILE=str(keys))
    for path in OPEN:
        assert api.http.get(path).status_code == 200, path
    missing = api.http.post("/generate", json={"prompt": "a cat"})
    assert missing.status_code == 401
    assert missing.headers["WWW-Authenticate"] == "Bearer"
    assert missing.headers["X-Request-ID"]
    for path in ("/results/x", "/v1/jobs", "/v1/models", "/nowhere"):
        assert api.http.get(path).status_code == 401, path
        assert api.http.get(path, headers={"X-API-Key": "wrong"}).status_code == 403, path
    for headers in ({"Authorization": "Bearer alice-key"}, {"X-API-Key": "alice-key"}):
        accepted = api.http.post("/generate", json={"prompt": "a cat"}, headers=headers)
        assert accepted.status_code == 202
        assert api.http.get(f"/results/{accepted.json()['task_id']}", headers=headers).status_code == 200

    # Another client is let in, and the first one locked out, without a restart.
    (keys / "bob").write_text("bob-key")
    (keys / "alice").unlink()
    wait_for("the new key", lambda: _allowed(api, "bob-key"))
    wait_for("the old key's end", lambda: not _allowed(api, "alice-key"))
    log = api.log.read_text()
    lines = json_lines(log)
    # It tells of keys and of who used them, by their clients' names.
    assert [line["client"] for line in lines if "client" in line] == ["alice", "alice"]
    assert [line["clients"] for line in lines if "clients" in line][-1] == ["bob"]
    for key in ("alice-key", "bob-key"):
        assert key not in log


def _allowed(api: Api, key: str) -> bool:
    return api.http.get("/v1/models", headers={"X-API-Key": key}).status_code == 200


def test_the_rate_limit_is_each_clients_own(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("alice", "bob"):
        (keys / name).write_text(f"{name}-key")
    api = start_api(API_KEYS_FILE=str(keys), RATE_LIMIT="3/hour")
    alice, bob = {"X-API-Key": "alice-key"}, {"X-API-Key": "bob-key"}
    # Both doors count, and polling does not.
    statuses = [
        api.http.post(path, json={"prompt": "a cat"}, headers=alice).status_code
        for path in ("/generate", "/v1/jobs", "/generate", "/generate", "/v1/jobs")
    ]
    assert statuses == [202, 201, 202, 429, 429]
    limited = api.http.post("/generate", json={"prompt": "a cat"}, headers=alice)
    assert 3000 < int(limited.headers["Retry-After"]) <= 3600
    assert api.http.post("/generate", json={"prompt": "a cat"}, headers=bob).status_code == 202
    assert api.http.get("/v1/jobs", headers=alice).status_code == 200


def test_each_door_says_what_is_left_of_the_rate(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="4/hour", CORS_ORIGINS="*")

    def left(answer: httpx.Response) -> str:
        assert answer.headers["RateLimit-Policy"] == '"3600s";q=4;w=3600'
        name, remaining, seconds = answer.headers["RateLimit"].split(";")
        assert (name, seconds[:3]) in {('"3600s"', "t=3"), ('"3600s"', "t=0")}
        return remaining

    assert left(generate(api, prompt="")) == "r=4"
    accepted = api.http.post("/generate", json={"prompt": "a cat"}, headers={"Origin": "https://example.com"})
    assert left(accepted) == "r=3"
    assert "RateLimit" in accepted.headers["Access-Control-Expose-Headers"]
    assert left(api.http.post("/v1/jobs", json={"jobs": [{"prompt": "a cat"}] * 2})) == "r=1"
    predictions = f"/replicate/v1/models/default/{MODEL}/predictions"
    assert left(api.http.post(predictions, json={"input": {"prompt": "a cat"}})) == "r=0"
    for path, body in (
        ("/generate", {"prompt": "a cat"}),
        ("/v1/jobs", {"prompt": "a cat"}),
        ("/v1/images/generations", {"prompt": "a cat"}),
        ("/sdapi/v1/txt2img", {"prompt": "a cat"}),
        (predictions, {"input": {"prompt": "a cat"}}),
        ("/replicate/v1/predictions", {"version": f"default/{MODEL}", "input": {"prompt": "a cat"}}),
    ):
        refused = api.http.post(path, json=body)
        assert (refused.status_code, left(refused)) == (429, "r=0"), path
    assert "RateLimit" not in api.http.get("/v1/jobs").headers


def test_addresses_behind_a_trusted_proxy_count_apart(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="1/hour", TRUSTED_PROXIES="127.0.0.1")
    for address in ("192.0.2.1", "192.0.2.2"):
        headers = {"X-Forwarded-For": address}
        statuses = [api.http.post("/generate", json={"prompt": "x"}, headers=headers).status_code for _ in range(2)]
        assert statuses == [202, 429]


def test_an_address_that_nobody_vouches_for_is_not_believed(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="1/hour")
    statuses = [
        api.http.post("/generate", json={"prompt": "x"}, headers={"X-Forwarded-For": address}).status_code
        for address in ("192.0.2.1", "192.0.2.2")
    ]
    assert statuses == [202, 429]


def test_the_cap_on_unfinished_jobs(site: Site) -> None:
    api = site.start(MAX_UNFINISHED_JOBS="2")
    first = api.generate()
    api.generate()
    full = generate(api)
    assert full.status_code == 429
    assert full.headers["Retry-After"]
    site.stage.cancelled(first)
    wait_for("room", lambda: generate(api).status_code == 202)
    assert generate(api).status_code == 429


def test_one_key_has_a_cap_and_a_highest_priority_of_its_own(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("carol", "dave"):
        (keys / name).write_text(f"{name}-key")
    limits = {"dave": {"maxUnfinishedJobs": 3, "maxPriority": 5}}
    api = start_api(API_KEYS_FILE=str(keys), MAX_UNFINISHED_JOBS_BY_KEY="2", KEY_LIMITS=json.dumps(limits))

    def post(name: str, **fields: object) -> httpx.Response:
        return api.http.post("/generate", json={"prompt": "a cat", **fields}, headers={"X-API-Key": f"{name}-key"})

    assert [post("carol").status_code for _ in range(3)] == [202, 202, 429]
    assert "of this API key" in post("carol").json()["detail"]
    # Another key has room of its own, and a restart forgets nothing.
    assert post("dave").status_code == 202
    api.kill()
    api.start()
    assert post("carol").status_code == 429
    assert problems(post("dave", priority=6)) == {
        "body.priority": "6 exceeds the highest priority that this client may ask for, 5"
    }
    assert [post("dave", priority=5).status_code for _ in range(3)] == [202, 202, 429]


def test_addresses_of_jobs_have_the_prefix_that_clients_see(start_api: StartApi, stage: Stage) -> None:
    api = start_api(ROOT_PATH="/images")
    created = api.http.post("/images/v1/jobs/", json={"prompt": "a cat"})
    assert created.status_code == 201
    location = created.headers["Location"]
    assert location == f"/images/v1/jobs/{created.json()['name']}"
    stage.complete(created.json()["name"], png())
    api.wait_phase(created.json()["name"], "Succeeded")
    image = api.http.get(location).json()["images"][0]
    assert api.http.get(image["path"]).content == png()
    assert image["path"].startswith("/images/v1/")


def test_what_a_client_writes_into_a_forwarded_header_gives_it_no_more(start_api: StartApi) -> None:
    for proxies in ("127.0.0.1", "*"):
        api = start_api(RATE_LIMIT="1/hour", TRUSTED_PROXIES=proxies)
        statuses = [
            api.http.post(
                "/generate", json={"prompt": "x"}, headers={"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.1"}
            ).status_code
            for number in range(3)
        ]
        assert statuses == [202, 429, 429]


def test_one_key_has_a_rate_and_models_of_its_own(site: Site, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("erin", "frank"):
        (keys / name).write_text(f"{name}-key")
    limits = {"erin": {"rateLimit": "8/hour", "models": ["large", "small"]}}
    site.stage.model("small", default=False)
    api = site.start(API_KEYS_FILE=str(keys), RATE_LIMIT="2/hour", KEY_LIMITS=json.dumps(limits))
    wait_for("the model", lambda: "small" in api.http.get("/v1/models", headers={"X-API-Key": "erin-key"}).text)

    def post(name: str, path: str = "/generate", **fields: object) -> httpx.Response:
        return api.http.post(path, json={"prompt": "a cat", **fields}, headers={"X-API-Key": f"{name}-key"})

    # The default model is none of them, and may be another by the time the job is bound.
    words = "Name a model that this API key may use: large, small"
    assert problems(post("erin")) == {"body.model": words}
    assert problems(post("erin", model=MODEL)) == {"body.model": words}
    lists = api.http.post(
        "/v1/jobs",
        json={"jobs": [{"prompt": "a", "model": "small"}, {"prompt": "a"}]},
        headers={"X-API-Key": "erin-key"},
    )
    assert problems(lists) == {"body.jobs.1.model": words}
    assert post("erin", "/v1/images/generations", model=MODEL).json()["error"]["param"] == "model"
    accepted = post("erin", model="small")
    assert (accepted.status_code, accepted.headers["RateLimit-Policy"]) == (202, '"3600s";q=8;w=3600')
    assert [post("frank").status_code for _ in range(3)] == [202, 202, 429]


def test_the_log_says_who_did_what(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("grace", "heidi"):
        (keys / name).write_text(f"{name}-key")
    api = start_api(API_KEYS_FILE=str(keys))

    def ask(name: str, method: str, path: str, **content: Any) -> httpx.Response:
        headers = {"X-API-Key": f"{name}-key", "X-Request-ID": f"{name}-{method}-{path}"}
        return api.http.request(method, path, headers=headers, **content)

    jobs = ask("grace", "POST", "/v1/jobs", json={"jobs": [{"prompt": "a secret"}] * 2}).json()["jobs"]
    one, other = (f"/v1/jobs/{each['job']['name']}" for each in jobs)
    ask("heidi", "POST", f"{one}/cancel")
    ask("heidi", "DELETE", other)
    lines = json_lines(api.log.read_text())
    said = [(line["message"], line["client"], line["request_id"]) for line in lines if "job" in line]
    assert said == [
        ("job accepted", "grace", "grace-POST-/v1/jobs"),
        ("job accepted", "grace", "grace-POST-/v1/jobs"),
        ("job cancelled by a client", "heidi", f"heidi-POST-{one}/cancel"),
        ("job deleted by a client", "heidi", f"heidi-DELETE-{other}"),
    ]
    assert "a secret" not in api.log.read_text()
