"""The cache is what the watch says, with this process's own writes ahead of it, whatever order they come in."""

from __future__ import annotations

from api_builders import body, entry
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from kubediffusion.api.job_cache.cache import UNCONFIRMED_SECONDS, AgeKey, JobCache
from kubediffusion.api.job_cache.records import CachedJob, JobRecord
from kubediffusion.api.job_cache.results import cached_result


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(cache: JobCache, *args, gone: bool = False, **changes) -> None:
    """Let the watch show a job."""
    cache.on_change(JobRecord.from_wire(body(*args, **changes)), gone)


def test_a_write_is_there_at_once_and_the_watch_does_not_set_it_back() -> None:
    cache = JobCache()
    cache.remember(entry(version=7, spec={"cancel": True}, phase="Running"))
    shown(cache, version=5)
    assert cache.get("job").version == 7
    shown(cache, version=9, phase="Cancelled")
    assert cache.get("job").version == 9


def test_a_late_read_does_not_bring_back_what_was_deleted() -> None:
    cache = JobCache()
    shown(cache, version=5)
    shown(cache, version=8, gone=True)
    cache.remember(entry(version=5))
    assert cache.get("job") is None


def test_an_old_job_leaving_does_not_take_a_new_one_of_its_name_along() -> None:
    cache = JobCache()
    cache.remember(entry(version=9, metadata={"uid": "new"}))
    shown(cache, version=8, metadata={"uid": "old"}, gone=True)
    assert cache.get("job").uid == "new"


def test_what_the_watch_never_shows_is_forgotten() -> None:
    clock = Clock()
    cache = JobCache(clock=clock)
    cache.remember(entry("ghost", version=5))
    cache.remember(entry("real", version=6))
    shown(cache, "real", version=6)
    clock.now = UNCONFIRMED_SECONDS + 1
    shown(cache, "other", version=7)
    assert cache.get("ghost") is None
    assert cache.get("real") is not None
    assert cache.unfinished == 2


def test_the_watchs_delay_is_measured_on_own_writes() -> None:
    clock, delays = Clock(), []
    cache = JobCache(delays.append, clock)
    cache.remember(entry(version=5))
    clock.now = 0.25
    shown(cache, version=5)
    shown(cache, version=6)
    assert delays == [0.25]


def test_an_answer_is_made_once_a_change_of_state() -> None:
    cache = JobCache()
    shown(cache, version=1, phase="Running")
    answer = cached_result(cache.get("job"))
    progress = {"progress": {"step": 3, "total": 25, "summary": "3/25"}}
    shown(cache, version=2, phase="Running", status=progress)
    assert cache.get("job").progress == "3/25"
    assert cached_result(cache.get("job")) is answer
    shown(cache, version=3, phase="Failed")
    assert cached_result(cache.get("job")) is not answer


def test_jobs_without_a_model_queue_with_those_of_the_default_one() -> None:
    cache = JobCache()
    shown(cache, "a", version=1)
    shown(cache, "b", version=2, spec={"model": "m"})
    shown(cache, "c", version=3, spec={"model": "other"})
    shown(cache, "d", version=4, spec={"priority": 1})
    places = {name: cache.queue_position(cache.get(name), "m") for name in "abcd"}
    assert places == {"d": 1, "a": 2, "b": 3, "c": 1}
    shown(cache, "a", version=5, spec={"suspend": True})
    assert cache.queue_position(cache.get("a"), "m") is None
    assert cache.queue_position(cache.get("b"), "m") == 2


names = st.sampled_from(["a", "b", "c"])
phases = st.sampled_from(["Pending", "Scheduled", "Running", "Succeeded", "Failed", "Cancelled"])
specs = st.fixed_dictionaries(
    {}, optional={"model": st.sampled_from(["m", "n"]), "priority": st.integers(-2, 2), "suspend": st.booleans()}
)


class CacheMachine(RuleBasedStateMachine):
    """A cluster that changes, a watch that lags behind it, and a process that reads and writes in between."""

    states = Bundle("states")

    @initialize()
    def begin(self) -> None:
        self.cache = JobCache()
        self.version = 0
        self.cluster: dict[str, dict] = {}
        self.undelivered: list[tuple[dict, bool]] = []

    def change(self, name: str, state: dict, gone: bool = False) -> dict:
        self.version += 1
        state = {**state, "metadata": {**state["metadata"], "resourceVersion": str(self.version)}}
        if gone:
            del self.cluster[name]
        else:
            self.cluster[name] = state
        self.undelivered.append((state, gone))
        return state

    @rule(name=names, phase=phases, spec=specs, own=st.booleans())
    def write(self, name: str, phase: str, spec: dict, own: bool) -> None:
        uid = self.cluster.get(name, {"metadata": {"uid": f"{name}-{self.version}"}})["metadata"]["uid"]
        state = self.change(name, body(name, phase=phase, spec=spec, metadata={"uid": uid}))
        if own:
            self.cache.remember(JobRecord.from_wire(state).entry)

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.cluster:
            self.change(name, self.cluster[name], gone=True)

    @rule(target=states, name=names)
    def read(self, name: str) -> dict | None:
        """A read whose answer may arrive much later."""
        return self.cluster.get(name)

    @rule(state=states)
    def answer_arrives(self, state: dict | None) -> None:
        if state is not None:
            self.cache.remember(JobRecord.from_wire(state).entry)

    @rule(count=st.integers(1, 5))
    def watch(self, count: int) -> None:
        for state, gone in self.undelivered[:count]:
            self.cache.on_change(JobRecord.from_wire(state), gone)
        del self.undelivered[:count]

    @invariant()
    def all_views_agree(self) -> None:
        entries = list(self.cache.newest_first())
        assert len(entries) == len(self.cache) == len({entry.name for entry in entries})
        assert self.cache.unfinished == sum(not entry.finished for entry in entries)
        ages = [AgeKey(entry.created, entry.name) for entry in entries]
        assert ages == sorted(ages, reverse=True)
        waiting = [entry for entry in entries if entry.queue_key is not None]
        for one in waiting:
            ahead = [e for e in waiting if (e.model or "m") == (one.model or "m") and e.queue_key < one.queue_key]
            assert self.cache.queue_position(one, "m") == len(ahead) + 1

    @invariant()
    def a_caught_up_watch_makes_it_exact(self) -> None:
        if not self.undelivered:
            assert {e.name: (e.uid, e.version) for e in self.cache.newest_first()} == {
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
    rest = cache.newest_first(AgeKey(first[-1].created, first[-1].name))
    assert [e.name for e in (*first, *rest)] == [f"job-{number}" for number in (4, 3, 2, 1, 0)]


def test_an_entry_is_small() -> None:
    status = {
        "images": [{"index": 0, "uri": "s3://b/k", "sha256": "0" * 64, "bytes": 1, "width": 1, "height": 1, "seed": 1}]
    }
    made: CachedJob = entry(phase="Succeeded", status=status)
    assert not hasattr(made, "__dict__")
    assert not hasattr(made.images[0], "__dict__")
