"""Who writes in these tests: the parts' own service accounts, with the chart's own RBAC rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import connect, eventually
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError, KubernetesError
from kubediffusion.resources.apiserver.resource import JSON_PATCH
from kubediffusion.resources.generation_job import GenerationJob, Phase

SignIn = Callable[..., AbstractAsyncContextManager[KubernetesClient]]
"""Signs in as a service account, with a token bound to a Pod where one is named."""


def a_job(name: str = "", **spec: Any) -> dict[str, Any]:
    """Build a job."""
    return {
        "apiVersion": "kubediffusion.io/v1alpha1",
        "kind": "GenerationJob",
        "metadata": {"name": name} if name else {"generateName": "job-"},
        "spec": {"prompt": "a fox in the snow", **spec},
    }


class Room:
    """One namespace, and jobs in it.

    Args:
        client: An administrator's client.
        namespace: The namespace's name.
    """

    def __init__(self, client: KubernetesClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def path(self, *parts: str, group: str = "apis/kubediffusion.io/v1alpha1") -> str:
        """Return the path of an object of this namespace."""
        return "/".join((f"/{group}/namespaces/{self.namespace}", *parts))

    async def create(self, name: str = "", **spec: Any) -> GenerationJob:
        """Create a job."""
        return await self.client.generation_jobs.create(self.namespace, a_job(name, **spec))

    async def try_create(self, body: Mapping[str, Any], plural: str = "generationjobs") -> Any:
        """Have the API server say whether it would create something."""
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        return await self.client.request("POST", self.path(plural), query=query, body=body)

    async def try_patch(self, name: str, patch: Any, who: KubernetesClient | None = None, subresource: str = "") -> Any:
        """Have the API server say whether it would take a merge patch (an object) or a JSON patch (a list)."""
        parts = ("generationjobs", name, *([subresource] if subresource else ()))
        kind = JSON_PATCH if isinstance(patch, list) else "application/merge-patch+json"
        return await (who or self.client).request(
            "PATCH", self.path(*parts), query={"dryRun": "All"}, body=patch, content_type=kind
        )

    async def write(self, who: KubernetesClient, job: GenerationJob, **status: Any) -> GenerationJob:
        """Write a part of a job's status."""
        return await who.generation_jobs.patch(self.namespace, job.name, {"status": status}, subresource="status")

    async def bound(self, operator: KubernetesClient, worker: str) -> GenerationJob:
        """Create a job and bind it."""
        job = await self.create()
        return await self.write(operator, job, phase=Phase.SCHEDULED, worker=worker, attempt=1)


async def refusal(request: Any) -> KubernetesError | None:
    """Return the error that a request ends with; None when it succeeds."""
    try:
        await request
    except KubernetesError as error:
        return error
    return None


@asynccontextmanager
async def signed_in(
    cluster: LocalCluster, room: Room, account: str, pod: str | None = None
) -> AsyncIterator[KubernetesClient]:
    """Connect as a service account."""
    spec: dict[str, Any] = {"expirationSeconds": 3600}
    if pod is not None:
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = room.path("serviceaccounts", account, "token", group="api/v1")
    token = (await room.client.request("POST", path, body=request))["status"]["token"]
    async with await connect(cluster.admin) as client:
        client.configuration.api_key = {"BearerToken": f"Bearer {token}"}
        # The certificate is the administrator's, and the TLS context that holds it is made with the first client.
        client.configuration.cert_file = client.configuration.key_file = None
        async with KubernetesClient(client.configuration) as own:

            async def permitted() -> bool:
                try:
                    await own.generation_jobs.list(room.namespace)
                except ForbiddenError:  # the RoleBinding has not arrived yet
                    return False
                return True

            await eventually(f"the rights of {account}", permitted)
            yield own
