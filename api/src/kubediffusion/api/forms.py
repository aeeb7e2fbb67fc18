"""Reads forms that have images in them. They stay in memory: a Pod's root file system may be read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from kubediffusion.api.dependencies import ImagesRequest
from kubediffusion.api.errors import InvalidRequestError, problem
from kubediffusion.api.inputs import MAX_BODY_BYTES, UploadPlace

MEDIA_TYPE = "multipart/form-data"

MAX_FILES = 20
"""More than any door takes, so that it can say how many it takes."""

MAX_FIELDS = 200

MAX_FIELD_BYTES = 64 * 1024
"""Bytes of a field that is no file."""


class FormFile(NamedTuple):
    """A file of a form: the field's name, and the bytes."""

    field: str
    data: bytes


@dataclass(frozen=True)
class Form:
    """A form that has been read.

    Attributes:
        fields: The fields that are no files, by their names; of several of one name, the last.
        files: The files, as they came.
    """

    fields: Mapping[str, str]
    files: Sequence[FormFile]

    def tree(self) -> dict[str, Any]:
        """Return the fields with those of objects, which forms have as ``object[field]``, in objects."""
        root: dict[str, Any] = {}
        for name, value in self.fields.items():
            *path, last = name.replace("]", "").split("[")
            node = root
            for part in path:
                if not isinstance(node.get(part), dict):
                    node[part] = {}
                node = node[part]
            node[last] = value
        return root


class _MemoryParser(MultiPartParser):
    """Starlette's parser; files of more than a megabyte would else be written to disk."""

    spool_max_size = MAX_BODY_BYTES + 1


def is_form(request: ImagesRequest) -> bool:
    """Return whether a request says that its body is a form with files."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE


async def read_form(request: ImagesRequest, place: UploadPlace) -> Form:
    """Read a request's form.

    Args:
        request: The request, of which nothing has been read.
        place: Whoever reads it has one.

    Raises:
        HTTPException: 413, the body is too long.
        InvalidRequestError: It is no form, or has not come in time.
        ClientGoneError: The client has closed the connection.
    """
    if not is_form(request):
        raise InvalidRequestError([problem(None, f"The body must be a form, sent with Content-Type: {MEDIA_TYPE}")])
    async with place.in_time(), aclosing(request.stream()) as body:
        parser = _MemoryParser(
            request.headers, body, max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        try:
            found = await parser.parse()
        except MultiPartException as error:
            raise InvalidRequestError([problem(None, f"The form cannot be read: {error.message}")]) from None
    fields: dict[str, str] = {}
    files = []
    for name, value in found.multi_items():
        if isinstance(value, UploadFile):
            files.append(FormFile(name, value.file.read()))
            value.file.close()
        else:
            fields[name] = value
    return Form(fields, files)
