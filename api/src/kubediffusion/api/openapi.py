"""The OpenAPI document, and Swagger UI at ``/docs`` from an installed package: neither needs the internet."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from kubediffusion.api.access.authenticator import is_open

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key as a bearer token."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key by another name."},
}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Send Swagger UI."""
    # Relative addresses: the page also works behind a proxy that serves it under a prefix.
    here = "../" if getattr(request.state, "trailing_slash", False) else ""
    return get_swagger_ui_html(
        openapi_url=f"{here}openapi.json",
        title=request.app.title,
        swagger_js_url=f"{here}docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{here}docs/assets/swagger-ui.css",
        swagger_favicon_url=f"{here}docs/assets/favicon.png",
        # By default it would send the document's address to a validator on the internet.
        swagger_ui_parameters={"validatorUrl": None},
    )


def assets() -> StaticFiles:
    """Build the app that serves Swagger UI's files."""
    return StaticFiles(directory=str(files("fastapi_offline") / "static"))


def install(app: FastAPI, *, keys_required: bool, root_path: str) -> None:
    """Let an app's document say under which prefix it is served, and how to send an API key."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
                servers=[{"url": root_path}] if root_path else None,
            )
            app.openapi_schema = _secured(schema, keys_required=keys_required)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to change the document


def _secured(schema: dict[str, Any], *, keys_required: bool) -> dict[str, Any]:
    schema.setdefault("components", {})["securitySchemes"] = _SECURITY_SCHEMES
    schema["security"] = [{name: []} for name in _SECURITY_SCHEMES] + ([] if keys_required else [{}])
    for path, operations in schema.get("paths", {}).items():
        if is_open(path):
            for operation in operations.values():
                operation["security"] = []
    return schema
