"""Replicate's HTTP API: predictions, and the models that they are of, as its clients ask for them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kubediffusion.api.access.identity import Identity
from kubediffusion.api.dependencies import (
    MOST_WAIT_SECONDS,
    AppState,
    AppStateDep,
    EncoderDep,
    IdempotencyKey,
    IdentityDep,
    ImagesDep,
    JobServiceDep,
    Prefer,
    Rated,
    preferred_wait,
    unless_gone,
)
from kubediffusion.api.doors.common import around_images
from kubediffusion.api.doors.replicate.schemas import (
    ModelPage,
    Prediction,
    PredictionPage,
    ReplicateErrorBody,
    ReplicateModel,
    ReplicateVersion,
    VersionPage,
)
from kubediffusion.api.doors.replicate.translate import (
    FIELD_NAMES,
    FileFormat,
    ModelPredictionRequest,
    PredictionRequest,
    encoding,
    encoding_of,
    job_request,
    model_of_version,
    model_view,
    prediction_view,
    replicate_error,
    version_id,
    version_view,
    webhook_fields,
)
from kubediffusion.api.doors.router import DoorRouter, JobCall, streamed
from kubediffusion.api.encoding import EncodedImages, ImageEncoder
from kubediffusion.api.errors import ModelNotFoundError, StateConflictError, UnavailableError
from kubediffusion.api.images import ImageReader, ImageResponse
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.job_cache.results import warning_headers
from kubediffusion.api.routes.cursors import decoded_cursor, encoded_cursor
from kubediffusion.api.routes.responses import Responses, errors_in_form, links
from kubediffusion.api.schemas import EXAMPLE_ID, EXAMPLE_MODEL
from kubediffusion.api.service import MAX_NAME, JobService
from kubediffusion.resources import meta
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.storage import StorageError

PREFIX = "/replicate/v1"

PAGE = 100
"""Predictions in a page."""

CANCEL_SECONDS = 10.0
"""How long the answer to a cancellation waits for the job's end: clients read the status from it."""

Id = Annotated[str, Path(description="The prediction's id, which is the job's name.", examples=[EXAMPLE_ID])]

_ERRORS = {
    401: "An API key is needed, or it is not valid.",
    404: "There is no such prediction, model, version or image.",
}
"""What statuses mean here."""

router = DoorRouter(PREFIX, replicate_error, "replicate")


def _errors(*statuses: int) -> Responses:
    return errors_in_form(ReplicateErrorBody, _ERRORS, statuses)


