"""The asynchronous client."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from kubediffusion.client.errors import (
    ConflictError,
    CorruptImageError,
    JobCancelledError,
    JobFailedError,
    KubeDiffusionError,
    NotFoundError,
    WaitTimeoutError,
)
from kubediffusion.client.images import GeneratedImage
from kubediffusion.client.requests import Size, spec_of

if TYPE_CHECKING:
    from kubediffusion.client.requests import Spec
    from kubediffusion.client.retries import OnRetry
    from kubediffusion.client.transport import Transport
    from kubediffusion.client.views import JobPage, JobSummary, JobView, ModelView
    from kubediffusion.resources.generation_job import GenerationJobSpec

DEFAULT_SERVER = "http://localhost:8000"

REQUEST_SECONDS = 30.0
RETRY_SECONDS = 30.0

QUIET_WAIT_SECONDS = 30.0
"""How long one question for a job's end waits where nobody looks at the progress."""
WATCHED_WAIT_SECONDS = 1.0
"""How long where somebody does; workers tell their progress once a second."""

CLEAN_UP_SECONDS = 10.0
"""How long the cancellation of what was started may take, once whoever waited for it is gone."""

PAGE_SIZE = 100

OnChange = Callable[["JobView"], None]
"""Called with a job as it stands now, about once a second."""


def transport_of(server: str | None, api_key: str | None, timeout: float, retry_seconds: float,
                 on_retry: OnRetry | None) -> Transport:  # fmt: skip
    """Build the transport to a server.

    Args:
        server: Its address; by default ``KUBEDIFFUSION_SERVER``, else ``http://localhost:8000``.
        api_key: The API key; by default ``KUBEDIFFUSION_API_KEY``.
        timeout: Seconds for which the server may be silent.
        retry_seconds: Seconds for which what may pass is tried again.
        on_retry: Called before each further try.
    """
    # What makes requests is loaded when there is one to make: importing the client must be quick.
    from kubediffusion.client.http import HttpTransport
    from kubediffusion.client.retries import Retries

    address = server or os.environ.get("KUBEDIFFUSION_SERVER") or DEFAULT_SERVER
    key = api_key or os.environ.get("KUBEDIFFUSION_API_KEY")
    return HttpTransport(address, key, timeout, Retries(retry_seconds, on_retry))


