"""The page for those who call the HTTP API names every way in which a request can fail."""

from __future__ import annotations

from documented import table
from kubediffusion.api.app import create_app
from kubediffusion.api.settings import Settings


def test_every_error_status_is_explained() -> None:
    explained = {status for number, _ in table("api", "Errors") for status in number.split(", ")}
    operations = [
        operation for path in create_app(Settings()).openapi()["paths"].values() for operation in path.values()
    ]
    assert explained == {status for operation in operations for status in operation["responses"] if status >= "400"}
