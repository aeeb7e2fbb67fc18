"""``/docs`` without the internet: Swagger UI from the installed package, and the OpenAPI document in its dialect."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from kubediffusion.api.auth import is_open

OPENAPI_VERSION = "3.0.3"
"""The packaged Swagger UI 4 does not render 3.1, which FastAPI writes."""

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key as a bearer token."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key by another name."},
}


def install(app: FastAPI, *, keys_required: bool) -> None:
    """Give an app its documentation."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            app.openapi_schema = secured(downgraded(schema), keys_required=keys_required)
        return app.openapi_schema

    async def page(_: Request) -> HTMLResponse:
        # Relative addresses: the page also works behind a proxy that serves it under a prefix.
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
            # By default it would send the document's address to a validator on the internet.
            swagger_ui_parameters={"validatorUrl": None},
        )

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to change the document
    app.add_route("/docs", page, include_in_schema=False)
    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))


def downgraded(node: Any) -> Any:
    """Turn the parts of OpenAPI 3.1 that FastAPI writes into their forms of 3.0."""
    if isinstance(node, list):
        return [downgraded(part) for part in node]
    if not isinstance(node, dict):
        return node
    result = {key: downgraded(part) for key, part in node.items()}
    if "openapi" in result:
        result["openapi"] = OPENAPI_VERSION
    if {"type": "null"} in result.get("anyOf", []):
        result = _nullable(result)
    if "const" in result:
        result["enum"] = [result.pop("const")]
    if isinstance(examples := result.get("examples"), list):
        # A schema's list of examples; a media type's is an object, and the same in both.
        del result["examples"]
        if examples and examples[0] is not None:
            result["example"] = examples[0]
    return result


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in schema["anyOf"] if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if len(options) != 1:
        return {**rest, "anyOf": options, "nullable": True}
    if "$ref" in options[0]:
        # Nothing may stand beside a reference in 3.0.
        return {**rest, "allOf": options, "nullable": True}
    return {**options[0], **rest, "nullable": True}


def secured(schema: dict[str, Any], *, keys_required: bool) -> dict[str, Any]:
    """Say in the document how to send a key, and which operations need none."""
    schema.setdefault("components", {})["securitySchemes"] = _SECURITY_SCHEMES
    schema["security"] = [{name: []} for name in _SECURITY_SCHEMES] + ([] if keys_required else [{}])
    for path, operations in schema.get("paths", {}).items():
        if is_open(path):
            for operation in operations.values():
                operation["security"] = []
    return schema
