"""What the API server takes as a GenerationJob, and what it refuses, by the field's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integration.resources.identities import Room, a_job, refusal
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import InvalidError
from kubediffusion.resources.generation_job import GenerationJobSpec, Phase

OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("prompt", ""),
    ("prompt", "x" * 4001),
    ("prompt", 7),
    ("negativePrompt", "x" * 4001),
    ("model", "Emoji"),
    ("model", "-emoji"),
    ("model", "a.b"),
    ("model", "x" * 41),
    ("numInferenceSteps", 0),
    ("numInferenceSteps", 1001),
    ("numInferenceSteps", 2.5),
    ("guidanceScale", -0.1),
    ("guidanceScale", 50.1),
    ("guidanceScale", "NaN"),
    ("seed", -1),
    ("seed", 2**63),
    ("width", 56),
    ("width", 4104),
    ("width", 100),
    ("height", 56),
    ("height", 4104),
    ("height", 100),
    ("numImages", 0),
    ("numImages", 17),
    ("scheduler", "TurboScheduler"),
    ("acceleration", {"guidanceInterval": {"stop": 1.1}}),
    ("acceleration", {"guidanceInterval": {"start": -0.1}}),
    ("acceleration", {"guidanceInterval": {"start": 1}}),
    ("acceleration", {"guidanceInterval": {"start": 0.5, "stop": 0.5}}),
    ("acceleration", {"featureCaching": {"interval": 0}}),
    ("acceleration", {"featureCaching": {"interval": 21}}),
    ("acceleration", {"featureCaching": {}}),
    ("inputs", []),
    ("inputs", [{"role": "image"}]),
    ("inputs", [{"role": "image", "id": "A" * 64}]),
    ("inputs", [{"role": "image", "id": "a" * 63}]),
    ("inputs", [{"role": "image", "id": "../" + "a" * 61}]),
    ("inputs", [{"role": "painting", "id": "a" * 64}]),
    ("inputs", [{"role": "image", "id": "a" * 64}, {"role": "image", "id": "b" * 64}]),
    ("inputs", [{"role": "mask", "id": "a" * 64}]),
    ("adapters", []),
    ("adapters", [{"scale": 1}]),
    ("adapters", [{"name": "Crayon"}]),
    ("adapters", [{"name": "a.b"}]),
    ("adapters", [{"name": "x" * 64}]),
    ("adapters", [{"name": "crayon", "scale": 10.1}]),
    ("adapters", [{"name": "crayon", "scale": -10.1}]),
    ("adapters", [{"name": "crayon", "scale": "NaN"}]),
    ("adapters", [{"name": "crayon", "path": "/models"}]),
    ("adapters", [{"name": "crayon"}, {"name": "crayon", "scale": 0.5}]),
    ("adapters", [{"name": f"a{n}"} for n in range(5)]),
    ("strength", -0.1),
    ("strength", 1.1),
    ("strength", 0.5),
    ("priority", -1_000_001),
    ("priority", 1_000_001),
    ("activeDeadlineSeconds", 0),
    ("backoffLimit", -1),
    ("backoffLimit", 101),
    ("ttlSecondsAfterFinished", -1),
    ("deletionPolicy", "Shred"),
    ("deterministic", "yes"),
    ("cancel", "yes"),
    ("suspend", 1),
    ("webhook", {}),
    ("webhook", {"url": "example.com"}),
    ("webhook", {"url": "ftp://example.com"}),
    ("webhook", {"url": "https://"}),
    ("webhook", {"url": "https://me:secret@example.com/"}),
    ("webhook", {"url": "https://example.com\\@10.0.0.1/"}),
    ("webhook", {"url": "https://example.com/a b"}),
    ("webhook", {"url": "https://example.com/" + "x" * 2048}),
    ("webhook", {"url": "https://example.com", "events": []}),
    ("webhook", {"url": "https://example.com", "events": ["logs"]}),
    ("webhook", {"url": "https://example.com", "events": ["completed", "completed"]}),
    ("webhook", {"url": "https://example.com", "secretName": "Mine"}),
]
AT_THE_EDGE: list[tuple[str, Any]] = [
    ("prompt", "狐" * 4000),
    ("negativePrompt", ""),
    ("model", "x" * 40),
    ("numInferenceSteps", 150),
    ("guidanceScale", 0),
    ("guidanceScale", 50),
    ("seed", 0),
    ("seed", 2**63 - 1),
    ("width", 64),
    ("height", 1024),
    ("numImages", 4),
    ("acceleration", {}),
    ("acceleration", {"guidanceInterval": {}, "featureCaching": {"interval": 1}}),
    ("acceleration", {"guidanceInterval": {"start": 0, "stop": 0.01}, "featureCaching": {"interval": 20}}),
    ("inputs", [{"role": "image", "id": "0123456789abcdef" * 4}]),
    ("inputs", [{"role": "mask", "id": "a" * 64}, {"role": "image", "id": "a" * 64}]),
    ("adapters", [{"name": "x" * 63, "scale": 10}, {"name": "a", "scale": -10}, {"name": "b"}, {"name": "c"}]),
    ("priority", -1_000_000),
    ("backoffLimit", 0),
    ("ttlSecondsAfterFinished", 0),
    ("webhook", {"url": "https://example.com:8443?job=1"}),
    ("webhook", {"url": "https://[2001:db8::1]/" + "x" * 2026, "events": ["completed", "started"]}),
]
TWO_VALUES: dict[str, tuple[Any, Any]] = {
    "model": ("a", "b"),
    "prompt": ("a fox", "a hare"),
    "negative_prompt": ("rain", "fog"),
    "num_inference_steps": (10, 20),
    "guidance_scale": (1.5, 2),
    "seed": (1, 2),
    "width": (64, 128),
    "height": (64, 128),
    "num_images": (1, 2),
    "scheduler": ("DDIMScheduler", "PNDMScheduler"),
    "prompt_weighting": (True, False),
    "acceleration": ({"featureCaching": {"interval": 2}}, {"guidanceInterval": {"stop": 0.5}}),
    "inputs": ([{"role": "image", "id": "a" * 64}], [{"role": "image", "id": "b" * 64}]),
    "strength": (0.5, 0.6),
    "adapters": ([{"name": "crayon"}], [{"name": "crayon", "scale": 0.5}]),
    "priority": (1, 2),
    "active_deadline_seconds": (1000, 2000),
    "backoff_limit": (1, 2),
    "ttl_seconds_after_finished": (1000, 2000),
    "deterministic": (True, False),
    "deletion_policy": ("Retain", "Delete"),
    "cancel": (False, True),
    "suspend": (False, True),
    "webhook": ({"url": "https://a.example"}, {"url": "https://a.example", "events": ["started"]}),
}
"""Of each field, two values that the API server takes."""
IMMUTABLE = sorted(GenerationJobSpec.model_fields.keys() - GenerationJobSpec.MUTABLE)


def wire(field: str) -> str:
    """Return a field's name on the wire."""
    alias = GenerationJobSpec.model_fields[field].alias
    assert alias is not None
    return alias


