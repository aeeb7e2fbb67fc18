"""Which waiting images begin a batch, and which may enter one that runs: functions of the jobs at hand.

That is outside the engine; which of its images have a slot in the next step decides :mod:`.scheduler`.

Priority, then age, then name decides the head of the queue, and nobody delays it. A batch begins with the head. A
static batch is filled, in the same order, with whole jobs of the same key. A batch with slots takes images one by one,
also while it runs: those of the same key, until somebody of another key is the head; from then on only those that are
done before the batch would have ended anyway (backfilling), so that the head waits no longer for them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kubediffusion.resources.queue_order import queue_key
from kubediffusion.worker.engine.interface import EntryLimit, ImagePlan
from kubediffusion.worker.engine.waits import Waits

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Candidate(Generic[K]):
    """A job with images to make.

    Attributes:
        key: Names the job; comes back in the batch.
        plan: How the engine runs it; mates share the key.
        first: Index of the first image that is not made yet.
        images: Images of the job in all; more than ``first``.
        priority: Higher goes first.
        created: When the job was created.
        name: Breaks ties: names of jobs sort by creation within the second that ``created`` resolves.
        deterministic: Runs alone, image by image: a fixed shape gives the same bytes on every attempt.
    """

    key: K
    plan: ImagePlan
    first: int
    images: int
    priority: int
    created: dt.datetime
    name: str
    deterministic: bool = False

    @property
    def remaining(self) -> int:
        """Images still to make."""
        return self.images - self.first


@dataclass(frozen=True)
class Portion(Generic[K]):
    """The part that one job has in a batch.

    Attributes:
        key: The job.
        first: Index of its first image in the batch.
        count: How many of its images are in the batch.
    """

    key: K
    first: int
    count: int


def next_batch(candidates: Iterable[Candidate[K]], max_images: int) -> tuple[Portion[K], ...]:
    """Choose the next batch; empty when there are no candidates.

    A head with more images than fit runs in several batches. Mates in a static batch come whole or not at all: a job
    that has started is not kept waiting half-done behind newer heads.

    Args:
        candidates: Jobs with images to make, in any order.
        max_images: The most images in a batch, at least 1.
    """
    queue = _in_order(candidates)
    if not queue:
        return ()
    head, *others = queue
    if head.deterministic:
        return (Portion(head.key, head.first, 1),)
    if head.plan.joins:
        return joinable_images(queue, head.plan.key, max_images, 0)
    batch = [Portion(head.key, head.first, min(head.remaining, max_images))]
    room = max_images - batch[0].count
    for mate in others:
        if room == 0:
            break
        if mate.plan.key == head.plan.key and not mate.deterministic and mate.remaining <= room:
            batch.append(Portion(mate.key, mate.first, mate.remaining))
            room -= mate.remaining
    return tuple(batch)


def joinable_images(candidates: Iterable[Candidate[K]], key: Hashable, room: int, calls: int) -> tuple[Portion[K], ...]:
    """Choose the images that enter a running batch.

    Args:
        candidates: Jobs with images to make, in any order.
        key: What the batch's images share.
        room: How many may enter.
        calls: Calls of the model until the last of the batch's images is done.
    """
    entering: list[Portion[K]] = []
    others_wait = False
    for candidate in _in_order(candidates):
        if room == 0:
            break
        if candidate.plan.key != key or candidate.deterministic:
            others_wait = True
        elif not others_wait or candidate.plan.calls <= calls:
            entering.append(Portion(candidate.key, candidate.first, min(candidate.remaining, room)))
            room -= entering[-1].count
    return tuple(entering)


def joining_images(
    candidates: Iterable[Candidate[K]],
    key: Hashable,
    room: int,
    calls: int,
    *,
    entry_limit: EntryLimit,
    waits: Waits[tuple[K, int]],
    step: int,
) -> tuple[Portion[K], ...]:
    """Choose which images of :func:`joinable_images` enter: as many as the engine's limit lets in.

    Args:
        candidates: Jobs with images to make, in any order.
        key: What the batch's images share.
        room: How many may enter.
        calls: Calls of the model until the last of the batch's images is done.
        entry_limit: Tells how many of those who wait are to enter.
        waits: How long those have waited, each by job and index.
        step: Steps that will have been run when they enter.
    """
    candidates = list(candidates)
    portions = joinable_images(candidates, key, room, calls)
    needs = {candidate.key: candidate.plan.calls for candidate in candidates}
    images = {
        (portion.key, portion.first + number): needs[portion.key]
        for portion in portions
        for number in range(portion.count)
    }
    count = entry_limit(len(images), waits.note(images, step))
    return portions if count >= len(images) else joinable_images(candidates, key, count, calls)


def _in_order(candidates: Iterable[Candidate[K]]) -> list[Candidate[K]]:
    return sorted(candidates, key=lambda c: queue_key(c.priority, c.created, c.name))
