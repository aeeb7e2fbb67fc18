"""Brings the cluster's CustomResourceDefinitions up to date, in the chart's hook: Helm itself upgrades none.

Server-side apply leaves what others set on them (conversion, labels, annotations). An older release never removes
fields: the hook runs before installs and upgrades, not before a rollback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubediffusion.resources.apiserver.client import KubernetesClient

FIELD_MANAGER = "kubediffusion-crds"
PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"


async def apply_definitions(client: KubernetesClient, definitions: Iterable[dict[str, Any]]) -> list[str]:
    """Apply definitions that the cluster has already, and return one line about each.

    Raises:
        KubernetesError: The server refused one; ``ForbiddenError`` also where the cluster lacks it, since the hook has
            no right to create one.
    """
    lines = []
    for definition in definitions:
        name = definition["metadata"]["name"]
        before = await client.request("GET", PATH + name)
        after = await client.request(
            "PATCH",
            PATH + name,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=definition,
            content_type="application/apply-patch+yaml",
        )
        changed = after["metadata"]["generation"] != before["metadata"]["generation"]
        lines.append(f"{name}: {'changed' if changed else 'up to date'}")
    return lines
