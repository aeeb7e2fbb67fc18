"""``/v1/inputs``: images that jobs are made of."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from kubediffusion.api.dependencies import ClientDep, InputsDep
from kubediffusion.api.errors import InvalidRequestError, problem
from kubediffusion.api.input_schemas import StoredInputView
from kubediffusion.api.routes.responses import errors

_IMAGE = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(prefix="/v1")


@router.post(
    "/inputs",
    status_code=201,
    tags=["jobs"],
    summary="Upload an image for jobs to begin from",
    responses=errors(413, 422, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _IMAGE),
        }
    },
)
async def upload_input(request: Request, inputs: InputsDep, client: ClientDep) -> StoredInputView:
    """Store a PNG, JPEG or WebP, which is the body itself, and answer its id for `inputs` of a job.

    It is stored as a PNG without metadata, turned as its EXIF orientation says; the same pixels have the same id.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise InvalidRequestError([problem(None, "Send the image itself as the body; forms are not taken here.")])
    stored = await inputs.store(request.stream(), client)
    return StoredInputView(id=stored.id, width=stored.width, height=stored.height, bytes=stored.size)
