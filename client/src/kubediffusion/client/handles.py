"""What the asynchronous client hands out: a job that has been created, the jobs and the models that there are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Any

import anyio

from kubediffusion.client.errors import (
    CorruptImageError,
    JobCancelledError,
    JobFailedError,
    KubeDiffusionError,
    NotFoundError,
    WaitTimeoutError,
)
from kubediffusion.client.images import GeneratedImage
from kubediffusion.client.requests import spec_again

if TYPE_CHECKING:
    from kubediffusion.client.transport import Transport
    from kubediffusion.client.views import AdapterView, JobPage, JobSummary, JobView, ModelView

QUIET_WAIT_SECONDS = 30.0
"""How long one question for a job's end waits where nobody looks at the progress."""

CLEAN_UP_SECONDS = 10.0
"""How long the cancellation of what was started may take, once whoever waited for it is gone."""

PAGE_SIZE = 100

OnChange = Callable[["JobView"], None]
"""Called with a job as it stands now, about once a second."""


def new_key() -> str:
    """Make an idempotency key of one call. Keys, and the jobs that get their names of them, sort by time."""
    from kubediffusion.resources.task_ids import new_task_id

    return new_task_id()


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
        longest = QUIET_WAIT_SECONDS if on_change is None else self._transport.watched_seconds
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
                    self.view = await cancel_quietly(self._transport, self.name) or self.view
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
        size = fields.pop("size", None)
        spec = spec_again(self.view, {"seed": seed, **fields}, size)
        return AsyncJob(self._transport, await self._transport.submit(spec, new_key()))


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


class AsyncAdapters:
    """The LoRA adapters that jobs can name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self, model: str | None = None) -> list[AdapterView]:
        """Return the adapters of a model, or all of them: whether a worker holds each, and why not."""
        return [each for each in await self._transport.adapters() if model in (None, each.model)]


def succeeded(view: JobView) -> JobView:
    """Return a job that has succeeded.

    Raises:
        JobFailedError: It failed.
        JobCancelledError: It was cancelled.
    """
    if view.phase == "Succeeded":
        return view
    raise JobCancelledError(view) if view.phase == "Cancelled" else JobFailedError(view)


async def cancel_quietly(transport: Transport, name: str) -> JobView | None:
    """Cancel a job; None where that fails, as whoever waited is to learn of what ended the wait."""
    try:
        return await transport.cancel(name)
    except KubeDiffusionError:
        return None