@pytest.fixture(scope="session")
def written_jobs(shared_room: Namespace) -> None:
    """A job that says everything, and one that says as little as it can."""
    full = {wire(name): first for name, (first, _) in TWO_VALUES.items()}
    shared_room.apply(a_job("full", **full), a_job("bare"))


async def test_a_prompt_is_enough_and_the_job_is_pending_without_a_write(own_room: Room) -> None:
    created = await own_room.create("fox")
    assert created.status.phase is Phase.PENDING
    assert (created.status.attempt, created.status.retries) == (0, 0)
    raw = await own_room.client.request("GET", own_room.path("generationjobs", "fox"))
    assert raw["spec"] == {"prompt": "a fox in the snow"}
    assert raw["status"] == {"phase": "Pending", "attempt": 0, "retries": 0}
    assert [entry["operation"] for entry in raw["metadata"].get("managedFields", [])] in ([], ["Update"])


async def test_a_status_that_a_user_sends_along_is_dropped(own_room: Room) -> None:
    body = a_job("sly") | {"status": {"phase": "Succeeded", "worker": "me"}}
    created = await own_room.client.generation_jobs.create(own_room.namespace, body)
    assert (created.status.phase, created.status.worker) == (Phase.PENDING, None)


async def test_jobs_are_selected_by_phase_model_and_worker(own_room: Room) -> None:
    await own_room.create("one", model="emoji")
    await own_room.create("two")
    bound = await own_room.bound(own_room.client, "w-1")
    jobs = own_room.client.generation_jobs

    async def names(selector: str) -> set[str]:
        found, _ = await jobs.list(own_room.namespace, field_selector=selector)
        return {job.name for job in found}

    assert await names("status.phase=Pending") == {"one", "two"}
    assert await names("status.phase!=Pending") == {bound.name}
    assert await names("spec.model=emoji") == {"one"}
    assert await names("status.worker=w-1") == {bound.name}
    assert await names("status.worker=w-1,status.phase=Running") == set()


