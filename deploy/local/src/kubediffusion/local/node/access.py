"""Everything that this node asks the API server, beyond watching pods."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from kubediffusion.local.node.objects import Pod
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import NotFoundError
from kubediffusion.resources.apiserver.resource import STRATEGIC_MERGE_PATCH

PLURALS = {"Secret": "secrets", "ConfigMap": "configmaps"}


class Access:
    """The API server, with the rights of a node."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client

    async def content(self, kind: str, namespace: str, name: str) -> dict[str, bytes] | None:
        """Return the content of a Secret or ConfigMap, or None where there is no such object."""
        try:
            found = await self._client.request("GET", f"/api/v1/namespaces/{namespace}/{PLURALS[kind]}/{name}")
        except NotFoundError:
            return None
        if kind == "Secret":
            return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
        texts = {key: value.encode() for key, value in found.get("data", {}).items()}
        return texts | {key: base64.b64decode(value) for key, value in found.get("binaryData", {}).items()}

    async def token(self, pod: Pod, audience: str, seconds: int) -> str:
        """Return a token of the pod's service account that ends with the pod."""
        body = {
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod.metadata.name,
                    "uid": pod.metadata.uid,
                },
            }
        }
        account = f"/api/v1/namespaces/{pod.metadata.namespace}/serviceaccounts/{pod.spec.service_account_name}"
        answer = await self._client.request("POST", f"{account}/token", body=body)
        return str(answer["status"]["token"])

    async def claimed_path(self, namespace: str, claim: str) -> str | None:
        """Return the path of this machine that stands behind a claim, or nothing where it has none (yet)."""
        found = await self._client.request("GET", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        volume = found["spec"].get("volumeName")
        if not volume:
            return None
        spec = (await self._client.request("GET", f"/api/v1/persistentvolumes/{volume}"))["spec"]
        path = (spec.get("hostPath") or spec.get("local") or {}).get("path")
        return str(path) if path else None

    async def write_status(self, pod: Pod, status: Mapping[str, Any]) -> None:
        """Write a pod's status; refused when another pod has taken its name."""
        # Lists are merged: without this, a pod whose address has changed would have both.
        addresses = {"podIPs": [{"$patch": "replace"}, *status["podIPs"]]} if "podIPs" in status else {}
        patch = {"metadata": {"uid": pod.metadata.uid}, "status": {**status, **addresses}}
        await self._client.request("PATCH", f"{_path(pod)}/status", body=patch, content_type=STRATEGIC_MERGE_PATCH)

    async def remove(self, pod: Pod) -> None:
        """Take a pod whose processes are gone out of the cluster."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}}
        await self._client.request("DELETE", _path(pod), body=options)

    async def create_event(self, event: Mapping[str, Any], namespace: str) -> None:
        """Create an event."""
        await self._client.request("POST", f"/api/v1/namespaces/{namespace}/events", body=event)


def _path(pod: Pod) -> str:
    return f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}"
