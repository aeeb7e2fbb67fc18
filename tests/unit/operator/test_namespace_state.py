"""What the operator knows equals what it was told, in whatever order that came."""

from __future__ import annotations

from collections import defaultdict
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kubediffusion.operator.namespace_state import NamespaceState
from kubediffusion.operator.object_cache import ObjectCache, ObjectList
from kubediffusion.operator.snapshots import order_key
from kubediffusion.operator.workers import Pod
from kubediffusion.resources.conditions import ConditionStatus, WaitingReason, with_condition
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.objects import KubernetesObject, ObjectMeta
from kubediffusion.resources.testing import NAMESPACE, NOW, adapter, job, model, present
from kubediffusion.resources.transitions import BOUND, TERMINAL
from unit.operator.builders import HASH, NODE_GRACE, recipe, versioned

MODELS = ("emoji", "other")

PODS = ("pod-1", "pod-2")

T = TypeVar("T", bound=KubernetesObject)

History = list[tuple[int, bool]]


@st.composite
def jobs(draw: st.DrawFn) -> GenerationJob:
    phase = draw(st.sampled_from(Phase))
    said = draw(st.booleans())
    conditions = with_condition((), "Scheduled", ConditionStatus.FALSE, WaitingReason.SUSPENDED, "", NOW)
    status = GenerationJobStatus(
        phase=phase,
        worker=draw(st.sampled_from(PODS)) if phase in BOUND else None,
        parameters=recipe(draw(st.sampled_from(MODELS))) if phase in BOUND else None,
        conditions=conditions if said else (),
    )
    return job(
        draw(st.sampled_from("abcdef")),
        age=draw(st.integers(0, 3)),
        status=status,
        model=draw(st.sampled_from([None, *MODELS])),
        priority=draw(st.sampled_from([None, 0, 1])),
        suspend=draw(st.sampled_from([None, False, True])),
        num_images=draw(st.sampled_from([None, 2, 9])),
        adapters=draw(st.sampled_from([None, None, [{"name": "ink"}], [{"name": "crayon"}, {"name": "ink"}]])),
    )


