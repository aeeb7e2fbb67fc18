"""The web page at ``/``: a prompt, its progress and its picture, over ``/v1``. It needs nothing but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).parent

HEADERS = {
    # Only this server's own files; pictures also as blobs, since an <img> cannot send an API key.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


router = APIRouter(include_in_schema=False)


@router.get("/", response_model=None)
async def page(request: Request) -> Response:
    """Send the page."""
    if getattr(request.state, "bare_root", False):
        # Its addresses are relative, and begin behind the prefix's slash.
        return RedirectResponse(f"{request.app.state.app_state.settings.root_path}/")
    return FileResponse(HERE / "index.html", headers=HEADERS)


def assets() -> StaticFiles:
    """Build the app that serves the page's script and style."""
    return StaticFiles(directory=HERE / "assets")
