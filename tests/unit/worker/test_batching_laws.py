"""Laws of static batches, over arbitrary queues. Those of running batches are in test_slot_laws."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from random import Random

from hypothesis import find, given
from hypothesis import strategies as st

from kubediffusion.worker.engine import ImagePlan
from kubediffusion.worker.engine.batching import Candidate, next_batch

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@st.composite
def queues(draw: st.DrawFn, *, joins: bool = False) -> list[Candidate[int]]:
    queue = []
    for key in range(draw(st.integers(0, 12))):
        images = draw(st.integers(1, 9))
        queue.append(
            Candidate(
                key=key,
                plan=ImagePlan(draw(st.sampled_from("ab")), calls=draw(st.integers(1, 9)), joins=joins),
                first=draw(st.integers(0, images - 1)),
                images=images,
                priority=draw(st.integers(-1, 1)),
                created=START + dt.timedelta(seconds=draw(st.integers(0, 3))),
                name=f"job-{draw(st.integers(0, 99))}-{key}",
                deterministic=draw(st.booleans()),
            )
        )
    return queue


def order(candidate: Candidate[int]) -> tuple[int, dt.datetime, str]:
    return -candidate.priority, candidate.created, candidate.name


@given(queues(), st.integers(1, 8))
def test_the_head_is_in_the_batch_and_limits_hold(queue: list[Candidate[int]], limit: int) -> None:
    batch = next_batch(queue, limit)
    by_key = {candidate.key: candidate for candidate in queue}
    assert bool(batch) == bool(queue)
    if not batch:
        return
    members = [by_key[portion.key] for portion in batch]
    assert members[0] == min(queue, key=order)
    assert sum(portion.count for portion in batch) <= limit
    assert len({member.key for member in members}) == len(members)
    assert len({member.plan.key for member in members}) == 1
    for portion, member in zip(batch, members, strict=True):
        assert portion.first == member.first
        assert 1 <= portion.count <= member.remaining


@given(queues(), st.integers(1, 8))
def test_only_the_head_is_cut_and_only_where_it_does_not_fit(queue: list[Candidate[int]], limit: int) -> None:
    by_key = {candidate.key: candidate for candidate in queue}
    for place, portion in enumerate(next_batch(queue, limit)):
        candidate = by_key[portion.key]
        if place == 0 and not candidate.deterministic:
            assert portion.count == min(candidate.remaining, limit)
        elif place > 0:
            assert portion.count == candidate.remaining


@given(queues(), st.integers(1, 8))
def test_a_deterministic_job_runs_alone_image_by_image(queue: list[Candidate[int]], limit: int) -> None:
    batch = next_batch(queue, limit)
    deterministic = {candidate.key for candidate in queue if candidate.deterministic}
    if any(portion.key in deterministic for portion in batch):
        assert [portion.count for portion in batch] == [1]


@given(queues(), st.integers(1, 8))
def test_no_room_is_left_that_a_mate_would_fit(queue: list[Candidate[int]], limit: int) -> None:
    batch = next_batch(queue, limit)
    if not batch:
        return
    head = next(candidate for candidate in queue if candidate.key == batch[0].key)
    if head.deterministic:
        return
    room = limit - sum(portion.count for portion in batch)
    inside = {portion.key for portion in batch}
    left = [c for c in queue if c.key not in inside and c.plan.key == head.plan.key and not c.deterministic]
    assert all(candidate.remaining > room for candidate in left)


def test_some_batches_have_several_jobs_and_leave_a_mate_that_does_not_fit() -> None:
    def leaves_a_mate(queue: list[Candidate[int]]) -> bool:
        batch = next_batch(queue, 4)
        inside = {portion.key: portion for portion in batch}
        keys = {c.plan.key for c in queue if c.key in inside}
        left = [c for c in queue if c.key not in inside and c.plan.key in keys and not c.deterministic]
        return len(batch) > 1 and sum(portion.count for portion in batch) < 4 and bool(left)

    assert find(queues(), leaves_a_mate)


@given(queues(), st.integers(1, 8))
def test_every_image_runs_exactly_once(queue: list[Candidate[int]], limit: int) -> None:
    waiting = {candidate.key: candidate for candidate in queue}
    ran: list[tuple[int, int]] = []
    while batch := next_batch(waiting.values(), limit):
        for portion in batch:
            ran += [(portion.key, portion.first + n) for n in range(portion.count)]
            candidate = waiting[portion.key]
            if candidate.remaining == portion.count:
                del waiting[portion.key]
            else:
                waiting[portion.key] = replace(candidate, first=candidate.first + portion.count)
    assert sorted(ran) == [(c.key, index) for c in queue for index in range(c.first, c.images)]


@given(queues(), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(queue: list[Candidate[int]], limit: int, random: Random) -> None:
    shuffled = list(queue)
    random.shuffle(shuffled)
    assert next_batch(shuffled, limit) == next_batch(queue, limit)