class Knowledge(RuleBasedStateMachine):
    """Update and delete in any order, beside a model that looks at everything anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = NamespaceState(NAMESPACE, lambda _: HASH, NODE_GRACE)
        self.jobs: dict[str, GenerationJob] = {}
        self.models: dict[str, DiffusionModel] = {}
        self.adapters: dict[str, LoRAAdapter] = {}
        self.versions = 0

    @rule(item=jobs())
    def a_job_is_told(self, item: GenerationJob) -> None:
        self.state.update_job(item)
        self.jobs.pop(item.uid, None)
        if item.status.phase not in TERMINAL:
            self.jobs[item.uid] = item

    @rule(name=st.sampled_from("abcdef"))
    def a_job_is_gone(self, name: str) -> None:
        self.state.delete_job(f"uid-{name}")
        self.jobs.pop(f"uid-{name}", None)

    @rule(name=st.sampled_from(MODELS), default=st.booleans())
    def a_model_is_told(self, name: str, default: bool) -> None:
        self.versions += 1
        self.models[name] = versioned(model(name, default=default), self.versions)
        self.state.update_model(self.models[name])

    @rule(name=st.sampled_from(MODELS))
    def a_model_is_gone(self, name: str) -> None:
        if name in self.models:
            self.versions += 1
            self.state.delete_model(versioned(self.models.pop(name), self.versions))

    @rule(name=st.sampled_from(["crayon", "ink"]), listed=st.booleans())
    def an_adapter_is_told(self, name: str, listed: bool) -> None:
        self.versions += 1
        self.adapters[name] = versioned(adapter(name), self.versions)
        if listed:
            self.state.file_anew(self.state.adapters.replace(ObjectList(tuple(self.adapters.values()), self.versions)))
        else:
            self.state.file_anew(self.state.adapters.update(self.adapters[name]))

    @rule(name=st.sampled_from(["crayon", "ink"]), listed=st.booleans())
    def an_adapter_is_gone(self, name: str, listed: bool) -> None:
        if name in self.adapters:
            self.versions += 1
            gone = versioned(self.adapters.pop(name), self.versions)
            if listed:
                kept = ObjectList(tuple(self.adapters.values()), self.versions)
                self.state.file_anew(self.state.adapters.replace(kept))
            else:
                self.state.file_anew(self.state.adapters.delete(gone))

    def asking(self) -> list[GenerationJob]:
        return [j for j in self.jobs.values() if j.status.phase not in BOUND and not j.spec.suspend]

    def waiting(self) -> list[GenerationJob]:
        return [j for j in self.asking() if {a.name for a in j.spec.adapters or ()} <= self.adapters.keys()]

    def default(self) -> DiffusionModel | None:
        defaults = [m for m in self.models.values() if m.is_default]
        return min(defaults, key=lambda m: m.name, default=None)

    @invariant()
    def unfinished_jobs_are_kept(self) -> None:
        assert self.state.jobs == self.jobs
        assert self.state.empty == (not self.jobs and not self.models and not self.adapters)

    @invariant()
    def each_model_sees_its_queue_in_order_and_what_its_workers_have(self) -> None:
        default = self.default()
        snapshots = {snapshot.model.name: snapshot for snapshot in self.state.model_snapshots(NOW)}
        assert snapshots.keys() == self.models.keys()
        for name, snapshot in snapshots.items():
            named = {name, None} if default is not None and default.name == name else {name}
            queue = sorted((j for j in self.waiting() if j.spec.model in named), key=order_key)
            assert list(snapshot.waiting) == queue
            assert snapshot.waiting_count == len(queue)
            assert snapshot.waiting_slots == sum(map(snapshot.slots, queue))
            bound = defaultdict(set)
            for item in self.jobs.values():
                if item.status.phase in BOUND and present(item.status.parameters).model == name:
                    bound[item.status.worker].add(item.uid)
            assert {pod: {j.uid for j in held} for pod, held in snapshot.bound.items()} == bound

    @invariant()
    def jobs_whose_model_is_missing_are_orphans(self) -> None:
        default = self.default()
        missing = {j.uid for j in self.waiting() if j.spec.model is None and default is None}
        missing |= {j.uid for j in self.waiting() if j.spec.model is not None and j.spec.model not in self.models}
        missing |= {
            j.uid
            for j in self.jobs.values()
            if j.status.phase in BOUND and present(j.status.parameters).model not in self.models
        }
        orphans = [orphan.job.uid for orphan in self.state.jobs_without_model(NOW, 100)]
        assert sorted(orphans) == sorted(missing)

    @invariant()
    def jobs_whose_adapter_is_missing_wait_for_it(self) -> None:
        told = {item.job.uid: item.adapter for item in self.state.snapshot(NOW, 100).jobs_without_adapter}
        assert told.keys() == {j.uid for j in self.asking()} - {j.uid for j in self.waiting()}
        assert not self.adapters.keys() & set(told.values())

    @invariant()
    def suspended_jobs_that_do_not_say_so_are_known(self) -> None:
        silent = {
            j.uid
            for j in self.jobs.values()
            if j.status.phase not in BOUND and j.spec.suspend and not j.status.conditions
        }
        assert {j.uid for j in self.state.snapshot(NOW, 0).suspended_jobs} == silent


TestKnowledge = Knowledge.TestCase

TestKnowledge.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def a_pod(name: str, version: int) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, resource_version=str(version)))


histories = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=4, unique_by=lambda step: step[0]).map(
        sorted
    ),
    min_size=1,
)

"""Of each object, its states in order: a version, and whether that was its deletion."""


def at(history: History, version: int) -> int | None:
    """What a list of that version has of an object."""
    past = [step for step in history if step[0] <= version]
    return past[-1][0] if past and not past[-1][1] else None


@given(histories, st.integers(1, 30), st.data())
def test_a_list_that_crosses_a_watch_never_takes_anything_back(
    objects: dict[str, History], listed_at: int, data: st.DataObject
) -> None:
    """The list is as of one moment and arrives at another; the watch has gone on meanwhile."""
    told_until = data.draw(st.integers(listed_at, 31))
    known = ObjectCache[Pod]()
    for name, history in objects.items():
        for version, deleted in history:
            if version <= told_until:
                (known.delete if deleted else known.update)(a_pod(name, version))
    listed = {name: at(history, listed_at) for name, history in objects.items()}
    items = tuple(a_pod(name, version) for name, version in listed.items() if version is not None)
    known.replace(ObjectList(items, listed_at))
    now = {name: at(history, told_until) for name, history in objects.items()}
    assert {name: item.metadata.version for name, item in known.items.items()} == {
        name: version for name, version in now.items() if version is not None
    }


@given(histories, st.integers(1, 30))
def test_a_list_brings_what_a_broken_watch_missed(objects: dict[str, History], listed_at: int) -> None:
    known = ObjectCache[Pod]()
    for name in objects:
        known.update(a_pod(name, 0))
    listed = {name: at(history, listed_at) for name, history in objects.items()}
    items = tuple(a_pod(name, version) for name, version in listed.items() if version is not None)
    known.replace(ObjectList(items, listed_at))
    assert tuple(known.items.values()) == items


@given(st.permutations(range(1, 6)))
def test_of_all_that_is_told_of_an_object_the_newest_stays(order: list[int]) -> None:
    known = ObjectCache[Pod]()
    for version in order:
        known.update(a_pod("a", version))
    assert known.items["a"].metadata.version == 5


def test_the_late_answer_to_a_creation_does_not_bring_a_deleted_worker_back() -> None:
    known = ObjectCache[Pod]()
    known.delete(a_pod("a", 7))
    assert not known.update(a_pod("a", 5))
    assert known.update(a_pod("a", 9))


def test_the_late_news_of_a_deletion_does_not_take_the_next_of_that_name() -> None:
    known = ObjectCache[Pod]()
    known.update(a_pod("a", 9))
    assert not known.delete(a_pod("a", 7))
    assert "a" in known.items
