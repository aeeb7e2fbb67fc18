"""Health, probes and metrics: no key, no I/O."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from kubediffusion.api.dependencies import AppStateDep
from kubediffusion.api.schemas import Health

router = APIRouter(tags=["operations"])


@router.get("/health", summary="Whether the server answers and the default model can be used")
async def health(state: AppStateDep) -> Health:
    """Answer 200 always; a model that is away does not make the server unhealthy."""
    return Health(model_status="available" if state.models.available else "unavailable")


@router.get("/livez", summary="Whether the process should go on", response_class=PlainTextResponse)
async def livez(state: AppStateDep) -> Response:
    """Answer 200, or 503 when only a restart helps."""
    return _probe(None if not state.watches.failed else "a watch has ended")


@router.get("/readyz", summary="Whether the process should get requests", response_class=PlainTextResponse)
async def readyz(state: AppStateDep) -> Response:
    """Answer 200 once all jobs and models are known, 503 before."""
    return _probe(None if state.watches.ready else "jobs and models are not known yet")


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(state: AppStateDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(generate_latest(state.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _probe(problem: str | None) -> Response:
    return PlainTextResponse(problem or "ok", status_code=503 if problem else 200)
