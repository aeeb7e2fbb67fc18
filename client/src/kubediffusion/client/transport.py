"""How a client reaches KubeDiffusion: the one interface before HTTP and Kubernetes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kubediffusion.client.requests import Spec
    from kubediffusion.client.views import AdapterView, ImageView, JobPage, JobSummary, JobView, ModelView


class Transport(Protocol):
    """Jobs and models of one place.

    Every method tries again what may pass, for as long as the transport was told to, and raises a
    :class:`~kubediffusion.client.errors.KubeDiffusionError`.
    """

    @property
    def watched_seconds(self) -> float:
        """How long :meth:`changed` is to wait at most where somebody looks at the progress."""
        ...

    @property
    def place(self) -> str:
        """What it reaches, for people."""
        ...

    async def submit(self, spec: Spec, key: str) -> JobView:
        """Create a job. With the same key it is the same job, however often this is called."""
        ...

    async def job(self, name: str) -> JobView:
        """Read a job."""
        ...

    async def changed(self, job: JobView, seconds: float) -> JobView:
        """Return a job once it has finished, or as it stands when ``seconds`` have passed; earlier if it changed."""
        ...

    async def cancel(self, name: str) -> JobView:
        """Ask for a job to stop: at once if it waits, at the next denoising step if it runs."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a job."""
        ...

    async def page(self, phases: Collection[str], model: str | None, limit: int, token: str | None) -> JobPage:
        """Return one page of the jobs, newest first."""
        ...

    async def image(self, job: JobSummary, image: ImageView) -> bytes:
        """Return the PNG of an image."""
        ...

    async def models(self) -> list[ModelView]:
        """Return the models."""
        ...

    async def adapters(self) -> list[AdapterView]:
        """Return the adapters."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
