"""``/v1/inputs``: images that jobs are made of."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from kubediffusion.api.dependencies import IdentityDep, ImagesRequest, InputsDep
from kubediffusion.api.errors import InvalidRequestError, problem
from kubediffusion.api.forms import MEDIA_TYPE, is_form, read_form
from kubediffusion.api.input_schemas import StoredInputView
from kubediffusion.api.routes.responses import errors

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"image": _IMAGE["schema"]}, "required": ["image"]}}

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
            "content": {**dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _IMAGE), MEDIA_TYPE: _FORM},
        }
    },
)
async def upload_input(request: Request, inputs: InputsDep, identity: IdentityDep) -> StoredInputView:
    """Store a PNG, JPEG or WebP and answer its id for `inputs` of a job.

    The image is the body itself, or the one file of a form. It is stored as a PNG without metadata, turned as its EXIF
    orientation says; the same pixels have the same id.
    """
    if is_form(bounded := ImagesRequest.of(request)):
        with inputs.place(identity) as place:
            form = await read_form(bounded, place)
            if len(form.files) != 1:
                message = f"The form must have one file, the image; it has {len(form.files)}"
                raise InvalidRequestError([problem("image", message)])
            stored = await place.store(form.files[0].data, field=form.files[0].field[:100])
    else:
        stored = await inputs.store(request.stream(), identity)
    return StoredInputView(id=stored.id, width=stored.width, height=stored.height, bytes=stored.size)
