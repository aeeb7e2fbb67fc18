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
        """Return a job as it stands; :class:`~kubediffusion.client.errors.NotFoundError` where there is none."""
        ...

    async def changed(self, job: JobView, seconds: float) -> JobView:
        """Return a job once it has finished, or as it stands when ``seconds`` have passed; earlier if it changed."""
        ...

    async def cancel(self, name: str) -> JobView:
        """Ask for a job to stop: at once if it waits, at the next denoising step if it runs.

        One that is cancelled already is returned; one that ended otherwise is a
        :class:`~kubediffusion.client.errors.ConflictError`.
        """
        ...

    async def delete(self, name: str) -> None:
        """Delete a job, and its images where its ``deletionPolicy`` says so."""
        ...

    async def page(self, phases: Collection[str], model: str | None, limit: int, token: str | None) -> JobPage:
        """Return jobs, the newest first.

        Args:
            phases: Only those in one of them; all where there is none.
            model: Only those of this model; None for all.
            limit: The most in a page; a transport without pages returns all in one.
            token: ``next_token`` of the page before; None for the first.
        """
        ...

    async def image(self, job: JobSummary, image: ImageView) -> bytes:
        """Return an image's PNG; :class:`~kubediffusion.client.errors.ImageGoneError` where it is deleted."""
        ...

    async def models(self) -> list[ModelView]:
        """Return all models of the place, those that cannot be used too."""
        ...

    async def adapters(self) -> list[AdapterView]:
        """Return all LoRA adapters of the place, those that no worker holds too."""
        ...

    async def aclose(self) -> None:
        """Close the connections. Nothing may be asked after it."""
        ...
