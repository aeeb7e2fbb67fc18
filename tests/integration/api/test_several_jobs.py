"""``POST /v1/jobs`` with several jobs at once, and the list that finds them by their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from integration.api.api_kit import MODEL, Api, Site, Stage, StartApi, png, problems
from kubediffusion.local.testing import wait_for
from kubediffusion.resources import meta


def send(api: Api, *prompts: str, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    jobs = [{"prompt": prompt, **fields} for prompt in prompts]
    return api.http.post("/v1/jobs", json={"jobs": jobs}, headers=headers)


def created(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 201, answer.text
    assert {(each["status"], each["detail"]) for each in answer.json()["jobs"]} == {(201, None)}
    return [each["job"]["name"] for each in answer.json()["jobs"]]


def found(api: Api, text: str, **query: Any) -> list[str]:
    """Return the prompts of the jobs that have a text in them, newest first."""
    answer = api.http.get("/v1/jobs", params={"text": text, **query})
    assert answer.status_code == 200, answer.text
    return [job["prompt"] for job in answer.json()["jobs"]]


def test_a_hundred_jobs_at_once_in_the_order_of_the_list(site: Site) -> None:
    api = site.start()
    prompts = [f"a fox, number {number:03}" for number in range(100)]
    names = created(send(api, *prompts, num_inference_steps=5))
    assert len(set(names)) == 100
    spec = site.stage.job(names[42])["spec"]
    assert (spec["prompt"], spec["numInferenceSteps"]) == (prompts[42], 5)
    # Some are created at once, and the API server's clock may turn between them: which of them is newer is open.
    assert sorted(found(api, "a fox", limit=100)) == prompts
    assert problems(send(api, *prompts, "one more")) == {
        "body.jobs": "List should have at most 100 items after validation, not 101"
    }


def test_what_is_wrong_with_one_leaves_all_uncreated(api: Api) -> None:
    jobs: list[object] = [
        {"prompt": "a dodo, and all is well"},
        {"prompt": "a dodo", "steps": 3},
        {"prompt": "a dodo", "acceleration": {"feature_cachin": {}}},
        {"prompt": "a dodo", "width": 65},
        {"prompt": "a dodo", "model": "none-such"},
        {"prompt": "a dodo", "num_images": 10_000},
        "a dodo",
    ]
    refused = problems(api.http.post("/v1/jobs", json={"jobs": jobs}))
    # The first look is at what holds for every model.
    assert set(refused) == {
        "body.jobs.1.steps",
        "body.jobs.2.acceleration.feature_cachin",
        "body.jobs.3.width",
        "body.jobs.5.num_images",
        "body.jobs.6",
    }
    assert refused["body.jobs.1.steps"] == "Unknown field 'steps'; did you mean 'num_inference_steps'?"
    assert refused["body.jobs.2.acceleration.feature_cachin"].endswith("did you mean 'feature_caching'?")
    # The second is at what its own model takes.
    refused = problems(
        api.http.post("/v1/jobs", json={"jobs": [jobs[0], jobs[4], {"prompt": "a dodo", "num_inference_steps": 151}]})
    )
    assert set(refused) == {"body.jobs.1.model", "body.jobs.2.num_inference_steps"}
    assert problems(api.http.post("/v1/jobs", json={"jobs": []}))
    assert problems(api.http.post("/v1/jobs", json={"jobs": [{"prompt": "a dodo"}], "prompt": "a dodo"})) == {
        "body.prompt": "Unknown field 'prompt'"
    }
    assert found(api, "a dodo") == []


def test_each_job_counts_against_the_rate_and_the_caps(site: Site, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("alice", "bob"):
        (keys / name).write_text(f"{name}-key")
    alice, bob = {"X-API-Key": "alice-key"}, {"X-API-Key": "bob-key"}
    api = site.start(
        API_KEYS_FILE=str(keys), RATE_LIMIT="5/hour", MAX_UNFINISHED_JOBS="7", MAX_UNFINISHED_JOBS_BY_KEY="6"
    )
    created(send(api, *["a"] * 4, headers=alice))
    over = send(api, "a", "a", headers=alice)
    assert over.status_code == 429
    assert int(over.headers["Retry-After"]) > 3000
    # What did not fit was not counted.
    created(send(api, "a", headers=alice))
    assert "more than the rate ever lets pass" in problems(send(api, *["a"] * 6, headers=bob))["body.jobs"]
    over = send(api, "a", "a", "a", headers=bob)
    assert (over.status_code, over.json()["detail"].partition(";")[0]) == (
        429,
        "5 jobs of at most 7 are unfinished already",
    )
    created(send(api, "a", "a", headers=bob))

    other = site.start(API_KEYS_FILE=str(keys), RATE_LIMIT="", MAX_UNFINISHED_JOBS_BY_KEY="6")
    wait_for("the jobs", lambda: other.metric("kubediffusion_api_unfinished_jobs") == 7)
    over = send(other, "a", "a", headers=alice)
    assert over.json()["detail"].startswith("5 jobs of at most 6 of this API key are unfinished already")
    created(send(other, "a", headers=alice))


def test_an_idempotency_key_is_of_the_whole_list(api: Api, replica: Api) -> None:
    key = {"Idempotency-Key": "a-list"}
    names = created(send(api, "a hen", "a hen", "a cow", headers=key))
    assert len(set(names)) == 3
    for each in (api, replica):
        assert created(send(each, "a hen", "a hen", "a cow", headers=key)) == names
    wrong = problems(send(replica, "a hen", "a cat", "a cow", headers=key))
    assert list(wrong) == ["header.Idempotency-Key"]
    assert wrong["header.Idempotency-Key"].startswith("Job 1 of the list: This key has been used")
    # The key of a request for one job is another.
    assert api.http.post("/v1/jobs", json={"prompt": "a hen"}, headers=key).json()["name"] not in names


def test_what_the_cluster_refuses_ends_one_alone(site: Site) -> None:
    api, name = site.start(RATE_LIMIT=""), site.stage.namespace.name
    policies = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": [meta.GROUP],
        "apiVersions": [meta.VERSION],
        "resources": [meta.GENERATION_JOBS],
        "operations": ["CREATE"],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    site.stage.namespace.cluster.apply(
        [
            {
                "apiVersion": policies,
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": name},
                "spec": {
                    "matchConstraints": {"namespaceSelector": selector, "resourceRules": [rule]},
                    "validations": [{"expression": "!object.spec.prompt.contains('pig')", "message": "no pigs"}],
                },
            },
            {
                "apiVersion": policies,
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": name},
                "spec": {"policyName": name, "validationActions": ["Deny"]},
            },
        ]
    )
    try:
        wait_for("the policy", lambda: send(api, "a pig").status_code == 422)
        answer = send(api, "a dog", "a pig", "a goat")
        none = send(api, "a pig", "two pigs")
    finally:
        kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
        site.stage.namespace.cluster.kubectl("delete", kinds, name)
    assert answer.status_code == 207
    dog, pig, goat = answer.json()["jobs"]
    assert [each["status"] for each in (dog, pig, goat)] == [201, 422, 201]
    assert (pig["job"], [entry["loc"] for entry in pig["detail"]]) == (None, [["body"]])
    assert "no pigs" in pig["detail"][0]["msg"]
    assert {dog["job"]["prompt"], goat["job"]["prompt"]} == {"a dog", "a goat"}
    # Where there is none at all, it is the error that one job alone would have had.
    assert "no pigs" in problems(none)["body"]


def test_one_request_may_wait_for_all(api: Api, stage: Stage) -> None:
    names = created(send(api, "a yak", "a yak"))
    for name in names:
        stage.complete(name, png())
    again = send(api, "a yak", headers={"Prefer": "wait=1"})
    assert (again.headers["Preference-Applied"], again.json()["jobs"][0]["job"]["phase"]) == ("wait=1", "Pending")
    key = {"Idempotency-Key": "two-gnus"}
    names = created(send(api, "a gnu", "a gnu", headers=key))
    for name in names:
        stage.complete(name, png())
    waited = send(api, "a gnu", "a gnu", headers={**key, "Prefer": "wait=30"})
    assert [each["job"]["phase"] for each in waited.json()["jobs"]] == ["Succeeded", "Succeeded"]


def test_a_list_may_be_longer_than_a_job(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="", MAX_LIST_BYTES="100000")
    assert len(created(send(api, *[f"a whale {'~' * 3900}"] * 20))) == 20
    assert send(api, *["~" * 3900] * 30).status_code == 413
    assert api.http.post("/generate", json={"prompt": "~" * 70_000}).status_code == 413


def test_jobs_are_found_by_the_text_of_their_prompts(site: Site) -> None:
    api = site.start(RATE_LIMIT="")
    long = "sea " * 900
    created(send(api, "A red Fox", "a RED hen", f"{long}with a red fish", "straße"))
    created(send(api, "a red cow", model=MODEL, priority=5))
    assert found(api, "red") == ["a red cow", f"{long}with a red fish", "a RED hen", "A red Fox"]
    assert found(api, "red fi") == [f"{long}with a red fish"]
    assert found(api, "STRASSE") == ["straße"]
    assert found(api, "red", model=MODEL, phase="Pending", limit=1) == ["a red cow"]
    assert found(api, "no such thing") == []
    for wrong in ("", "x" * 201):
        assert api.http.get("/v1/jobs", params={"text": wrong}).status_code == 422
