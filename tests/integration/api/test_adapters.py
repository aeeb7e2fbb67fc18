"""Adapters over HTTP: which there are, which a job may name, by every door, and how its recipe makes it again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from integration.api.adapter_kit import add_adapter
from integration.api.api_kit import MODEL, Api, Site, Stage, png, serving
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, wait_for


def listed(api: Api) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in api.http.get("/v1/adapters").json()["adapters"]}


def problem(api: Api, path: str, **body: object) -> str:
    answer = api.http.post(path, json={"prompt": "a cat", **body})
    assert answer.status_code == 422, answer.text
    (found,) = answer.json()["detail"]
    return f"{found['loc'][-1]}: {found['msg']}"


@pytest.fixture(scope="module")
def own(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace for the tests of this module: other tests list the models of theirs."""
    namespace = Namespace(cluster, "adapters-api")
    namespace.create()
    with serving(namespace, tmp_path_factory.mktemp("adapters")) as site:
        yield site
    namespace.delete()


@pytest.fixture
def stage(own: Site) -> Stage:
    return own.stage


@pytest.fixture(scope="module")
def api(own: Site) -> Api:
    return own.start(RATE_LIMIT="")


@pytest.fixture
def adapters(api: Api, stage: Stage) -> None:
    """Of the default model an adapter that is loaded, one that is not and one that is refused; one of another model."""
    add_adapter(
        stage.namespace, "ink", ready=("Loaded", "workers that hold it: 1"), scale=0.5, triggerWords=["ink drawing"]
    )
    add_adapter(stage.namespace, "crayon")
    add_adapter(stage.namespace, "wide", ready=("RankTooLarge", "rank 512; 64 at most"))
    stage.model("flux", default=False)
    add_adapter(stage.namespace, "oil", "flux")
    wait_for("the adapters", lambda: len(listed(api)) == 4 and listed(api)["wide"]["reason"])
    wait_for("the model", lambda: len(api.http.get("/v1/models").json()["models"]) == 2)


@pytest.mark.usefixtures("adapters")
def test_adapters_are_listed_alone_and_with_their_models(api: Api) -> None:
    found = listed(api)
    assert found["ink"] == {
        "name": "ink",
        "model": MODEL,
        "scale": 0.5,
        "trigger_words": ["ink drawing"],
        "ready": True,
        "reason": "Loaded",
        "message": "workers that hold it: 1",
        "rank": 8,
        "digest": "ab" * 32,
    }
    assert (found["crayon"]["ready"], found["crayon"]["reason"], found["crayon"]["digest"]) == (False, None, None)
    models = {each["name"]: each for each in api.http.get("/v1/models").json()["models"]}
    assert [each["name"] for each in models[MODEL]["adapters"]] == ["crayon", "ink", "wide"]
    assert [each["name"] for each in api.http.get("/v1/models/flux").json()["adapters"]] == ["oil"]


@pytest.mark.usefixtures("adapters")
def test_a_job_names_adapters_and_its_recipe_names_them_again(api: Api, stage: Stage) -> None:
    asked = [{"name": "ink", "scale": 0.8}, {"name": "crayon"}]
    created = api.http.post("/v1/jobs", json={"prompt": "a cat", "adapters": asked})
    assert created.status_code == 201, created.text
    name = created.json()["name"]
    assert created.json()["request"]["adapters"] == [asked[0], {"name": "crayon", "scale": None}]
    assert stage.job(name)["spec"]["adapters"] == asked
    stage.bind(name)
    applied = [{"name": "ink", "scale": 0.8, "digest": "ab" * 32}, {"name": "crayon", "scale": 1.0}]
    stage.succeed(name, png(), adapters=applied)
    wait_for("the end", lambda: api.http.get(f"/v1/jobs/{name}").json()["phase"] == "Succeeded")
    ran = api.http.get(f"/v1/jobs/{name}").json()["parameters"]["adapters"]
    assert ran == [applied[0], {**applied[1], "digest": None}]
    recipe = yaml.safe_load(api.http.get(f"/v1/jobs/{name}/recipe").text)
    assert recipe["spec"]["adapters"] == [{"name": "ink", "scale": 0.8}, {"name": "crayon", "scale": 1.0}]


