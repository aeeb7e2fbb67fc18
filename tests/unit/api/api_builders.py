"""GenerationJobs as the API server sends them."""

from __future__ import annotations

from typing import Any

from kubediffusion.api.access.identity import Identity, Mode
from kubediffusion.api.caller_settings import Scope
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.settings import Settings


def body(name: str = "job", version: int = 1, phase: str = "Pending", **changes: Any) -> dict[str, Any]:
    """Build a job's JSON; ``spec``, ``status`` and ``metadata`` are added to what it has."""
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-of-{name}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-11-23T10:00:00Z",
        **changes.get("metadata", {}),
    }
    spec = {"prompt": "a cat", **changes.get("spec", {})}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, **changes.get("status", {})}}


def cached(name: str = "job", version: int = 1, phase: str = "Pending", **changes: Any) -> CachedJob:
    """Build the cached job of such a JSON."""
    return CachedJob.from_wire(body(name, version, phase, **changes))


def caller(name: str, **settings: Any) -> Identity:
    """Build the identity of an API key's client."""
    return Identity(Mode.API_KEY, name, name, Scope.NAMESPACE, Settings(**settings).limits_of(name))
