"""Brings the cluster's CustomResourceDefinitions up to date, in the chart's hook: Helm itself upgrades and adds none.

Server-side apply leaves what others set on them (conversion, labels, annotations). An older release never removes
fields: the hook runs before installs and upgrades, not before a rollback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import NotFoundError

FIELD_MANAGER = "kubediffusion-crds"
PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"


async def apply_definitions(client: KubernetesClient, definitions: Iterable[dict[str, Any]]) -> list[str]:
    """Apply definitions, and return one line about each.

    Raises:
        KubernetesError: The server refused one.
    """
    lines = []
    for definition in definitions:
        name = definition["metadata"]["name"]
        try:
            before = (await client.request("GET", PATH + name))["metadata"]["generation"]
        except NotFoundError:
            before = None
        after = await client.request(
            "PATCH",
            PATH + name,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=definition,
            content_type="application/apply-patch+yaml",
        )
        same = "up to date" if after["metadata"]["generation"] == before else "changed"
        lines.append(f"{name}: {'created' if before is None else same}")
    return lines
