"""Requests become specs and jobs become views, without loss."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.api import translate
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.schemas import JobRequest
from kubediffusion.resources.diffusion_model import DiffusionModel, JobDefaults
from kubediffusion.resources.generation_job import GenerationJobSpec, Scheduler
from kubediffusion.resources.parameters import check_limits
from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.resources.testing import model
from unit.api.api_builders import body, cached

requests = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=50)},
    optional={
        "negative_prompt": st.none() | st.text(max_size=50),
        "num_inference_steps": st.none() | st.integers(1, 1000),
        "guidance_scale": st.none() | st.floats(0, 50),
        "seed": st.none() | st.integers(0, 2**63 - 1),
        "width": st.none() | st.integers(8, 512).map(lambda size: size * 8),
        "num_images": st.none() | st.integers(1, 16),
        "scheduler": st.none() | st.sampled_from(Scheduler),
        "priority": st.none() | st.integers(-1_000_000, 1_000_000),
        "deterministic": st.none() | st.booleans(),
        "acceleration": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "guidance_interval": st.none() | st.floats(0, 0.5).map(lambda start: {"start": start, "stop": 0.6}),
                "feature_caching": st.none() | st.integers(1, 20).map(lambda interval: {"interval": interval}),
            },
        ),
    },
).map(JobRequest.model_validate)


@given(requests)
def test_a_spec_says_what_the_request_says_and_nothing_else(request: JobRequest) -> None:
    spec = translate.to_spec(request)
    assert spec.model_dump(exclude_none=True) == request.model_dump(exclude_none=True)
    # What the API server stores, read back, is the same.
    assert GenerationJobSpec.from_wire(translate.manifest("x", spec)["spec"]) == spec


def test_what_is_left_out_stays_out() -> None:
    assert translate.manifest("x", translate.to_spec(JobRequest.model_validate({"prompt": "a cat"})))["spec"] == {
        "prompt": "a cat"
    }


@given(st.text(), st.text())
def test_an_idempotent_name_depends_on_client_and_key(client: str, key: str) -> None:
    name = translate.idempotent_name(client, key)
    assert name == translate.idempotent_name(client, key)
    assert name != translate.idempotent_name(client + "x", key)
    assert name != translate.idempotent_name(client, key + "x")


def test_a_request_is_the_same_whatever_may_change_later() -> None:
    spec = GenerationJobSpec(prompt="a cat")
    assert translate.same_request(spec, spec.model_copy(update={"cancel": True, "priority": 5}))
    assert not translate.same_request(spec, GenerationJobSpec(prompt="a cat", seed=1))


def test_a_view_says_why_a_job_waits_only_while_it_does() -> None:
    waiting = {
        "conditions": [
            {
                "type": "Scheduled",
                "status": "False",
                "reason": "WorkersBusy",
                "message": "busy",
                "lastTransitionTime": "2026-11-23T10:00:00Z",
            }
        ]
    }
    view = translate.view(cached(status=waiting), 3)
    assert view.waiting is not None
    assert (view.waiting.reason, view.queue_position) == ("WorkersBusy", 3)
    assert translate.view(cached(phase="Cancelled", status=waiting), None).waiting is None


def test_a_view_shows_acceleration_as_it_was_asked_for_and_as_it_was_run() -> None:
    wish = {"guidanceInterval": {"stop": 0.8}, "featureCaching": {"interval": 5}}
    run = {"model": "m", "numInferenceSteps": 5, "guidanceScale": 1, "seed": 0, "numImages": 1}
    status = {"parameters": {**run, "acceleration": {"featureCaching": {"interval": 5}}}}
    shown = translate.view(cached(spec={"acceleration": wish}, status=status), None).model_dump(mode="json")
    asked = {"guidance_interval": {"start": 0.0, "stop": 0.8}, "feature_caching": {"interval": 5}}
    assert shown["request"]["acceleration"] == asked
    assert shown["parameters"]["acceleration"] == {"guidance_interval": None, "feature_caching": {"interval": 5}}
    assert translate.view(cached(), None).request.model_dump()["acceleration"] is None


def test_a_job_that_waits_for_a_starting_worker_says_how_far_that_is_by_now() -> None:
    since = "2026-11-23T10:00:00Z"

    def view(job_reason: str, *reasons: str) -> str:
        starts = [{"worker": "w", "reason": each, "message": f"{each} so far", "since": since} for each in reasons]
        model = DiffusionModel.from_wire(
            {
                "metadata": {"name": "m"},
                "spec": {"source": {"path": "/m"}},
                "status": {"workers": {"starts": starts}},
            }
        )
        said = {"type": "Scheduled", "status": "False", "reason": job_reason, "message": "as written"}
        shown = translate.view(cached(status={"conditions": [{**said, "lastTransitionTime": since}]}), 1, model)
        assert shown.waiting is not None
        assert shown.waiting.reason == job_reason
        return shown.waiting.message

    assert view("WorkerStarting", "Importing") == "a worker is loading model m: Importing so far"
    assert view("WorkerStarting", "Compiling") == "as written"
    assert view("WorkerStarting") == "as written"
    assert view("WorkersBusy", "Importing") == "as written"


@pytest.mark.parametrize(("status", "available"), [(None, True), ("Unknown", True), ("True", True), ("False", False)])
def test_a_model_is_available_until_it_is_said_not_to_be(status: str | None, available: bool) -> None:
    condition = {"type": "Available", "status": status, "reason": "R", "lastTransitionTime": "2026-11-23T10:00:00Z"}
    model = DiffusionModel.from_wire(
        {
            "metadata": {"name": "m"},
            "spec": {"source": {"path": "/m"}, "defaults": {"width": 64}},
            "status": {"conditions": [condition] if status else []},
        }
    )
    view = translate.model_view(model)
    defaults = view.defaults.model_dump()
    assert (view.available, defaults["width"], defaults["num_inference_steps"]) == (available, 64, 50)
    assert defaults["acceleration"] is None


def test_a_model_shows_the_acceleration_that_its_jobs_get() -> None:
    spec = {"source": {"path": "/m"}, "defaults": {"acceleration": {"guidanceInterval": {"stop": 0.8}}}}
    view = translate.model_view(DiffusionModel.from_wire({"metadata": {"name": "m"}, "spec": spec}))
    assert view.model_dump()["defaults"]["acceleration"] == {
        "guidance_interval": {"start": 0.0, "stop": 0.8},
        "feature_caching": None,
    }


def test_a_document_leaves_out_what_nobody_shows() -> None:
    annotated = body(metadata={"annotations": {"x": "y" * 1000}, "managedFields": [{"manager": "z" * 1000}]})
    made = CachedJob.from_wire(annotated)
    assert len(made.document) < 400
    assert made.parse().spec.prompt == "a cat"


def test_a_recipe_names_nothing_that_its_model_refuses() -> None:
    parameters = {
        "model": "emoji", "numInferenceSteps": 1, "guidanceScale": 1, "seed": 1, "numImages": 1,
        "negativePrompt": "rain", "pipeline": "FluxPipeline",
    }  # fmt: skip
    job = cached(spec={"prompt": "a cat"}, status={"phase": "Succeeded", "parameters": parameters}).parse()

    def recipe(pipeline: str, *, heeds: bool) -> GenerationJobSpec:
        told = PipelineFacts(name=pipeline, negative_prompt=heeds)
        known = model(defaults=JobDefaults(negative_prompt="rain")).with_pipeline(told)
        again = GenerationJobSpec.from_wire(translate.recipe_manifest(job, known)["spec"])
        assert heeds or pipeline != "FluxPipeline" or list(check_limits(again, known)) == []
        return again

    assert recipe("FluxPipeline", heeds=False).negative_prompt is None
    assert recipe("FluxPipeline", heeds=True).negative_prompt == "rain"
    # The image had it: what the model is today makes another.
    assert recipe("OtherPipeline", heeds=False).negative_prompt == "rain"
    assert translate.recipe_manifest(job)["spec"]["negativePrompt"] == "rain"


def test_prompts_of_the_greatest_length_are_kept_small() -> None:
    """They are most of what a job takes, and a namespace has ten thousand of them: these two are 48,000 bytes."""
    random = Random(1)  # noqa: S311 - no secret
    prompt, unwanted = ("".join(chr(random.randrange(0x1F300, 0x1FAFF)) for _ in range(4000)) for _ in range(2))
    parameters = {"model": "m", "numInferenceSteps": 1, "guidanceScale": 1, "seed": 1, "numImages": 1}
    status = {"phase": "Succeeded", "parameters": {**parameters, "negativePrompt": unwanted}}
    made = cached(spec={"prompt": prompt, "negativePrompt": unwanted, "seed": 1}, status=status)
    assert len(made.packed_document) + len(made.packed_prompt) < 20_000
    job = made.parse()
    assert (made.prompt, job.spec.prompt, job.spec.negative_prompt) == (prompt, prompt, unwanted)
    assert job.status.parameters is not None
    assert job.status.parameters.negative_prompt == unwanted


def test_a_short_text_is_kept_as_it_is() -> None:
    made = cached(spec={"prompt": "x\N{FOX FACE}"})
    assert made.packed_prompt == made.prompt.encode()
    assert made.packed_document == made.document
