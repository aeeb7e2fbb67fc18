"""Bring the cluster's CustomResourceDefinitions up to date: what the chart's hook runs, as Helm upgrades none itself.

Applied on the server's side, so what others set on them (conversion, labels, annotations) stays. An older release never
takes fields away again: the hook runs before installs and upgrades, not before a rollback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubediffusion.resources.apiserver.client import KubernetesClient

FIELD_MANAGER = "kubediffusion-crds"
PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"


async def apply_definitions(client: KubernetesClient, definitions: Iterable[dict[str, Any]]) -> list[str]:
    """Apply definitions that are there already, and give one line about each.

    Raises:
        KubernetesError: The server refused one; Forbidden also where it is not there, as nobody here may create any.
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
