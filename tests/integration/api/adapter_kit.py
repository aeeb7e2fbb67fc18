"""LoRAAdapters for tests, with the status that the operator gives them."""

from __future__ import annotations

import json
from typing import Any

from integration.api.api_kit import MODEL
from kubediffusion.local.testing import Namespace
from kubediffusion.resources import meta


def add_adapter(
    namespace: Namespace, name: str, model: str = MODEL, *, ready: tuple[str, str] | None = None, **spec: Any
) -> None:
    """Create an adapter.

    Args:
        namespace: Where.
        name: Its name.
        model: The model that it is for.
        ready: Reason and message of its condition Ready, which is True for Loaded; none when not given.
        **spec: More fields of its spec.
    """
    body = {"model": model, "source": {"path": "/adapters"}, **spec}
    kind = {"apiVersion": meta.API_VERSION, "kind": "LoRAAdapter"}
    namespace.apply({**kind, "metadata": {"name": name}, "spec": body})
    if ready is None:
        return
    reason, message = ready
    condition = {"type": "Ready", "status": str(reason == "Loaded"), "reason": reason, "message": message}
    conditions = [{**condition, "lastTransitionTime": "2026-11-23T10:00:00Z"}]
    status = {"conditions": conditions, "observedGeneration": 1, "rank": 8, "digest": "ab" * 32}
    patch = json.dumps({"status": status})
    namespace.kubectl("patch", "lora", name, "--subresource=status", "--type=merge", f"--patch={patch}")
