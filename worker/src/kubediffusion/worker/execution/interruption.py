"""What images that interrupt a batch tell, and what they are told."""

from __future__ import annotations

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine import EntryLimit, ImageId, ImageRequest, Monitor, Outcome


class Interruption:
    """Watches images that interrupt a batch, for the batch's monitor: nobody joins them or interrupts them.

    Args:
        monitor: Who is told.
        requests: The images.
    """

    def __init__(self, monitor: Monitor, requests: tuple[ImageRequest, ...]) -> None:
        self._monitor = monitor
        self._open = {request.id for request in requests}
        self.wanted = monitor.wanted
        self.stepped = monitor.stepped
        self.preview_due = monitor.preview_due
        self.previewed = monitor.previewed
        self.count_step = monitor.count_step
        self.priority = monitor.priority

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        """Pass the end of an image on; :meth:`end` does not report it again."""
        self._open.discard(image_id)
        self._monitor.ended(image_id, outcome)

    def end(self, failure: JobFailure) -> None:
        """Report the end, with a failure, of all images whose end was not reported."""
        for image_id in sorted(self._open, key=lambda image_id: image_id.index):
            self.ended(image_id, failure)

    def joining_images(self, _room: int, _calls: int, _entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        """Return no images, so that the batch that waits goes on sooner."""
        return ()

    def interrupting_images(self, _left: int, _calls: int, _parkable: object) -> tuple[ImageRequest, ...]:
        """Return no images: none interrupts this batch."""
        return ()

    def overdue(self, _image_id: ImageId) -> bool:
        """Return True for every image: all begin together where there is room."""
        return True