KNOWN = "those of model 'tiny': crayon, ink, wide"


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["pencil"], f"'pencil': no such LoRAAdapter; {KNOWN}"),
        (["oil"], f"'oil': it is for model 'flux'; {KNOWN}"),
        (["wide"], "'wide' cannot be used (RankTooLarge): rank 512; 64 at most"),
        (["ink", "ink"], "'ink' is named 2 times; name it once"),
    ],
    ids=str,
)
def test_an_adapter_that_a_job_cannot_have_is_refused_with_those_that_it_can(
    api: Api, asked: list[str], words: str
) -> None:
    for path in ("/v1/jobs", "/generate"):
        assert problem(api, path, adapters=[{"name": name} for name in asked]) == f"adapters: {words}"


@pytest.mark.parametrize(
    "asked",
    [
        [],
        "ink",
        [{"name": "ink", "scale": 11}],
        [{"name": "ink", "scale": True}],
        [{"name": "Ink"}],
        [{"name": "ink", "path": "/etc"}],
        [{"name": f"a{n}"} for n in range(5)],
    ],
    ids=str,
)
def test_what_is_no_list_of_adapters_is_refused(api: Api, asked: object) -> None:
    answer = api.http.post("/v1/jobs", json={"prompt": "a cat", "adapters": asked})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", "adapters"]


@pytest.mark.usefixtures("adapters")
def test_a_model_that_takes_none_refuses_them(api: Api, stage: Stage) -> None:
    stage.knows("flux", name="OddPipeline", adapters=False)
    wait_for(
        "what the model's worker told",
        lambda: (
            "takes none"
            in api.http.post("/v1/jobs", json={"prompt": "a cat", "model": "flux", "adapters": [{"name": "oil"}]}).text
        ),
    )


@pytest.mark.usefixtures("adapters")
def test_the_web_ui_s_clients_name_them_in_the_prompt(api: Api, stage: Stage) -> None:
    assert [each["name"] for each in api.http.get("/sdapi/v1/loras").json()] == ["crayon", "ink", "oil", "wide"]
    answers = []
    body = {"prompt": "a cat <lora:ink:0.8>, asleep <lora:crayon>"}
    call = threading.Thread(target=lambda: answers.append(api.http.post("/sdapi/v1/txt2img", json=body, timeout=60)))
    call.start()
    (job,) = wait_for("its job", lambda: [job for job in stage.jobs() if job["spec"]["prompt"] == "a cat , asleep"])
    assert job["spec"]["adapters"] == [{"name": "ink", "scale": 0.8}, {"name": "crayon"}]
    name = job["metadata"]["name"]
    stage.bind(name)
    stage.succeed(name, png(), adapters=[{"name": "ink", "scale": 0.8, "digest": "ab" * 32}])
    call.join(60)
    assert answers[0].status_code == 200, answers[0].text
    assert "a cat , asleep <lora:ink:0.8>\\n" in answers[0].json()["info"]

    refused = api.http.post("/sdapi/v1/txt2img", json={"prompt": "a cat <lora:pencil:1>"})
    assert refused.status_code == 422
    assert refused.json()["errors"] == f"prompt: 'pencil': no such LoRAAdapter; {KNOWN}"


@pytest.mark.usefixtures("adapters")
def test_other_doors_take_them_beside_their_own_fields(api: Api) -> None:
    asked = [{"name": "pencil"}]
    openai = api.http.post("/v1/images/generations", json={"prompt": "a cat", "adapters": asked})
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "adapters")
    body = {"input": {"prompt": "a cat", "adapters": asked}}
    replicate = api.http.post(f"/replicate/v1/models/default/{MODEL}/predictions", json=body)
    assert replicate.status_code == 422
    assert "'pencil': no such LoRAAdapter" in replicate.text