@dataclass(frozen=True)
class _Door:
    """One request, and what answers it."""

    request: Request
    state: AppState
    service: JobService
    images: ImageReader
    encoder: ImageEncoder
    identity: Identity

    @property
    def base(self) -> str:
        """The address of the API's paths, as the client has it."""
        url = self.request.base_url
        return f"{url.scheme}://{url.netloc}{self.state.settings.root_path}{PREFIX}"

    @property
    def owner(self) -> str:
        """The owner of all models."""
        return self.state.settings.namespace

    def models(self) -> list[DiffusionModel]:
        """List the models.

        Raises:
            UnavailableError: They are not known yet.
        """
        if not self.state.models.synced.is_set():
            raise UnavailableError("The server is starting and has not seen its models yet.", 1)
        return self.state.models.all()

    def model(self, name: str) -> DiffusionModel:
        """Return the model of this name.

        Raises:
            ModelNotFoundError: There is none.
            UnavailableError: Models are not known yet.
        """
        models = self.models()
        for model in models:
            if model.name == name:
                return model
        known = ", ".join(f"{self.owner}/{model.name}" for model in models) or "none"
        raise ModelNotFoundError(f"There is no model {name[:MAX_NAME]!r}; known models: {known}.")

    async def create(
        self, body: ModelPredictionRequest, model: DiffusionModel, prefer: str | None, idempotency_key: str | None
    ) -> Response:
        """Create a job, and answer at once or once it has finished."""
        began = time.monotonic()
        wanted = job_request(body, model.name)
        annotations = dict(body.input.annotations)
        if webhook_fields(body) is not None:
            annotations[meta.PREDICTIONS_URL_ANNOTATION] = self.base
        with FIELD_NAMES.named_in_errors():
            job = await self.service.submit(wanted, self.identity, idempotency_key, annotations)
        seconds = preferred_wait(prefer, bare=MOST_WAIT_SECONDS)
        if seconds is None:
            return await self.answer(job, status=201)
        # The client's patience began with its request, and ends half a second later.
        call = JobCall(self.service, job, self.identity, abandons=idempotency_key is None)
        job = await unless_gone(self.request, call.wait(max(0.0, seconds - (time.monotonic() - began))))
        return await self.answer(job, status=201, waited=seconds)

    async def answer(self, job: CachedJob, status: int = 200, waited: int | None = None) -> Response:
        """Answer with a prediction, and its images.

        Args:
            job: The job.
            status: Status of the response.
            waited: How many seconds the client has let it run; None where it has not.
        """
        shown = self.view(job)
        headers = warning_headers(job)
        if waited is not None:
            headers["Preference-Applied"] = f"wait={waited}"
            if not job.finished:
                # Clients take anything else for the end, and go away without an image.
                shown.status = "starting"
        if not shown.output or self.request.base_url.scheme == "https":
            return JSONResponse(shown.model_dump(mode="json"), status, headers)
        made = encoding(*encoding_of(job.parse()))
        parts = around_images(
            shown.model_dump(mode="json", exclude={"output"}),
            "output",
            len(job.images),
            f'"data:{made.media_type};base64,',
        )
        try:
            document = EncodedImages(self.images, self.encoder, made).document(job, parts)
            return await streamed(document, headers, status)
        except StorageError as error:
            if not error.missing:
                raise
            removed = shown.model_copy(update={"output": None, "data_removed": True})
            return JSONResponse(removed.model_dump(mode="json"), status, headers)

    def view(self, job: CachedJob) -> Prediction:
        """Build the view of a job, with the addresses of its images."""
        whole, models = job.parse(), self.state.models
        ran = whole.status.parameters
        name = ran.model if ran else job.model or models.default_name or ""
        model = models.find(name)
        return prediction_view(job, whole, f"{self.owner}/{name}", version_id(model) if model else None, self.base)


async def _door(
    request: Request,
    state: AppStateDep,
    service: JobServiceDep,
    images: ImagesDep,
    encoder: EncoderDep,
    identity: IdentityDep,
) -> _Door:
    return _Door(request, state, service, images, encoder, identity)


DoorDep = Annotated[_Door, Depends(_door)]


async def _model(
    door: DoorDep,
    owner: Annotated[str, Path(description="Whoever: models of one namespace have one owner.", examples=["default"])],  # noqa: ARG001 - of the path
    name: Annotated[str, Path(description="The DiffusionModel.", examples=[EXAMPLE_MODEL])],
) -> DiffusionModel:
    return door.model(name)


ModelDep = Annotated[DiffusionModel, Depends(_model)]


