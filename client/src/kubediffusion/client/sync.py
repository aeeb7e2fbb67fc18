"""The client for programs without an event loop: the asynchronous one, which a thread of its own runs.

What the arguments mean is said once, at :mod:`kubediffusion.client.aio`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kubediffusion.client.aio import REQUEST_SECONDS, RETRY_SECONDS, AsyncClient, transport_of
from kubediffusion.client.handles import PAGE_SIZE, AsyncJob, OnChange
from kubediffusion.client.images import GeneratedImage
from kubediffusion.client.portal import Portal
from kubediffusion.client.requests import Size

if TYPE_CHECKING:
    from kubediffusion.client.retries import OnRetry
    from kubediffusion.client.transport import Transport
    from kubediffusion.client.views import AdapterView, JobPage, JobSummary, JobView, ModelView
    from kubediffusion.resources.generation_job import GenerationJobSpec


class Client:
    """Generates images. Use it as a context manager, or call :meth:`close`; several threads may share it.

    Args:
        server: Address of the HTTP API; by default ``KUBEDIFFUSION_SERVER``. Without either, jobs are created with the
            rights of the kubeconfig, and without a kubeconfig at ``http://localhost:8000``.
        api_key: The API key, where the HTTP API asks for one; by default ``KUBEDIFFUSION_API_KEY``.
        namespace: The namespace of the jobs, which are created with the rights of the kubeconfig; by default that of
            its context.
        timeout: Seconds for which the server may be silent.
        retry_seconds: Seconds for which a request is tried again that failed for a while only; 0 for once only.
        on_retry: Called before each further try, in another thread.
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
        transport = transport or transport_of(server, api_key, namespace, timeout, retry_seconds, on_retry)
        self._client = AsyncClient(transport=transport)
        self._portal = Portal(self._client.aclose)
        self.jobs = Jobs(self._client, self._portal)
        self.models = Models(self._client, self._portal)
        self.adapters = Adapters(self._client, self._portal)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the thread."""
        self._portal.close()

    def generate(
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
        timeout: float | None = None,
        cancel: bool = True,
        on_change: OnChange | None = None,
        **fields: Any,
    ) -> list[GeneratedImage]:
        """Generate images and return them: :meth:`AsyncClient.generate`."""
        return self._portal.call(
            lambda: self._client.generate(
                prompt, model=model, seed=seed, steps=steps, guidance=guidance, count=count, size=size,
                negative=negative, timeout=timeout, cancel=cancel, on_change=on_change, **fields,
            )
        )  # fmt: skip

    def submit(
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
    ) -> Job:
        """Create a job and return it without waiting for it: :meth:`AsyncClient.submit`."""
        job = self._portal.call(
            lambda: self._client.submit(
                prompt, model=model, seed=seed, steps=steps, guidance=guidance, count=count, size=size,
                negative=negative, idempotency_key=idempotency_key, cancel=cancel, **fields,
            )
        )  # fmt: skip
        return Job(job, self._portal)


class Job:
    """A job that has been created: :class:`AsyncJob`."""

    def __init__(self, job: AsyncJob, portal: Portal) -> None:
        self._job = job
        self._portal = portal

    def __repr__(self) -> str:
        return repr(self._job)

    @property
    def name(self) -> str:
        """The job's name, which is the task id of the HTTP API and the name of the GenerationJob."""
        return self._job.name

    @property
    def view(self) -> JobView:
        """The job as it stood when it was last asked for."""
        return self._job.view

    def refresh(self) -> JobView:
        """Ask how it stands now."""
        return self._portal.call(self._job.refresh)

    def finished(self, timeout: float | None = None, *, on_change: OnChange | None = None) -> JobView:
        """Wait until it has ended, however, and return it: :meth:`AsyncJob.finished`."""
        return self._portal.call(lambda: self._job.finished(timeout, on_change=on_change))

    def wait(self, timeout: float | None = None, *, cancel: bool = False, on_change: OnChange | None = None) -> JobView:
        """Wait until its images are there, and return it: :meth:`AsyncJob.wait`."""
        return self._portal.call(lambda: self._job.wait(timeout, cancel=cancel, on_change=on_change))

    def cancel(self) -> JobView:
        """Ask for it to stop."""
        return self._portal.call(self._job.cancel)

    def delete(self) -> None:
        """Delete it; its images too, if its ``deletion_policy`` is ``Delete``."""
        self._portal.call(self._job.delete)

    def images(self) -> list[GeneratedImage]:
        """Wait until its images are there, and return them: :meth:`AsyncJob.images`."""
        return self._portal.call(self._job.images)

    def again(self, *, seed: int | None = None, **fields: Any) -> Job:
        """Create a job like this one: :meth:`AsyncJob.again`."""
        return Job(self._portal.call(lambda: self._job.again(seed=seed, **fields)), self._portal)


class Jobs:
    """The jobs that there are."""

    def __init__(self, client: AsyncClient, portal: Portal) -> None:
        self._client = client
        self._portal = portal

    def get(self, name: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: There is none of this name.
        """
        return Job(self._portal.call(lambda: self._client.jobs.get(name)), self._portal)

    def list(
        self, *, phase: str | Collection[str] = (), model: str | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[JobSummary]:
        """Yield the jobs, newest first, page by page as they are asked for: :meth:`AsyncJobs.list`."""
        token: str | None = None
        while True:
            page = self._page(phase, model, page_size, token)
            yield from page.jobs
            token = page.continue_token
            if token is None:
                return

    def _page(self, phase: str | Collection[str], model: str | None, size: int, token: str | None) -> JobPage:
        return self._portal.call(lambda: self._client.jobs.page(phase=phase, model=model, size=size, token=token))


class Models:
    """The models that jobs can use."""

    def __init__(self, client: AsyncClient, portal: Portal) -> None:
        self._client = client
        self._portal = portal

    def list(self) -> list[ModelView]:
        """Return the models: whether each can be used, its defaults and its limits."""
        return self._portal.call(self._client.models.list)

    def get(self, name: str) -> ModelView:
        """Return a model.

        Raises:
            NotFoundError: There is none of this name.
        """
        return self._portal.call(lambda: self._client.models.get(name))


class Adapters:
    """The LoRA adapters that jobs can name."""

    def __init__(self, client: AsyncClient, portal: Portal) -> None:
        self._client = client
        self._portal = portal

    def list(self, model: str | None = None) -> list[AdapterView]:
        """Return the adapters of a model, or all of them: whether a worker holds each, and why not."""
        return self._portal.call(lambda: self._client.adapters.list(model))
