"""What the routes of a door for other programs' clients are."""

from __future__ import annotations

from fastapi import APIRouter

from kubediffusion.api.dependencies import JsonRoute
from kubediffusion.api.errors import ErrorForm


class DoorRouter(APIRouter):
    """The routes of one door.

    Args:
        prefix: The path that they are below, and nothing else is.
        error_form: The form in which the door's clients read errors; the form of all that fails below the prefix.
        tag: The door's name in the OpenAPI document.
    """

    def __init__(self, prefix: str, error_form: ErrorForm, tag: str) -> None:
        super().__init__(prefix=prefix, route_class=JsonRoute, tags=[tag])
        self.error_form = error_form
