"""A deadline queue yields each job once, in order, at its last moment."""

from __future__ import annotations

import datetime as dt

from hypothesis import example, given
from hypothesis import strategies as st

from kubediffusion.operator.deadline_queue import DeadlineQueue
from kubediffusion.resources.testing import NOW, job


def after(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcd"), st.integers(0, 20)),
        st.tuples(st.just("remove"), st.sampled_from("abcd"), st.just(0)),
        st.tuples(st.just("pop"), st.just(""), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(STEPS)
@example([("add", "a", 2), ("add", "a", 0), ("add", "c", 2), ("add", "c", 1), ("pop", "", 0)])
def test_each_job_comes_once_in_order_at_its_last_moment(steps: list[tuple[str, str, int]]) -> None:
    queue, due = DeadlineQueue(), dict[str, int]()
    for step, name, moment in steps:
        if step == "add":
            queue.add(after(moment), job(name))
            due[name] = moment
        elif step == "remove":
            queue.remove(f"uid-{name}")
            due.pop(name, None)
        else:
            popped = [name for _, name, _ in queue.pop_due(after(moment))]
            assert popped == sorted((n for n in due if due[n] <= moment), key=lambda n: (due[n], n))
            due = {n: at for n, at in due.items() if at > moment}
        assert len(queue) == len(due)
        assert queue.next_due == (after(min(due.values())) if due else None)