class AsyncClient:
    """Generates images. Use it as an asynchronous context manager, or call :meth:`aclose`.

    Args:
        server: Address of the HTTP API; by default ``KUBEDIFFUSION_SERVER``, else ``http://localhost:8000``.
        api_key: The API key, where the server asks for one; by default ``KUBEDIFFUSION_API_KEY``.
        timeout: Seconds for which the server may be silent.
        retry_seconds: Seconds for which a request is tried again that failed for a while only: over a limit, a server
            that restarts, a broken connection. 0 for once only.
        on_retry: Called before each further try, with the error and the seconds until then.
        transport: Another way to KubeDiffusion; then ``server`` and ``api_key`` mean nothing.

    Attributes:
        jobs: The jobs that there are.
        models: The models that jobs can use.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = REQUEST_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        on_retry: OnRetry | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.transport = transport or transport_of(server, api_key, timeout, retry_seconds, on_retry)
        self.jobs = AsyncJobs(self.transport)
        self.models = AsyncModels(self.transport)

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
        key = idempotency_key or str(uuid.uuid4())
        try:
            return AsyncJob(self.transport, await self.transport.submit(spec, key))
        except anyio.get_cancelled_exc_class():
            if cancel:
                # The server may have the job without us knowing its name: the same key gives the same one.
                with anyio.move_on_after(CLEAN_UP_SECONDS, shield=True):
                    await _cancel_quietly(self.transport, (await self.transport.submit(spec, key)).name)
            raise


class AsyncJob:
    """A job that has been created.

    Args:
        transport: The way to it.
        view: The job as it stood last.

    Attributes:
        view: The job as it stood when it was last asked for.
    """

    def __init__(self, transport: Transport, view: JobView) -> None:
        self._transport = transport
        self.view = view

    def __repr__(self) -> str:
        return f"<Job {self.name} {self.view.phase}>"

    @property
    def name(self) -> str:
        """The job's name, which is the task id of the HTTP API and the name of the GenerationJob."""
        return self.view.name

    async def refresh(self) -> JobView:
        """Ask how it stands now."""
        self.view = await self._transport.job(self.name)
        return self.view

    async def finished(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - ends with our error
        *,
        on_change: OnChange | None = None,
    ) -> JobView:
        """Wait until it has ended, however, and return it.

        Args:
            timeout: Seconds after which to give up; never by default.
            on_change: Called about once a second with the job as it stands.

        Raises:
            WaitTimeoutError: The time was over.
        """
        end = None if timeout is None else time.monotonic() + timeout
        longest = QUIET_WAIT_SECONDS if on_change is None else WATCHED_WAIT_SECONDS
        while True:
            if on_change is not None:
                on_change(self.view)
            if self.view.finished:
                return self.view
            rest = longest if end is None else end - time.monotonic()
            if rest <= 0:
                raise WaitTimeoutError(self.view, timeout or 0)
            self.view = await self._transport.changed(self.view, min(rest, longest))

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - ends with our error
        *,
        cancel: bool = False,
        on_change: OnChange | None = None,
    ) -> JobView:
        """Wait until its images are there, and return it.

        Args:
            timeout: Seconds after which to give up; never by default.
            cancel: Cancel the job where this ends before the job does.
            on_change: Called about once a second with the job as it stands.

        Raises:
            JobFailedError: It failed.
            JobCancelledError: It was cancelled.
            WaitTimeoutError: The time was over.
        """
        try:
            return succeeded(await self.finished(timeout, on_change=on_change))
        except BaseException:
            if cancel and not self.view.finished:
                with anyio.move_on_after(CLEAN_UP_SECONDS, shield=True):
                    await _cancel_quietly(self._transport, self.name)
            raise

    async def cancel(self) -> JobView:
        """Ask for it to stop: at once if it waits, at the next denoising step if it runs.

        Raises:
            ConflictError: It has finished already.
        """
        self.view = await self._transport.cancel(self.name)
        return self.view

    async def delete(self) -> None:
        """Delete it; its images too, if its ``deletion_policy`` is ``Delete``."""
        await self._transport.delete(self.name)

    async def images(self) -> list[GeneratedImage]:
        """Wait until its images are there, and return them.

        Raises:
            JobFailedError: It failed.
            JobCancelledError: It was cancelled.
            ImageGoneError: An image has been deleted from storage.
            CorruptImageError: An image is not the one whose hash the job names.
        """
        if not self.view.finished:
            await self.finished()
        view = succeeded(self.view)
        first = view.parameters.seed if view.parameters else view.request.seed
        found = []
        for image in view.images:
            data = await self._transport.image(view, image)
            if hashlib.sha256(data).hexdigest() != image.sha256:
                raise CorruptImageError(f"image {image.index} of job {view.name} has another hash than the job names")
            seed = None if first is None else first + image.index
            found.append(
                GeneratedImage(
                    data, view.name, image.index, seed, image.width, image.height, image.sha256, image.flagged
                )
            )
        return found

    async def again(self, *, seed: int | None = None, **fields: Any) -> AsyncJob:
        """Create a job like this one.

        Args:
            seed: Another seed; by default the one that this job was run with.
            fields: What else is different, by its names in :meth:`AsyncClient.submit`.
        """
        ran = self.view.parameters.seed if self.view.parameters else None
        size = fields.pop("size", None)
        spec = spec_of(self.view.request, {"seed": ran if seed is None else seed, **fields}, size)
        return AsyncJob(self._transport, await self._transport.submit(spec, str(uuid.uuid4())))


class AsyncJobs:
    """The jobs that there are."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, name: str) -> AsyncJob:
        """Return a job.

        Raises:
            NotFoundError: There is none of this name.
        """
        return AsyncJob(self._transport, await self._transport.job(name))

    async def list(
        self, *, phase: str | Collection[str] = (), model: str | None = None, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[JobSummary]:
        """Yield the jobs, newest first, page by page as they are asked for.

        Args:
            phase: Only jobs in this phase, or in one of these: ``Pending``, ``Running``, ``Succeeded`` and so on.
            model: Only jobs of this model.
            page_size: Jobs that are asked for at once.
        """
        token: str | None = None
        while True:
            page = await self.page(phase=phase, model=model, size=page_size, token=token)
            for job in page.jobs:
                yield job
            token = page.continue_token
            if token is None:
                return

    async def page(
        self,
        *,
        phase: str | Collection[str] = (),
        model: str | None = None,
        size: int = PAGE_SIZE,
        token: str | None = None,
    ) -> JobPage:
        """Return one page of the jobs; its ``continue_token`` asks for the next."""
        phases = (phase,) if isinstance(phase, str) else phase
        return await self._transport.page(phases, model, size, token)


class AsyncModels:
    """The models that jobs can use."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[ModelView]:
        """Return the models: whether each can be used, its defaults and its limits."""
        return await self._transport.models()

    async def get(self, name: str) -> ModelView:
        """Return a model.

        Raises:
            NotFoundError: There is none of this name.
        """
        found = next((model for model in await self._transport.models() if model.name == name), None)
        if found is None:
            raise NotFoundError(f"there is no model {name!r}")
        return found


def succeeded(view: JobView) -> JobView:
    """Return a job that has succeeded.

    Raises:
        JobFailedError: It failed.
        JobCancelledError: It was cancelled.
    """
    if view.phase == "Succeeded":
        return view
    raise JobCancelledError(view) if view.phase == "Cancelled" else JobFailedError(view)


async def _cancel_quietly(transport: Transport, name: str) -> None:
    try:
        await transport.cancel(name)
    except ConflictError:
        return  # it has finished meanwhile
    except KubeDiffusionError:
        return  # whoever waited learns of what ended the wait
