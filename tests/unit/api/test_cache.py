"""The cache is what the watch says, with this process's own writes ahead of it, whatever order they come in."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from kubediffusion.api.job_cache.cache import UNCONFIRMED_SECONDS, JobCache
from kubediffusion.api.job_cache.records import CachedJob, JobRecord
from kubediffusion.api.job_cache.results import cached_result
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.meta import CLIENT_ANNOTATION
from unit.api.api_builders import body, cached


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(cache: JobCache, name: str = "job", *, gone: bool = False, **changes: Any) -> None:
    """Let the watch show a job."""
    cache.on_change(JobRecord.from_wire(body(name, **changes)), gone)


def known(cache: JobCache, name: str = "job") -> CachedJob:
    """Read a job that must be there."""
    job = cache.get(name)
    assert job is not None
    return job


def place(cache: JobCache, name: str) -> int | None:
    return cache.queue_position(known(cache, name), "m")


def test_a_write_is_there_at_once_and_the_watch_does_not_set_it_back() -> None:
    cache = JobCache()
    cache.remember(cached(version=7, spec={"cancel": True}, phase="Running"))
    shown(cache, version=5)
    assert known(cache).version == 7
    shown(cache, version=9, phase="Cancelled")
    assert known(cache).version == 9


def test_a_late_read_does_not_bring_back_what_was_deleted() -> None:
    cache = JobCache()
    shown(cache, version=5)
    shown(cache, version=8, gone=True)
    cache.remember(cached(version=5))
    assert cache.get("job") is None


def test_an_old_job_leaving_does_not_take_a_new_one_of_its_name_along() -> None:
    cache = JobCache()
    cache.remember(cached(version=9, metadata={"uid": "new"}))
    shown(cache, version=8, metadata={"uid": "old"}, gone=True)
    assert known(cache).uid == "new"


def test_what_the_watch_never_shows_is_forgotten() -> None:
    clock = Clock()
    cache = JobCache(clock=clock)
    cache.remember(cached("ghost", version=5))
    cache.remember(cached("real", version=6))
    shown(cache, "real", version=6)
    clock.now = UNCONFIRMED_SECONDS + 1
    shown(cache, "other", version=7)
    assert cache.get("ghost") is None
    assert cache.get("real") is not None
    assert cache.unfinished == 2


def test_the_watchs_delay_is_measured_on_own_writes() -> None:
    clock, delays = Clock(), list[float]()
    cache = JobCache(delays.append, clock)
    cache.remember(cached(version=5))
    clock.now = 0.25
    shown(cache, version=5)
    shown(cache, version=6)
    assert delays == [0.25]


def test_an_answer_is_made_once_a_change_of_state() -> None:
    cache = JobCache()
    shown(cache, version=1, phase="Running")
    answer = cached_result(known(cache))
    progress = {"progress": {"step": 3, "total": 25, "summary": "3/25"}}
    shown(cache, version=2, phase="Running", status=progress)
    assert known(cache).progress == "3/25"
    assert cached_result(known(cache)) is answer
    shown(cache, version=3, phase="Failed")
    assert cached_result(known(cache)) is not answer


def test_jobs_without_a_model_queue_with_those_of_the_default_one() -> None:
    cache = JobCache()
    shown(cache, "a", version=1)
    shown(cache, "b", version=2, spec={"model": "m"})
    shown(cache, "c", version=3, spec={"model": "other"})
    shown(cache, "d", version=4, spec={"priority": 1})
    places = {name: place(cache, name) for name in "abcd"}
    assert places == {"d": 1, "a": 2, "b": 3, "c": 1}
    shown(cache, "a", version=5, spec={"suspend": True})
    assert place(cache, "a") is None
    assert place(cache, "b") == 2


Body = dict[str, Any]

names = st.sampled_from(["a", "b", "c"])
phases = st.sampled_from(["Pending", "Scheduled", "Running", "Succeeded", "Failed", "Cancelled"])
specs = st.fixed_dictionaries(
    {}, optional={"model": st.sampled_from(["m", "n"]), "priority": st.integers(-2, 2), "suspend": st.booleans()}
)


clients = st.sampled_from([None, "alice", "bob"])


class CacheMachine(RuleBasedStateMachine):
    """A cluster that changes, a watch that lags behind it, and a process that reads and writes in between."""

    states = Bundle("states")

    @initialize()
    def begin(self) -> None:
        self.cache = JobCache()
        self.version = 0
        self.cluster: dict[str, Body] = {}
        self.undelivered: list[tuple[Body, bool]] = []

    def change(self, name: str, state: Body, gone: bool = False) -> Body:
        self.version += 1
        state = {**state, "metadata": {**state["metadata"], "resourceVersion": str(self.version)}}
        if gone:
            del self.cluster[name]
        else:
            self.cluster[name] = state
        self.undelivered.append((state, gone))
        return state

    @rule(name=names, phase=phases, spec=specs, client=clients, own=st.booleans())
    def write(self, name: str, phase: str, spec: Body, client: str | None, own: bool) -> None:
        uid = self.cluster.get(name, {"metadata": {"uid": f"{name}-{self.version}"}})["metadata"]["uid"]
        annotations = {} if client is None else {CLIENT_ANNOTATION: client}
        state = self.change(name, body(name, phase=phase, spec=spec, metadata={"uid": uid, "annotations": annotations}))
        if own:
            self.cache.remember(JobRecord.from_wire(state).job)

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.cluster:
            self.change(name, self.cluster[name], gone=True)

    @rule(target=states, name=names)
    def read(self, name: str) -> Body | None:
        """A read whose answer may arrive much later."""
        return self.cluster.get(name)

    @rule(state=states)
    def answer_arrives(self, state: Body | None) -> None:
        if state is not None:
            self.cache.remember(JobRecord.from_wire(state).job)

    @rule(count=st.integers(1, 5))
    def watch(self, count: int) -> None:
        for state, gone in self.undelivered[:count]:
            self.cache.on_change(JobRecord.from_wire(state), gone)
        del self.undelivered[:count]

    @invariant()
    def all_views_agree(self) -> None:
        jobs = list(self.cache.newest_first())
        assert len(jobs) == len(self.cache) == len({job.name for job in jobs})
        assert self.cache.unfinished == sum(not job.finished for job in jobs)
        for client in ("alice", "bob"):
            mine = sum(not job.finished for job in jobs if job.client == client)
            assert self.cache.unfinished_of(client) == mine
        assert [job.age_key for job in jobs] == sorted((job.age_key for job in jobs), reverse=True)
        waiting = {job.name: key for job in jobs if (key := job.queue_key) is not None}
        models = {job.name: job.model or "m" for job in jobs}
        for name, key in waiting.items():
            ahead = [other for other in waiting if models[other] == models[name] and waiting[other] < key]
            assert place(self.cache, name) == len(ahead) + 1

    @invariant()
    def a_filter_shows_what_it_names(self) -> None:
        jobs = list(self.cache.newest_first())
        for chosen in (None, frozenset({Phase.PENDING}), frozenset({Phase.RUNNING, Phase.FAILED})):
            for model in (None, "m", "n", "other"):
                matching = [
                    job
                    for job in jobs
                    if (chosen is None or job.phase in chosen) and (model is None or (job.model or "m") == model)
                ]
                assert list(self.cache.newest_first(None, chosen, model, "m")) == matching

    @invariant()
    def a_caught_up_watch_makes_it_exact(self) -> None:
        if not self.undelivered:
            assert {job.name: (job.uid, job.version) for job in self.cache.newest_first()} == {
                name: (state["metadata"]["uid"], int(state["metadata"]["resourceVersion"]))
                for name, state in self.cluster.items()
            }


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_page_starts_after_the_one_before() -> None:
    cache = JobCache()
    for number in range(5):
        shown(cache, f"job-{number}", version=number + 1)
    first = list(cache.newest_first())[:2]
    rest = cache.newest_first(first[-1].age_key)
    assert [job.name for job in (*first, *rest)] == [f"job-{number}" for number in (4, 3, 2, 1, 0)]


def test_a_filter_that_matches_nothing_looks_at_no_job() -> None:
    """A page costs what is on it, not what is not: it is read on the loop that answers polls."""

    def seconds(count: int) -> float:
        cache = JobCache()
        for number in range(count):
            cache.remember(cached(f"job-{number}", version=number + 1))
        times = []
        for _ in range(20):
            began = time.perf_counter()
            assert list(cache.newest_first(None, frozenset({Phase.FAILED}), "m", "m")) == []
            times.append(time.perf_counter() - began)
        return min(times)

    few, many = seconds(10), seconds(5_000)
    assert many < 20 * few


def test_a_cached_job_is_small() -> None:
    status = {
        "images": [{"index": 0, "uri": "s3://b/k", "sha256": "0" * 64, "bytes": 1, "width": 1, "height": 1, "seed": 1}]
    }
    made = cached(phase="Succeeded", status=status)
    assert not hasattr(made, "__dict__")
    assert not hasattr(made.images[0], "__dict__")
