"""The asynchronous client."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from kubediffusion.client.errors import FieldProblem, InvalidRequestError
from kubediffusion.client.handles import (
    CLEAN_UP_SECONDS,
    AsyncAdapters,
    AsyncJob,
    AsyncJobs,
    AsyncModels,
    OnChange,
    cancel_quietly,
    new_key,
)
from kubediffusion.client.requests import Size, spec_of

if TYPE_CHECKING:
    from kubediffusion.client.images import GeneratedImage
    from kubediffusion.client.requests import Spec
    from kubediffusion.client.retries import OnRetry
    from kubediffusion.client.transport import Transport
    from kubediffusion.resources.generation_job import GenerationJobSpec

DEFAULT_SERVER = "http://localhost:8000"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

REQUEST_SECONDS = 30.0
RETRY_SECONDS = 30.0


def transport_of(
    server: str | None,
    api_key: str | None,
    namespace: str | None,
    timeout: float,
    retry_seconds: float,
    on_retry: OnRetry | None,
) -> Transport:
    """Build the transport to wherever the arguments, else the environment, say that KubeDiffusion is.

    That is the HTTP API at ``server``; the Kubernetes API, where a namespace is named; what ``KUBEDIFFUSION_SERVER``
    names; the Kubernetes API, where there is a kubeconfig; and else this machine.

    Args:
        server: Address of the HTTP API.
        api_key: Its API key; by default ``KUBEDIFFUSION_API_KEY``.
        namespace: Namespace of the jobs.
        timeout: Seconds for which the server may be silent.
        retry_seconds: Seconds for which what may pass is tried again.
        on_retry: Called before each further try.

    Raises:
        InvalidRequestError: The address is none, or the key has characters that no key has.
    """
    # What makes requests is loaded when there is one to make: importing the client must be quick.
    from kubediffusion.client.retries import Retries

    retries = Retries(retry_seconds, on_retry)
    key = usable_key(api_key or os.environ.get("KUBEDIFFUSION_API_KEY"))
    address = server or (None if namespace else os.environ.get("KUBEDIFFUSION_SERVER"))
    if not address and (namespace or kubernetes_is_there()):
        from kubediffusion.client.kubernetes import KubernetesTransport

        return KubernetesTransport(namespace, os.environ.get("KUBEDIFFUSION_SERVICE"), key, retries)
    from kubediffusion.client.http import HttpTransport

    return HttpTransport(address or DEFAULT_SERVER, key, timeout, retries)


def usable_key(key: str | None) -> str | None:
    """Return an API key without the whitespace around it, with which a file ends; None where there is none.

    Raises:
        InvalidRequestError: No header of HTTP can carry it. The HTTP library would quote it to say so.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        why = "the API key has characters that are no printable ASCII"
        raise InvalidRequestError([FieldProblem("api_key", why)], remedy="give the key alone, as the server has it")
    return key or None


def kubernetes_is_there() -> bool:
    """Return whether there is a kubeconfig, or this is a Pod with a service account."""
    if os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser().is_file():
        return True
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and SERVICE_ACCOUNT.is_dir()