async def test_kubectl_knows_the_job_by_its_short_name_and_shows_where_it_stands(namespace: Namespace) -> None:
    namespace.apply(a_job("fox"))
    heading, line = namespace.kubectl("get", "gj").splitlines()
    assert heading.split() == ["NAME", "MODEL", "PHASE", "PROGRESS", "WORKER", "AGE"]
    assert line.split()[:2] == ["fox", "Pending"]


async def test_kubectl_waits_for_a_condition(namespace: Namespace, client: KubernetesClient) -> None:
    room = Room(client, namespace.name)
    job = await room.create("fox")
    failed = {"type": "Failed", "status": "True", "reason": "Cancelled", "lastTransitionTime": "2030-01-01T00:00:00Z"}
    await room.write(client, job, phase="Cancelled", conditions=[failed])
    namespace.kubectl("wait", "--for=condition=Failed", "gj/fox", "--timeout=10s")


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
async def test_a_value_out_of_range_is_refused_by_name(room: Room, field: str, value: Any) -> None:
    error = await refusal(room.try_create(a_job(**{field: value})))
    assert isinstance(error, InvalidError)
    assert f"spec.{field}" in error.message


@pytest.mark.parametrize(("field", "value"), AT_THE_EDGE)
async def test_a_value_at_the_edge_of_its_range_is_taken(room: Room, field: str, value: Any) -> None:
    created = await room.try_create(a_job(**{field: value}))
    assert created["spec"][field] == value


async def test_the_seed_of_the_last_image_must_be_a_seed_too(room: Room) -> None:
    last = 2**63 - 1
    assert await refusal(room.try_create(a_job(seed=last - 3, numImages=4))) is None
    error = await refusal(room.try_create(a_job(seed=last - 2, numImages=4)))
    assert isinstance(error, InvalidError)
    assert "spec.seed: image n uses seed + n" in error.message


async def test_an_unknown_field_is_refused_by_name(room: Room) -> None:
    error = await refusal(room.try_create(a_job(steps=20)))
    assert isinstance(error, InvalidError)
    assert 'unknown field "spec.steps"' in error.message


async def test_a_job_without_a_prompt_is_refused(room: Room) -> None:
    body = a_job()
    del body["spec"]["prompt"]
    error = await refusal(room.try_create(body))
    assert isinstance(error, InvalidError)
    assert "spec.prompt" in error.message


def test_every_field_has_two_values_to_try() -> None:
    assert TWO_VALUES.keys() == GenerationJobSpec.model_fields.keys()


@pytest.mark.usefixtures("written_jobs")
@pytest.mark.parametrize("field", IMMUTABLE)
async def test_an_immutable_field_is_neither_changed_nor_added_nor_taken_away(room: Room, field: str) -> None:
    name, (_, other) = wire(field), TWO_VALUES[field]
    cases = [("full", other), ("full", None), ("bare", other)]
    for job, value in cases:
        error = await refusal(room.try_patch(job, {"spec": {name: value}}))
        assert isinstance(error, InvalidError), (job, value)
        assert f"spec.{name}" in error.message


