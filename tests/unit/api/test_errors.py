"""What each failure says to a client."""

from __future__ import annotations

import pytest

from kubediffusion.api.errors import (
    ApiError,
    Problem,
    from_kubernetes,
    from_storage,
    nearest_field,
    validation_problems,
)
from kubediffusion.api.schemas import JobRequest
from kubediffusion.resources.apiserver.errors import error_from_status
from kubediffusion.resources.storage import StorageError


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("promt", "prompt"),
        ("negativePrompt", "negative_prompt"),
        ("numInferenceSteps", "num_inference_steps"),
        ("num_inference_step", "num_inference_steps"),
        ("steps", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("sed", "seed"),
        ("Width", "width"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_nearest_field(mistyped: str, meant: str | None) -> None:
    assert nearest_field(mistyped, JobRequest.model_fields) == meant


def refusal(status: int, message: str = "", **details: object) -> ApiError:
    return from_kubernetes(error_from_status(status, {"reason": "R", "message": message, "details": details}))


def problems(error: ApiError) -> list[Problem]:
    assert isinstance(error.detail, list)
    return error.detail


def test_a_refused_spec_names_the_field_in_the_clients_spelling() -> None:
    causes = [{"reason": "FieldValueInvalid", "message": "Invalid value: 0", "field": "spec.numInferenceSteps"}]
    error = refusal(422, "GenerationJob is invalid", causes=causes)
    assert (error.status, problems(error)[0]["loc"]) == (422, ["body", "num_inference_steps"])


def test_a_policys_refusal_names_the_field_too() -> None:
    error = refusal(422, "denied request: spec.width: 2048 exceeds the limit 1024 of model m")
    assert problems(error)[0]["loc"] == ["body", "width"]


@pytest.mark.parametrize(
    ("status", "message", "answer"),
    [
        (0, "connection refused", 503),
        (429, "too many requests", 503),
        (500, "etcd is away", 503),
        (500, 'Internal error occurred: failed calling webhook "w.example.com": failed to call webhook: EOF', 503),
        (500, 'admission webhook "w.example.com" denied the request: its database is away', 503),
        (400, 'admission webhook "w.example.com" denied the request: no cats', 422),
        (403, 'admission webhook "w.example.com" denied the request: no cats', 422),
        (403, "jobs is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no cats", 422),
        (401, "jobs is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no cats", 422),
        (413, "jobs is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no cats", 422),
        (409, 'admission webhook "w.example.com" denied the request: no cats', 422),
        (418, 'admission webhook "w.example.com" denied the request without explanation', 422),
        (403, "jobs is forbidden: Policy 'p' with binding 'b' denied request: failed to configure policy: x", 503),
        (504, "timeout", 503),
        (401, "Unauthorized", 503),
        (403, "generationjobs is forbidden: cannot create resource", 503),
        (403, "jobs is forbidden: exceeded quota: q, requested: 1, used: 1, limited: 1", 429),
        (404, "the server could not find the requested resource", 503),
        (409, "the object has been modified", 409),
        (422, "denied request: failed to configure policy: failed to find resource", 503),
    ],
)
def test_the_api_servers_other_refusals(status: int, message: str, answer: int) -> None:
    error = refusal(status, message)
    assert error.status == answer
    assert ("Retry-After" in error.headers) == (answer in {429, 503})


def test_the_api_servers_own_pause_is_passed_on() -> None:
    assert refusal(503, retryAfterSeconds=7).headers["Retry-After"] == "7"


def test_storages_words_stay_in_the_log() -> None:
    error = from_storage(StorageError("cannot read s3://bucket/key: connect to 10.0.0.1"))
    assert error.status == 503
    assert "10.0.0.1" not in str(error.detail)
    assert from_storage(StorageError("gone", missing=True)).status == 410


def test_a_clients_text_is_cut_in_problems() -> None:
    found = validation_problems([{"type": "extra_forbidden", "loc": ("body", "x" * 5000), "msg": ""}])
    assert len(str(found)) < 500
