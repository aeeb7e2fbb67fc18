"""The engine's reports on one batch, received in its thread and passed to the event loop.

Neither thread waits for the other: images that join are asked for before a step, and taken after it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import queue
import time
from dataclasses import dataclass
from typing import Protocol

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.engine import EntryLimit, ImageId, ImagePreview, ImageRequest, Outcome, Parkable, StepStats
from kubediffusion.worker.engine.preemption import RunningBatch
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.previews import Previews


@dataclass(frozen=True)
class Member:
    """An image that was taken for the engine.

    Attributes:
        request: What is asked for.
        assignment: Its job.
        due: How many steps will have been run, in all batches, when it enters at the latest.
    """

    request: ImageRequest
    assignment: Assignment
    due: int


Members = dict[ImageId, Member]


class WaitingImages(Protocol):
    """The images that wait, as one batch finds them. Called on the event loop."""

    def take_joining(self, room: int, calls: int, entry_limit: EntryLimit, step: int) -> Members:
        """Take images that join the batch, and return them.

        Args:
            room: Images for which there will be a slot.
            calls: Calls of the model until the batch ends.
            entry_limit: How many of those that wait may enter.
            step: How many steps will have been run when they enter.
        """

    def take_urgent(self, batch: RunningBatch, step: int) -> tuple[Members, bool]:
        """Take images, all of one key, that go before those of the batch.

        Args:
            batch: The batch.
            step: How many steps will have been run when they enter.

        Returns:
            The images, and whether they enter the batch, in others' slots; else they interrupt it.
        """


class EndedImages(Protocol):
    """Takes in the images that end. Called on the event loop."""

    def finish_image(self, assignment: Assignment, index: int, outcome: Outcome) -> None:
        """Handle the end of one image."""


@dataclass(frozen=True)
class BatchListeners:
    """Who is told about the batches of one worker.

    Attributes:
        finisher: Takes in ends.
        previews: Says which image is to be previewed, and takes in previews.
        health: Told about every step.
        metrics: Counts steps.
    """

    finisher: EndedImages
    previews: Previews
    health: Health
    metrics: Metrics


_LOOKED_EVERY = 4
"""Steps between two searches for more urgent images: each search compares all jobs that wait."""


class BatchMonitor:
    """Receives the engine's reports on one batch, in the engine's thread. It is made on the event loop.

    Args:
        members: The images that the batch begins with.
        waiting: Where images that join or interrupt come from.
        steps: How many were run in batches before.
        listeners: Who is told about it.

    Attributes:
        images: Images that the engine was given.
        steps: How many were run, those of batches before included.
    """

    def __init__(self, members: Members, waiting: WaitingImages, steps: int, listeners: BatchListeners) -> None:
        self._members = dict(members)
        self._waiting = waiting
        self._urgent: queue.SimpleQueue[Members] = queue.SimpleQueue()
        self._asked_urgent = False
        self._interrupted = 0
        self._look_at = steps
        self._gave_way_at: int | None = None
        self._loop = asyncio.get_running_loop()
        self._finisher = listeners.finisher
        self._previews = listeners.previews
        self._health = listeners.health
        self._metrics = listeners.metrics
        self._open = set(members)
        self._asked = False
        self._before = self.steps = steps
        self._began = dict.fromkeys(members, time.monotonic())
        # Handed from the event loop to the engine's thread.
        self._found: queue.SimpleQueue[Members] = queue.SimpleQueue()
        self.images = len(members)

    def wanted(self, image_id: ImageId) -> bool:
        """Return whether the image's job is still bound to this worker, and its outcome is not being reported yet."""
        assignment = self._members[image_id].assignment
        return not assignment.dropped and not assignment.finishing

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        """Note that ``step`` denoising steps of an image are done."""
        del total  # the recipe says it
        self._health.engine_active()
        assignment = self._members[image_id].assignment
        if (more := step - assignment.steps[image_id.index]) > 0:
            if not assignment.steps[image_id.index] and (queued_at := assignment.job.status.queued_at) is not None:
                waited = (dt.datetime.now(dt.UTC) - queued_at).total_seconds()
                # Two clocks of two machines.
                self._metrics.first_step.observe(max(waited, 0.0))
            assignment.steps[image_id.index] = step
            self._metrics.steps.inc(more)

    def preview_due(self, image_id: ImageId) -> bool:
        """Return whether somebody looks at the image's job, and has seen no preview lately."""
        return self._previews.due(self._members[image_id].assignment, image_id.index)

    def previewed(self, image_id: ImageId, preview: ImagePreview) -> None:
        """Pass a preview to the event loop; it may be of an image of a batch before."""
        if image_id in self._open:
            assignment = self._members[image_id].assignment
            self._loop.call_soon_threadsafe(self._previews.publish, assignment, image_id.index, preview)

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        """Pass the outcome of an image to the event loop."""
        self._health.engine_active()
        self._open.discard(image_id)
        self._metrics.inference.observe(time.monotonic() - self._began[image_id])
        self._loop.call_soon_threadsafe(
            self._finisher.finish_image, self._members[image_id].assignment, image_id.index, outcome
        )

    def joining_images(self, room: int, calls: int, entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        """Return the images that the event loop found to join the batch, and have it look for more."""
        # Before what it found is taken: else an answer that comes in between is forgotten, and asked for again.
        asked = self._asked
        found = _taken(self._found)
        self._add(found)
        if (room := room - len(found)) > 0 and not asked:
            self._asked = True
            given = len(found)

            def others(waiting: int, overdue: int = 0, /) -> int:
                return max(entry_limit(waiting + given, overdue and overdue + given) - given, 0)

            # Who is found enters after the step that comes now.
            self._loop.call_soon_threadsafe(self._look, room, calls, others, self.steps + 1)
        return tuple(member.request for member in found.values())

    def interrupting_images(self, left: int, calls: int, parkable: tuple[Parkable, ...]) -> tuple[ImageRequest, ...]:
        """Return the images that the event loop found to interrupt the batch, and every few steps have it look anew."""
        if self._gave_way_at is not None:
            # All steps since but one were those of images that it gave way to.
            self._interrupted += max(self.steps - self._gave_way_at - 1, 0)
            self._gave_way_at = None
        found = _taken(self._urgent)
        self._add(found)
        if found:
            self._gave_way_at = self.steps
        elif not self._asked_urgent and self.steps >= self._look_at:
            self._asked_urgent, self._look_at = True, self.steps + _LOOKED_EVERY
            priority = max(map(self.priority, self._open), default=0)
            batch = RunningBatch(priority, left, calls - self._interrupted, parkable)
            self._loop.call_soon_threadsafe(self._look_urgent, batch, self.steps + 1)
        return tuple(member.request for member in found.values())

    def priority(self, image_id: ImageId) -> int:
        """Return the priority of an image's job, as it was last seen."""
        return self._members[image_id].assignment.job.spec.priority or 0

    def overdue(self, image_id: ImageId) -> bool:
        """Return whether an image has waited as many steps as one may."""
        return self.steps >= self._members[image_id].due

    def count_step(self, load: StepStats) -> None:
        """Count a step of the batch in the metrics: how many images it had, in how large a call."""
        self.steps += 1
        self._metrics.batch.observe(load.images)
        self._metrics.slot_steps.inc(load.size)
        self._metrics.compiled_steps.inc(load.compiled)
        self._metrics.batch_limit.set(load.limit)
        if load.memory is not None:
            self._metrics.memory.set(load.memory)

    def close(self, failure: JobFailure) -> list[Members]:
        """End every image that the engine left without an end and that is still wanted; on the event loop.

        Returns:
            What was found too late for this batch: images of one key each, the most urgent first.
        """
        if self.steps == self._before:
            self._metrics.batch.observe(self.images)
        for image_id in sorted(self._open, key=lambda image_id: image_id.index):
            if self.wanted(image_id):
                self._finisher.finish_image(self._members[image_id].assignment, image_id.index, failure)
        # What the engine asked for was looked for before this: the event loop keeps the order of calls.
        return [kept for found in (self._urgent, self._found) if (kept := _still_wanted(_taken(found)))]

    def _add(self, found: Members) -> None:
        self._members |= found
        self._open |= found.keys()
        self._began |= dict.fromkeys(found, time.monotonic())
        self.images += len(found)

    def _look_urgent(self, batch: RunningBatch, step: int) -> None:
        found, joins = self._waiting.take_urgent(batch, step)
        (self._found if joins else self._urgent).put(found)
        self._asked_urgent = False

    def _look(self, room: int, calls: int, entry_limit: EntryLimit, step: int) -> None:
        self._found.put(self._waiting.take_joining(room, calls, entry_limit, step))
        self._asked = False


def _taken(found: queue.SimpleQueue[Members]) -> Members:
    members: Members = {}
    while not found.empty():
        members |= found.get()
    return members


def _still_wanted(members: Members) -> Members:
    return {
        image_id: member
        for image_id, member in members.items()
        if not member.assignment.dropped and not member.assignment.finishing
    }