@pytest.mark.usefixtures("written_jobs")
@pytest.mark.parametrize("field", sorted(GenerationJobSpec.MUTABLE))
async def test_a_mutable_field_is_changed_added_and_taken_away(room: Room, field: str) -> None:
    name, (_, other) = wire(field), TWO_VALUES[field]
    for job, value in [("full", other), ("full", None), ("bare", other)]:
        answer = await room.try_patch(job, {"spec": {name: value}})
        assert answer["spec"].get(name) == value


@pytest.mark.parametrize("value", [False, None])
async def test_a_cancellation_is_final(room: Room, value: bool | None) -> None:
    job = await room.create(cancel=True)
    error = await refusal(room.try_patch(job.name, {"spec": {"cancel": value}}))
    assert isinstance(error, InvalidError)
    assert "spec.cancel cannot be taken back" in error.message


async def test_what_a_finished_job_is_kept_for_may_still_change(room: Room) -> None:
    job = await room.create()
    await room.write(room.client, job, phase="Cancelled")
    answer = await room.try_patch(job.name, {"spec": {"ttlSecondsAfterFinished": 5}})
    assert answer["spec"]["ttlSecondsAfterFinished"] == 5


def a_model(name: str, *, default: bool = False, **limits: int) -> dict[str, Any]:
    annotations = {"kubediffusion.io/is-default": "true"} if default else {}
    spec: dict[str, Any] = {"source": {"path": "/models/a"}}
    return {
        "apiVersion": "kubediffusion.io/v1alpha1",
        "kind": "DiffusionModel",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec | ({"limits": limits} if limits else {}),
    }


LIMITS = {"numInferenceSteps": 30, "width": 512, "height": 256, "numImages": 2}
TOO_MUCH = {"numInferenceSteps": 31, "width": 520, "height": 264, "numImages": 3}


@pytest.fixture(scope="session")
def studio(cluster: LocalCluster) -> Iterator[Namespace]:
    """A namespace with a small model that is the default, and a large one."""
    namespace = Namespace(cluster, "resources-limits")
    namespace.create()
    namespace.apply(
        a_model("small", default=True, **LIMITS), a_model("large", numInferenceSteps=1000), a_model("plain")
    )
    yield namespace
    namespace.delete()


@pytest.fixture
async def limited(studio: Namespace, client: KubernetesClient) -> Room:
    """That namespace, once the policy knows its models."""
    room = Room(client, studio.name)

    async def known() -> bool:
        errors = [
            await refusal(room.try_create(a_job(model=model, numImages=5))) for model in ("small", "large", "plain")
        ]
        return all(errors)

    await eventually("the models' limits", known)
    return room


@pytest.mark.parametrize("model", ["small", None], ids=["named", "default"])
@pytest.mark.parametrize("field", LIMITS)
async def test_a_job_that_exceeds_its_models_limit_is_refused_at_the_door(
    limited: Room, field: str, model: str | None
) -> None:
    spec: dict[str, Any] = {"model": model} if model else {}
    assert await refusal(limited.try_create(a_job(**spec | {field: LIMITS[field]}))) is None
    error = await refusal(limited.try_create(a_job(**spec | {field: TOO_MUCH[field]})))
    assert isinstance(error, InvalidError)
    assert f"spec.{field}: {TOO_MUCH[field]} exceeds the limit {LIMITS[field]} of model small" in error.message


async def test_a_limit_is_its_own_models_alone(limited: Room) -> None:
    assert await refusal(limited.try_create(a_job(model="large", numInferenceSteps=1000))) is None


async def test_a_model_that_says_no_limit_has_the_ordinary_ones(limited: Room) -> None:
    assert await refusal(limited.try_create(a_job(model="plain", numInferenceSteps=150))) is None
    error = await refusal(limited.try_create(a_job(model="plain", numInferenceSteps=151)))
    assert error is not None
    assert "151 exceeds the limit 150 of model plain" in error.message


async def test_a_job_may_come_before_its_model(limited: Room, room: Room) -> None:
    assert await refusal(limited.try_create(a_job(model="later", numInferenceSteps=1000))) is None
    assert await refusal(room.try_create(a_job(numInferenceSteps=1000))) is None