@router.post(
    "/predictions",
    dependencies=[Rated],
    status_code=201,
    response_model=Prediction,
    summary="Create a prediction of a version of a model",
    responses={
        201: {
            "links": links(
                "prediction_id",
                "/id",
                "show_prediction_replicate_v1_predictions__prediction_id__get",
                "cancel_prediction_replicate_v1_predictions__prediction_id__cancel_post",
            )
        },
        **_errors(413, 422, 429, 502, 503),
    },
)
async def create_prediction(
    body: PredictionRequest, door: DoorDep, prefer: Prefer = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a job: answered at once, or with `Prefer: wait` once it has finished, or after 60 seconds.

    A client that hangs up while it waits cancels the job, unless it sent an `Idempotency-Key`.
    """
    model = model_of_version(door.models(), body.version)
    return await door.create(body, model, prefer, idempotency_key)


@router.get(
    "/predictions",
    summary="List predictions",
    responses=_errors(422, 503),
)
async def list_predictions(
    door: DoorDep, cursor: Annotated[str | None, Query(description="As in `next` of the page before.")] = None
) -> PredictionPage:
    """List the namespace's jobs, newest first, with the addresses of their images."""
    if not door.state.watches.ready:
        raise UnavailableError("The server is starting and has not seen all jobs yet.", 1)
    jobs, end = await door.service.newest(JobFilter(client=door.identity.owner), PAGE, decoded_cursor(cursor, "cursor"))
    after = None if end is None else f"{door.base}/predictions?cursor={quote(encoded_cursor(end))}"
    return PredictionPage(next=after, results=[door.view(job) for job in jobs])


@router.get(
    "/predictions/{prediction_id}",
    response_model=Prediction,
    summary="Show a prediction",
    responses=_errors(404, 429, 502, 503),
)
async def show_prediction(prediction_id: Id, door: DoorDep) -> Response:
    """Show where a job stands, and its images once it has succeeded."""
    return await door.answer(await door.service.read(prediction_id, door.identity))


@router.post(
    "/predictions/{prediction_id}/cancel",
    response_model=Prediction,
    summary="Cancel a prediction",
    responses=_errors(404, 409, 429, 502, 503),
)
async def cancel_prediction(prediction_id: Id, door: DoorDep) -> Response:
    """Have a job stop, and show it once it has, or after 10 seconds. One that has finished is shown as it is."""
    try:
        job = await door.service.cancel(prediction_id, door.identity)
    except StateConflictError:
        job = await door.service.read(prediction_id, door.identity)
        if not job.finished:
            raise
    return await door.answer(await unless_gone(door.request, door.service.wait(job, CANCEL_SECONDS)))


@router.get(
    "/predictions/{prediction_id}/output/{index}.{kind}",
    summary="Get an image of a prediction",
    response_class=Response,
    responses={
        200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "The image."},
        **_errors(404, 410, 422, 429, 502, 503),
    },
)
async def get_output(
    prediction_id: Id,
    index: Annotated[int, Path(ge=0, description="Which of the images, from 0.", examples=[0])],
    kind: Annotated[FileFormat, Path(description="How it is encoded.")],
    door: DoorDep,
    quality: Annotated[int, Query(ge=0, le=100, description="Of `jpg` and `webp`, in percent.")] = 100,
) -> Response:
    """Return an image as a file."""
    job = await door.service.read(prediction_id, door.identity)
    stored = door.service.image(job, index)
    made = encoding(kind, quality)
    body = await EncodedImages(door.images, door.encoder, made).open(job, stored)
    return ImageResponse(body, made.media_type, {"Cache-Control": "private, max-age=31536000, immutable"})


@router.get("/models", summary="List models", responses=_errors(503))
async def list_models(door: DoorDep) -> ModelPage:
    """List the namespace's models."""
    return ModelPage(results=[model_view(model, door.owner, door.base) for model in door.models()])


@router.get("/models/{owner}/{name}", summary="Show a model", responses=_errors(404, 503))
async def show_model(model: ModelDep, door: DoorDep) -> ReplicateModel:
    """Show a model."""
    return model_view(model, door.owner, door.base)


@router.post(
    "/models/{owner}/{name}/predictions",
    dependencies=[Rated],
    status_code=201,
    response_model=Prediction,
    summary="Create a prediction of a model",
    responses=_errors(404, 413, 422, 429, 502, 503),
)
async def create_model_prediction(
    model: ModelDep,
    body: ModelPredictionRequest,
    door: DoorDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a job of a model as it is now; else as `POST /predictions`."""
    return await door.create(body, model, prefer, idempotency_key)


@router.get(
    "/models/{owner}/{name}/versions",
    summary="List a model's versions",
    responses={
        200: {
            "links": links(
                "version",
                "/results/0/id",
                "show_version_replicate_v1_models__owner___name__versions__version__get",
                of_request=("owner", "name"),
            )
        },
        **_errors(404, 503),
    },
)
async def list_versions(model: ModelDep) -> VersionPage:
    """List the one version that a model has: what it loads now."""
    return VersionPage(results=[version_view(model)])


@router.get("/models/{owner}/{name}/versions/{version}", summary="Show a model's version", responses=_errors(404, 503))
async def show_version(model: ModelDep, version: str) -> ReplicateVersion:
    """Show what a model loads now."""
    if version != version_id(model):
        raise ModelNotFoundError(f"Model {model.name} has no such version; it has {version_id(model)}.")
    return version_view(model)