class AsyncClient:
    """Generates images. Use it as an asynchronous context manager, or call :meth:`aclose`.

    Args:
        server: Address of the HTTP API; by default ``KUBEDIFFUSION_SERVER``. Without either, jobs are created with the
            rights of the kubeconfig, and without a kubeconfig at ``http://localhost:8000``.
        api_key: The API key, where the HTTP API asks for one; by default ``KUBEDIFFUSION_API_KEY``.
        namespace: The namespace of the jobs, which are created with the rights of the kubeconfig; by default that of
            its context.
        timeout: Seconds for which the server may be silent.
        retry_seconds: Seconds for which a request is tried again that failed for a while only: over a limit, a server
            that restarts, a broken connection. 0 for once only.
        on_retry: Called before each further try, with the error and the seconds until then.
        transport: Another way to KubeDiffusion; then the first three mean nothing.

    Attributes:
        jobs: The jobs that there are.
        models: The models that jobs can use.
        adapters: The LoRA adapters that jobs can name.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        namespace: str | None = None,
        timeout: float = REQUEST_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        on_retry: OnRetry | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.transport = transport or transport_of(server, api_key, namespace, timeout, retry_seconds, on_retry)
        self.jobs = AsyncJobs(self.transport)
        self.models = AsyncModels(self.transport)
        self.adapters = AsyncAdapters(self.transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.transport.aclose()

    async def generate(
        self,
        prompt: str | GenerationJobSpec,
        *,
        model: str | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        count: int | None = None,
        size: Size | None = None,
        negative: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - what ends then is the job
        cancel: bool = True,
        on_change: OnChange | None = None,
        **fields: Any,
    ) -> list[GeneratedImage]:
        """Generate images and return them.

        Args:
            prompt: What the image shows; or a whole spec, which the other arguments change.
            model: The model; by default the one that is the server's default.
            seed: Noise seed of the first image; drawn at random by default.
            steps: Denoising steps.
            guidance: Guidance scale.
            count: Images.
            size: ``"512x768"``, or width and height.
            negative: What the image should not show.
            timeout: Seconds after which to give up; never by default.
            cancel: Cancel the job where this ends before the job does: by its timeout, by Ctrl-C, by cancellation.
            on_change: Called about once a second with the job as it stands.
            fields: Any other field of a GenerationJob's spec, in snake_case: ``scheduler``, ``priority`` and so on.

        Raises:
            InvalidRequestError: A field is refused.
            JobFailedError: The job failed.
            JobCancelledError: Somebody cancelled it.
            WaitTimeoutError: The time was over.
            KubeDiffusionError: The request failed in another way.
        """
        job = await self.submit(
            prompt, model=model, seed=seed, steps=steps, guidance=guidance, count=count, size=size, negative=negative,
            cancel=cancel, **fields,
        )  # fmt: skip
        await job.wait(timeout, cancel=cancel, on_change=on_change)
        return await job.images()

    async def submit(
        self,
        prompt: str | GenerationJobSpec,
        *,
        model: str | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        count: int | None = None,
        size: Size | None = None,
        negative: str | None = None,
        idempotency_key: str | None = None,
        cancel: bool = True,
        **fields: Any,
    ) -> AsyncJob:
        """Create a job and return it without waiting for it. The arguments are those of :meth:`generate`.

        An answer that is lost never makes a second job: each try of one call carries the same idempotency key.

        Args:
            prompt: What the image shows.
            model: The model.
            seed: Noise seed of the first image.
            steps: Denoising steps.
            guidance: Guidance scale.
            count: Images.
            size: Width and height.
            negative: What the image should not show.
            idempotency_key: Any unique text without spaces. With the same one another call, of another process too,
                gives the same job; by default each call has its own.
            cancel: Cancel the job where this is cancelled before it is known whether there is one.
            fields: Any other field of a GenerationJob's spec, in snake_case.
        """
        named = {
            "model": model,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "count": count,
            "negative": negative,
        }
        return await self.submit_spec(spec_of(prompt, {**named, **fields}, size), idempotency_key, cancel=cancel)

    async def submit_spec(self, spec: Spec, idempotency_key: str | None = None, *, cancel: bool = True) -> AsyncJob:
        """Create the job of a spec whose fields have their names in snake_case."""
        key = idempotency_key or new_key()
        try:
            return AsyncJob(self.transport, await self.transport.submit(spec, key))
        except anyio.get_cancelled_exc_class():
            if cancel:
                # The server may have the job without us knowing its name: the same key gives the same one.
                with anyio.move_on_after(CLEAN_UP_SECONDS, shield=True):
                    await cancel_quietly(self.transport, (await self.transport.submit(spec, key)).name)
            raise
