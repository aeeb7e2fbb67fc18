"""The interface between the engine's loop and what computes: one GPU, or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kubediffusion.worker.engine.plan import StepPlan, StepResult
from kubediffusion.worker.engine.request import ImageId, ImagePreview, ImageRequest, Outcome


class StepExecutor(Protocol):
    """Computes steps. All methods are called from one thread."""

    def accept(self, requests: Sequence[ImageRequest]) -> None:
        """Keep requests, which plans then name by id alone."""

    def discard(self, images: Sequence[ImageId]) -> None:
        """Forget images that no plan names any more."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Execute a plan.

        Raises:
            EngineLostError: The device is lost.
        """

    def finished(self, *, wait: bool) -> list[tuple[ImageId, Outcome]]:
        """Return the images whose pixels are ready with their outcomes, each image once.

        Args:
            wait: Whether to wait for all that are being decoded.
        """

    def previews(self) -> list[tuple[ImageId, ImagePreview]]:
        """Return the previews that are ready, each once; does not wait."""
