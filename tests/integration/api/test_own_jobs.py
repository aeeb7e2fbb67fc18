"""A caller whose scope is its own jobs: others' are, by every door, jobs that nobody has."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from integration.api.api_kit import Api, Site, png
from kubediffusion.local.testing import json_lines, wait_for

ALICE, BOB, ADMIN = ({"X-API-Key": f"{name}-key"} for name in ("alice", "bob", "admin"))


@pytest.fixture
def own(site: Site, tmp_path: Path) -> Api:
    """An API whose keys see their own jobs, but for one."""
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("alice", "bob", "admin"):
        (keys / name).write_text(f"{name}-key")
    return site.start(API_KEYS_FILE=str(keys), SCOPE="own", KEY_LIMITS='{"admin": {"scope": "namespace"}}')


def test_others_jobs_do_not_exist(own: Api, site: Site) -> None:
    names = {
        who["X-API-Key"]: own.http.post("/v1/jobs", json={"prompt": "a cat"}, headers=who).json()["name"]
        for who in (ALICE, BOB)
    }
    mine, others = names["alice-key"], names["bob-key"]
    site.stage.create("by-kubectl", {"prompt": "a cat"})
    wait_for("the watch", lambda: own.http.get("/v1/jobs/by-kubectl", headers=ADMIN).status_code == 200)
    site.stage.complete(others, png())
    wait_for("the end", lambda: own.http.get(f"/v1/jobs/{others}", headers=BOB).json()["phase"] == "Succeeded")

    # As a job that nobody has, to the byte.
    nobody = own.http.get("/v1/jobs/no-such-job", headers=ALICE)
    assert nobody.status_code == 404
    for name in (others, "by-kubectl"):
        for method, path in OF_A_JOB:
            refused = own.http.request(method, path.format(name), headers=ALICE)
            assert (refused.status_code, refused.json()) == (404, nobody.json()), path
        for method, path in OF_A_PREDICTION:
            refused = own.http.request(method, path.format(name), headers=ALICE)
            assert (refused.status_code, refused.json()["detail"]) == (404, nobody.json()["detail"]), path
    assert site.stage.job(others)["spec"].get("cancel") is None
    assert own.http.get(f"/results/{others}", headers=BOB).json()["status"] == "completed"

    for who, seen in ((ALICE, {mine}), (BOB, {others}), (ADMIN, {mine, others, "by-kubectl"})):
        assert {job["name"] for job in own.http.get("/v1/jobs", headers=who).json()["jobs"]} == seen
        listed = own.http.get("/replicate/v1/predictions", headers=who).json()["results"]
        assert {prediction["id"] for prediction in listed} == seen
        assert {name for name in (mine, "by-kubectl", others) if name in _streamed(own, who)} == seen - {others}

    # What is its own it may do as before, and an administrator what is not.
    assert own.http.get(f"/results/{mine}", headers=ALICE).json()["status"] == "pending"
    assert own.http.post(f"/v1/jobs/{mine}/cancel", headers=ALICE).status_code == 202
    assert own.http.delete(f"/v1/jobs/{mine}", headers=ALICE).status_code == 204
    assert own.http.delete("/v1/jobs/by-kubectl", headers=ADMIN).status_code == 204
    assert _audited(own) == [
        ("create", mine, "alice"),
        ("create", others, "bob"),
        ("cancel", mine, "alice"),
        ("delete", mine, "alice"),
        ("delete", "by-kubectl", "admin"),
    ]


OF_A_JOB = [
    ("GET", "/results/{}"),
    ("GET", "/results/{}?image=url"),
    ("GET", "/results/{}?wait=5"),
    ("GET", "/v1/jobs/{}"),
    ("GET", "/v1/jobs/{}/recipe"),
    ("GET", "/v1/jobs/{}/events"),
    ("GET", "/v1/jobs/{}/preview"),
    ("GET", "/v1/jobs/{}/images/0"),
    ("GET", "/v1/jobs/{}/images/0?image=url"),
    ("POST", "/v1/jobs/{}/cancel"),
    ("DELETE", "/v1/jobs/{}"),
]
OF_A_PREDICTION = [
    ("GET", "/replicate/v1/predictions/{}"),
    ("GET", "/replicate/v1/predictions/{}/output/0.png"),
    ("POST", "/replicate/v1/predictions/{}/cancel"),
]


def _streamed(api: Api, who: dict[str, str]) -> str:
    """Return what a stream of all jobs tells before its first bookmark."""
    told = ""
    with api.http.stream("GET", "/v1/events", headers=who) as stream:
        for line in stream.iter_lines():
            if "bookmark" in line:
                break
            told += line
    return told


def _audited(api: Api) -> list[tuple[str, str, str]]:
    lines = [line for line in json_lines(api.log.read_text()) if line.get("event") == "audit"]
    assert {line["authentication"] for line in lines} == {"apiKey"}
    assert all(line["request_id"] for line in lines)
    return [(line["action"], line["job"], line["client"]) for line in lines]


def test_an_api_that_would_ask_nobody_does_not_start(shared: Site, tmp_path: Path) -> None:
    api = Api(shared.stage.namespace, tmp_path, {"KUBEDIFFUSION_ALLOW_UNAUTHENTICATED": "false"})
    api.launch()
    try:
        assert api.wait() == 78
        with pytest.raises(httpx.TransportError):
            api.http.get("/livez")
        assert "KUBEDIFFUSION_ALLOW_UNAUTHENTICATED=true" in json_lines(api.log.read_text())[-1]["message"]
    finally:
        api.close()
