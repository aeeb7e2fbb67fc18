"""The OpenAPI document, and the page that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubediffusion.api import openapi
from kubediffusion.api.app import create_app
from kubediffusion.api.settings import Settings


def document(**settings: Any) -> dict[str, Any]:
    return create_app(Settings(**settings)).openapi()


def test_the_document_is_fastapis_own_dialect() -> None:
    assert document()["openapi"].startswith("3.1.")


def test_the_packaged_swagger_ui_renders_that_dialect() -> None:
    """Swagger UI 5 is the first that renders OpenAPI 3.1; the bundle has its version in it."""
    script, status = openapi.assets().lookup_path("swagger-ui-bundle.js")
    assert status is not None
    assert 'PACKAGE_VERSION:"5.' in Path(script).read_text()


def test_the_document_says_which_operations_need_a_key(tmp_path: Path) -> None:
    found = document(api_keys_file=tmp_path)
    assert found["security"] == [{"bearer": []}, {"apiKey": []}]
    opened = {path for path, operations in found["paths"].items() if operations.get("get", {}).get("security") == []}
    assert opened == {"/health", "/livez", "/readyz", "/metrics"}
    assert {} in document()["security"]
