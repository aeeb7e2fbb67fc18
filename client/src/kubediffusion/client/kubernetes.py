"""KubeDiffusion through the Kubernetes API, with the rights of whoever asks; docs/adr/0021 says why so.

Jobs are created, watched and cancelled as kubectl does. Images lie in storage, to which the user has no keys: they come
from the HTTP API's Service, through the API server's proxy for Services.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import httpx
from kubernetes.aio import config as kubernetes_config

from kubediffusion.client import http
from kubediffusion.client.errors import (
    ConflictError,
    FieldProblem,
    InvalidRequestError,
    KubeDiffusionError,
    NotFoundError,
)
from kubediffusion.client.objects import adapter_view, asks_for, error_of, job_view, manifest, model_view
from kubediffusion.client.requests import Spec
from kubediffusion.client.retries import Retries
from kubediffusion.client.views import AdapterView, ImageView, JobPage, JobSummary, JobView, ModelView
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ConflictError as AlreadyExistsError
from kubediffusion.resources.apiserver.errors import GoneError, KubernetesError, error_from_answer
from kubediffusion.resources.apiserver.resource import EventType
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.transitions import TERMINAL

USER_AGENT = "kubediffusion-client"
SERVICE_SELECTOR = "app.kubernetes.io/name=kubediffusion,app.kubernetes.io/component=api"
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
PORT = "http"
WATCHED_SECONDS = 30.0

_NAMES = uuid.UUID("5b0f3c52-1b0e-5f0c-8f9a-0f6a2d6c7e11")
"""Where the names of jobs live whose idempotency key is no UUID (RFC 9562, version 5). It must never change."""

T = TypeVar("T")


class KubernetesTransport:
    """The Kubernetes API of one cluster, in one namespace.

    Args:
        namespace: The namespace; None for that of the kubeconfig's context, or of the Pod.
        service: The HTTP API's Service; None for the one that the chart has made in the namespace.
        api_key: The HTTP API's key, where it asks for one: for images alone.
        retries: What becomes of requests that fail for a while.
    """

    watched_seconds = WATCHED_SECONDS

    def __init__(self, namespace: str | None, service: str | None, api_key: str | None, retries: Retries) -> None:
        self._namespace = namespace
        self._service = service
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._retries = retries
        self._client: KubernetesClient | None = None
        self._connecting = anyio.Lock()
        self._versions: dict[str, str] = {}

    @property
    def place(self) -> str:
        """What it reaches, for people."""
        return f"namespace {self._namespace or 'of the kubeconfig'}"

    async def submit(self, spec: Spec, key: str) -> JobView:
        """Create a job. Its name is made of the key, so that the API server refuses a second one."""
        name = key if _is_uuid(key) else str(uuid.uuid5(_NAMES, key))

        async def attempt(client: KubernetesClient, namespace: str) -> GenerationJob:
            try:
                return await client.generation_jobs.create(namespace, manifest(name, spec))
            except AlreadyExistsError:
                job = await client.generation_jobs.get(namespace, name)
            if not asks_for(job.spec, spec):
                raise InvalidRequestError([FieldProblem("idempotency_key", "this key was used with another request")])
            return job

        return self._view(await self._run(attempt))

    async def job(self, name: str) -> JobView:
        """Read the GenerationJob of this name."""
        return self._view(await self._run(lambda client, namespace: client.generation_jobs.get(namespace, name)))

    async def changed(self, job: JobView, seconds: float) -> JobView:
        """Watch a job until it changes, for ``seconds`` at most."""
        version = self._versions.get(job.name)
        if version is None:
            return await self.job(job.name)

        async def attempt(client: KubernetesClient, namespace: str) -> GenerationJob | None:
            selector = f"metadata.name={job.name}"
            watch = client.generation_jobs.watch(namespace, version, field_selector=selector)
            try:
                async with aclosing(watch) as events:
                    async for event in events:
                        if event.type is EventType.DELETED:
                            raise NotFoundError(f"job {job.name} has been deleted")
                        if event.item is not None:
                            return event.item
                        self._versions[job.name] = event.resource_version
            except GoneError:
                return await client.generation_jobs.get(namespace, job.name)
            return None

        found: GenerationJob | None = None
        with anyio.move_on_after(seconds):
            found = await self._run(attempt)
        return job if found is None else self._view(found)

    async def cancel(self, name: str) -> JobView:
        """Set ``spec.cancel``; what has ended cannot be cancelled, and is read first."""
        job = await self.job(name)
        if job.phase is Phase.CANCELLED:
            return job
        if job.finished:
            raise ConflictError(f"the job has finished already: it is {job.phase}")
        patch = {"spec": {"cancel": True}}
        return self._view(
            await self._run(lambda client, namespace: client.generation_jobs.patch(namespace, name, patch))
        )

    async def delete(self, name: str) -> None:
        """Delete the GenerationJob of this name, whatever its state."""
        await self._run(lambda client, namespace: client.generation_jobs.delete(namespace, name))

    async def page(self, phases: Collection[str], model: str | None, limit: int, token: str | None) -> JobPage:
        """Return all the jobs in one page: the API server lists them by name, and not the newest first."""
        del limit, token
        if unknown := [phase for phase in phases if phase not in set(Phase)]:
            known = ", ".join(Phase)
            raise InvalidRequestError([FieldProblem("phase", f"{unknown[0]!r} is none of {known}")], remedy="")
        selectors = [f"spec.model={model}"] if model else []
        if len(phases) == 1:
            selectors.append(f"status.phase={next(iter(phases))}")
        selector = ",".join(selectors)
        jobs, _ = await self._run(
            lambda client, namespace: client.generation_jobs.list(namespace, field_selector=selector)
        )
        views: list[JobSummary] = [job_view(job) for job in jobs if not phases or job.status.phase in phases]
        return JobPage(jobs=tuple(sorted(views, key=lambda view: (view.created_at, view.name), reverse=True)))

    async def models(self) -> list[ModelView]:
        """List the DiffusionModels of the namespace."""
        models, _ = await self._run(lambda client, namespace: client.diffusion_models.list(namespace))
        return [model_view(model) for model in models]

    async def adapters(self) -> list[AdapterView]:
        """List the LoRAAdapters of the namespace, by name."""
        adapters, _ = await self._run(lambda client, namespace: client.lora_adapters.list(namespace))
        return [adapter_view(adapter) for adapter in sorted(adapters, key=lambda adapter: adapter.name)]

    async def image(self, job: JobSummary, image: ImageView) -> bytes:
        """Return the PNG, from the HTTP API's Service, through the API server."""
        path = f"v1/jobs/{quote(job.name, safe='')}/images/{image.index}"

        async def attempt(client: KubernetesClient, namespace: str) -> bytes:
            service = await self._service_of(client, namespace)
            proxy = f"/api/v1/namespaces/{namespace}/services/{service}:{PORT}/proxy/{path}"
            status, data = await client.read(proxy, query={"image": "base64"}, headers=self._headers)
            if status < 400:
                return data
            if b'"kind":"Status"' in data:
                raise _unproxied(error_of(error_from_answer(status, data)), service)
            # What the HTTP API itself has to say.
            raise http.error_of(httpx.Response(status, content=data))

        return await self._run(attempt)

    async def aclose(self) -> None:
        """Close the connections, if there has been anything to ask."""
        if self._client is not None:
            await self._client.close()

    def _view(self, job: GenerationJob) -> JobView:
        self._versions[job.name] = job.metadata.resource_version
        if job.status.phase in TERMINAL:
            del self._versions[job.name]
        return job_view(job)

    async def _run(self, work: Callable[[KubernetesClient, str], Awaitable[T]]) -> T:
        client, namespace = await self._connected()

        async def attempt() -> T:
            try:
                return await work(client, namespace)
            except KubernetesError as error:
                raise error_of(error) from error

        return await self._retries.run(attempt)

    async def _connected(self) -> tuple[KubernetesClient, str]:
        async with self._connecting:
            if self._client is None:
                try:
                    self._client = await KubernetesClient.connect(USER_AGENT)
                    self._namespace = self._namespace or _current_namespace()
                except (kubernetes_config.ConfigException, OSError) as error:
                    remedy = "name a kubeconfig in KUBECONFIG, or the HTTP API's address with --server"
                    raise KubeDiffusionError(f"there is no usable kubeconfig: {error}", remedy=remedy) from error
        return self._client, self._namespace or "default"

    async def _service_of(self, client: KubernetesClient, namespace: str) -> str:
        if self._service is None:
            path = f"/api/v1/namespaces/{namespace}/services"
            found: Any = await client.request("GET", path, query={"labelSelector": SERVICE_SELECTOR})
            names = [service["metadata"]["name"] for service in found["items"]]
            if not names:
                raise _without_api(f"there is no Service of KubeDiffusion's HTTP API in namespace {namespace}")
            self._service = names[0]
        return self._service


def _current_namespace() -> str:
    if not os.environ.get("KUBECONFIG") and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
    _, active = kubernetes_config.list_kube_config_contexts()
    return str(active["context"].get("namespace") or "default")


def _without_api(reason: str) -> KubeDiffusionError:
    remedy = "images come from it: name its Service in KUBEDIFFUSION_SERVICE, or its address with --server"
    return KubeDiffusionError(reason, remedy=remedy)


def _unproxied(error: KubeDiffusionError, service: str) -> KubeDiffusionError:
    """Say of what the API server refuses that it is about the way to the HTTP API."""
    if isinstance(error, NotFoundError):
        return _without_api(f"Service {service} leads nowhere: {error.reason}")
    error.remedy = f"the API server could not ask Service {service} for it; --server goes there without it"
    return error


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
