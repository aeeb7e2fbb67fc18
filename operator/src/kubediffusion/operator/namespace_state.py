"""What the operator knows of one namespace: filled from watches and lists, read as snapshots. No I/O.

Everything here can be rebuilt from a list of the cluster; a restart loses nothing but time. Finished jobs are not
kept: their cost would grow for ever.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from sortedcontainers import SortedKeyList

from kubediffusion.operator.cut_off import CutOffs
from kubediffusion.operator.namespace_adapters import NamespaceAdapters
from kubediffusion.operator.object_cache import ObjectCache, ObjectList
from kubediffusion.operator.snapshots import JobWithoutModel, ModelSnapshot, NamespaceSnapshot, order_key
from kubediffusion.operator.template_hashes import TemplateHashes
from kubediffusion.operator.workers import BatchJob, ObservedWorker, Pod, WorkerState
from kubediffusion.resources.conditions import JobConditionType, WaitingReason, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModel, choose_model
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.transitions import BOUND, TERMINAL

JOBS_AT_END_KEPT = dt.timedelta(minutes=10)
"""How long the jobs are remembered that a Pod had at its end: until all of them have been taken back, and longer."""

_NEVER_BEFORE = dt.datetime.min.replace(tzinfo=dt.UTC)

ModelKey = str | None
"""``spec.model`` of a job; None where it leaves the choice to the default."""


class NamespaceState:
    """Models, unfinished jobs and workers of one namespace.

    Args:
        name: Its name.
        hash_of: Gives the hash of the worker template of a model.
        node_grace: A Pod that was to have ended for so long is on a node that is lost.

    Attributes:
        jobs: Unfinished GenerationJobs by uid.
        adapters: LoRAAdapters, whose changes return what is to be filed anew.
        revisions: What workers last reported to have loaded, by model.
        refusals: Why the API server last refused a worker's Job, by model.
    """

    def __init__(self, name: str, hash_of: Callable[[DiffusionModel], str], node_grace: dt.timedelta) -> None:
        self.name = name
        self.jobs: dict[str, GenerationJob] = {}
        self.adapters = NamespaceAdapters()
        self.revisions: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self._templates = TemplateHashes(hash_of)
        self._node_grace = node_grace
        self._queues: dict[ModelKey, SortedKeyList] = defaultdict(lambda: SortedKeyList(key=order_key))
        self._sizes: dict[ModelKey, Counter[int]] = defaultdict(Counter)
        """How many jobs of a queue have how many images."""
        self._unexplained_suspensions: dict[str, GenerationJob] = {}
        self._missing_since: dict[ModelKey, dt.datetime] = {}
        self._bound: dict[str, dict[str, dict[str, GenerationJob]]] = defaultdict(lambda: defaultdict(dict))
        self._models = ObjectCache[DiffusionModel]()
        self._batch_jobs = ObjectCache[BatchJob]()
        self._pods = ObjectCache[Pod]()
        self._warnings: dict[str, str] = {}
        """What the last Warning Event says of a worker's Job or Pod, by its uid, while it does not start."""
        self._idle_since: dict[str, dt.datetime] = {}
        self._progress: dict[str, tuple[object, dt.datetime]] = {}
        """What was last seen of the start of a worker's Pod, and when that was new, by the Pod's name."""
        self._jobs_at_end: dict[str, tuple[dt.datetime, set[str]]] = {}
        """When a Pod was first seen to have ended with jobs, and their uids. They are taken back one write at a time,
        and one whose write conflicts is decided on anew: it was no less one of several."""
        self._terminating_since: dict[str, dt.datetime] = {}
        """When a Pod was first seen to terminate: nodes, API server and this process need not agree on the time."""
        self._cut_offs = CutOffs()

    def update_job(self, job: GenerationJob) -> None:
        """Keep a job as it is now; one that has finished is removed."""
        self.delete_job(job.uid)
        if job.status.phase in TERMINAL:
            return
        if job.status.phase in BOUND and job.status.worker:
            self._bound[_bound_model(job)][job.status.worker][job.uid] = job
        elif job.spec.suspend:
            said = find_condition(job.status.conditions, JobConditionType.SCHEDULED)
            if said is None or said.reason != WaitingReason.SUSPENDED:
                self._unexplained_suspensions[job.uid] = job
        elif self.adapters.lacks(job) is not None:
            self.adapters.add_waiting(job)
        else:
            self._queues[job.spec.model].add(job)
            self._sizes[job.spec.model][job.spec.num_images or 1] += 1
        self.jobs[job.uid] = job

    def delete_job(self, uid: str) -> None:
        """Forget a job wherever it is: bound, suspended, waiting for an adapter, or in its model's queue."""
        job = self.jobs.pop(uid, None)
        if job is None:
            return
        if job.status.phase in BOUND and job.status.worker:
            pods = self._bound[_bound_model(job)]
            del pods[job.status.worker][uid]
            if not pods[job.status.worker]:
                del pods[job.status.worker]
        elif job.spec.suspend:
            self._unexplained_suspensions.pop(uid, None)
        elif not self.adapters.discard_waiting(uid):
            self._queues[job.spec.model].remove(job)
            self._sizes[job.spec.model][job.spec.num_images or 1] -= 1

    def learn_revision(self, job: GenerationJob) -> None:
        """Keep the revision of the model that a job ran on."""
        parameters = job.status.parameters
        if parameters is not None and parameters.model_revision is not None:
            self.revisions[parameters.model] = parameters.model_revision

    @property
    def models(self) -> dict[str, DiffusionModel]:
        """DiffusionModels by name."""
        return self._models.items

    def update_model(self, model: DiffusionModel) -> None:
        """Keep a model as it is now."""
        # First: a model at which this fails stays as it was.
        template = self._templates.look_at(model, self.models.get(model.name))
        if not self._models.update(model):
            return
        before = self._templates.keep(model.name, template)
        if before is None or before.in_effect != template.in_effect:
            # What workers of another template reported says nothing of today's.
            self.revisions.pop(model.name, None)
        if before is not None and before.untried != template.untried:
            self.refusals.pop(model.name, None)

    def untried_template(self, name: str) -> str:
        """Return the hash of a model's template while it is untried, else nothing."""
        return self._templates.of(name).untried if name in self.models else ""

    def accept_template(self, name: str, template_hash: str) -> None:
        """Have workers of a model be made from a template that the API server takes."""
        before = self._templates.of(name).in_effect if name in self.models else None
        if self._templates.accept(name, template_hash):
            self.refusals.pop(name, None)
            if before != template_hash:
                self.revisions.pop(name, None)

    def delete_model(self, model: DiffusionModel) -> None:
        """Forget a deleted model with its template and why the API server refused it. Its jobs stay."""
        if self._models.delete(model):
            self._templates.forget_others(self.models)
            self.refusals.pop(model.name, None)

    def replace_models(self, models: ObjectList[DiffusionModel]) -> list[DiffusionModel]:
        """Remove the models that a full list lacks, and return them; :meth:`update_model` has taken in what it has."""
        before = list(self.models.values())
        self._models.replace(models)
        self._templates.forget_others(self.models)
        there = {model.uid for model in self.models.values()}
        gone = [model for model in before if model.uid not in there]
        for model in gone:
            self.refusals.pop(model.name, None)
        return gone

    def file_anew(self, names: set[str]) -> None:
        """Put jobs that name one of some adapters where they belong: these came, or went."""
        if not names:
            return
        for job in [job for job in self.jobs.values() if names.intersection(a.name for a in job.spec.adapters or ())]:
            self.update_job(job)

    def update_batch_job(self, job: BatchJob) -> None:
        """Keep a worker's batch/v1 Job as it is now."""
        self._batch_jobs.update(job)

    def delete_batch_job(self, job: BatchJob) -> None:
        """Remove a worker's batch/v1 Job."""
        self._batch_jobs.delete(job)

    def update_pod(self, pod: Pod) -> None:
        """Keep a worker's Pod as it is now."""
        self._pods.update(pod)

    def delete_pod(self, pod: Pod) -> None:
        """Remove a worker's Pod."""
        if self._pods.delete(pod):
            self._idle_since.pop(pod.metadata.name, None)
            self._terminating_since.pop(pod.metadata.name, None)
            self._cut_offs.forget_others(self._pods.items)
            self._progress.pop(pod.metadata.name, None)

    def longest_end(self, pod: str) -> dt.timedelta:
        """Return how long a Pod may take to end, once it is told to, until its node is taken for lost."""
        known = self._pods.items.get(pod)
        grace = known.spec.termination_grace_period_seconds if known is not None else 0
        return dt.timedelta(seconds=grace) + self._node_grace

    def replace_workers(self, jobs: ObjectList[BatchJob], pods: ObjectList[Pod]) -> None:
        """Take in the full lists of workers: what is not in them is gone, unless a watch has told of it since."""
        self._batch_jobs.replace(jobs)
        self._pods.replace(pods)
        known: tuple[dict[str, Any], ...] = (self._idle_since, self._terminating_since, self._progress)
        self._cut_offs.forget_others(self._pods.items)
        for by_name in known:
            for name in by_name.keys() - self._pods.items.keys():
                del by_name[name]

    def unstarted_workers(self, now: dt.datetime) -> set[str]:
        """Return the uids of the worker Jobs that have no Pod after a moment, and of the Pods that do not run yet."""
        made = {pod.batch_job for pod in self._pods.items.values()}
        jobs = (job for job in self._batch_jobs.items.values() if job.uid not in made and job.lacks_pod(now))
        pods = (pod for pod in self._pods.items.values() if pod.status.phase == "Pending" and not pod.terminating)
        return {item.uid for item in (*jobs, *pods)}

    def replace_warnings(self, warnings: dict[str, str]) -> bool:
        """Keep what Warning Events say of workers that do not start, by uid, and return whether that is news."""
        is_news = warnings != self._warnings
        self._warnings = warnings
        return is_news

    def snapshot(self, now: dt.datetime, most: int) -> NamespaceSnapshot:
        """Return the snapshot of the jobs that are in no queue; arguments as :meth:`jobs_without_model` has them."""
        return NamespaceSnapshot(
            name=self.name,
            models=tuple(self.models),
            jobs_without_model=tuple(self.jobs_without_model(now, most)),
            suspended_jobs=tuple(self._unexplained_suspensions.values()),
            adapters=tuple(self.adapters.items),
            jobs_without_adapter=tuple(self.adapters.jobs_without_adapter(now, most)),
        )

    def model_snapshots(self, now: dt.datetime) -> Iterator[ModelSnapshot]:
        """Yield the snapshot of each model.

        Args:
            now: The time, from which a worker that has just lost its last job counts as idle.
        """
        workers = self._workers(now)
        default = choose_model(self.models, None)
        self._note_jobs_at_end(now)
        for model in self.models.values():
            keys: list[ModelKey] = [model.name, *([None] if model is default else [])]
            queues = [self._queues[key] for key in keys]
            batch = model.spec.workers.max_batch_size
            sizes = (size for key in keys for size in self._sizes[key].items())
            yield ModelSnapshot(
                model=model,
                template_hash=self._templates.of(model.name).in_effect,
                untried_hash=self._templates.of(model.name).untried,
                waiting=heapq.merge(*queues, key=order_key),
                waiting_count=sum(map(len, queues)),
                waiting_slots=sum(count * min(images, batch) for images, count in sizes),
                workers=tuple(workers.get(model.name, ())),
                refusal=self.refusals.get(model.name, ""),
                adapters=self.adapters.items,
                bound={pod: tuple(jobs.values()) for pod, jobs in self._bound[model.name].items()},
                jobs_at_end={pod: len(jobs) for pod, (_, jobs) in self._jobs_at_end.items()},
            )

    def jobs_without_model(self, now: dt.datetime, most: int) -> list[JobWithoutModel]:
        """Return the unfinished jobs whose model does not exist.

        Args:
            now: The time, from which a model that is first missed now is missing.
            most: How many of those that wait are returned; those that are bound are few, and all returned.
        """
        default = choose_model(self.models, None)
        there: set[ModelKey] = {*self.models, *([None] if default is not None else [])}
        waiting = {model: queue for model, queue in self._queues.items() if queue and model not in there}
        bound = {model: pods for model, pods in self._bound.items() if pods and model not in there}
        self._missing_since = {model: self._missing_since.get(model, now) for model in waiting.keys() | bound.keys()}
        found = [
            JobWithoutModel(job, self._missing_since[model])
            for model, queue in waiting.items()
            for job in itertools.islice(queue, most)
        ]
        # A worker whose Pod is still there may finish what it runs: it goes with its model, but not at once.
        found += [
            JobWithoutModel(job, self._missing_since[model])
            for model, pods in bound.items()
            for pod, jobs in pods.items()
            if self._is_gone(pod, now)
            for job in jobs.values()
        ]
        return found

    @property
    def bound_jobs(self) -> list[GenerationJob]:
        """The jobs that are bound to workers."""
        return [job for pods in self._bound.values() for jobs in pods.values() for job in jobs.values()]

    @property
    def empty(self) -> bool:
        """Whether it has no model, unfinished job or worker."""
        return not (self.models or self.adapters.items or self.jobs or self._batch_jobs.items or self._pods.items)

    def _note_jobs_at_end(self, now: dt.datetime) -> None:
        for by_pod in self._bound.values():
            for name, jobs in by_pod.items():
                pod = self._pods.items.get(name)
                if pod is None or pod.finished:
                    self._jobs_at_end.setdefault(name, (now, set()))[1].update(jobs)
        for name, (since, _) in list(self._jobs_at_end.items()):
            if now - since > JOBS_AT_END_KEPT:
                del self._jobs_at_end[name]

    def _workers(self, now: dt.datetime) -> dict[str, list[ObservedWorker]]:
        busy = {name for by_pod in self._bound.values() for name, jobs in by_pod.items() if jobs}
        pods: dict[str, Pod] = {}
        replaced: list[Pod] = []
        for pod in sorted(self._pods.items.values(), key=_age):
            # The newest is the one that counts. What became of an older one says what becomes of its jobs.
            # One that no Job owns (an orphan of a deletion) replaces none and is replaced by none.
            owner = pod.batch_job or pod.uid
            if (older := pods.get(owner)) is not None and older.metadata.name in busy:
                replaced.append(older)
            pods[owner] = pod
        workers = defaultdict(list)
        for job in self._batch_jobs.items.values():
            worker = self._worker(job, pods.pop(job.uid, None), busy, now)
            workers[job.model].append(self._with_idleness(worker, busy, now))
        for pod in (*pods.values(), *replaced):
            # Its Job is gone, or has another: it is on its way, may still hold a GPU, and may finish what it runs.
            going = BatchJob(metadata=pod.metadata.model_copy(update={"deletion_timestamp": now, "uid": ""}))
            workers[going.model].append(self._worker(going, pod, busy, now))
        return workers

    def _worker(self, job: BatchJob, pod: Pod | None, busy: set[str], now: dt.datetime) -> ObservedWorker:
        node_lost_at = self._lost_at(pod, now) if pod is not None else None
        warning = self._warnings.get(pod.uid if pod is not None else job.uid, "")
        lost = node_lost_at is not None and node_lost_at <= now
        worker = ObservedWorker(job, pod, node_lost_at=node_lost_at, node_lost=lost, warning=warning)
        if pod is not None:
            end = self.longest_end(pod.metadata.name)
            told = self._cut_offs.observe(pod, busy=pod.metadata.name in busy, now=now, longest_end=end)
            if told is not None:
                worker = replace(worker, cut_off_at=told.at, cut_off=told.at <= now)
                worker = replace(worker, given_up_at=told.given_up_at, given_up=told.given_up_at <= now)
        return replace(worker, progress_at=self._progress_at(worker, now))

    def _progress_at(self, worker: ObservedWorker, now: dt.datetime) -> dt.datetime | None:
        """Return when a worker's start was last seen to make progress: its stage or the words for it changed."""
        pod = worker.pod
        if pod is None:
            return None
        if worker.state is not WorkerState.STARTING or worker.unscheduled:
            self._progress.pop(pod.metadata.name, None)
            return None
        seen = (pod.uid, pod.status.phase, pod.blocked, pod.engine_ready)
        known, since = self._progress.get(pod.metadata.name, (None, now))
        if known != seen:
            since = now
            self._progress[pod.metadata.name] = seen, now
        return since

    def _is_gone(self, pod: str, now: dt.datetime) -> bool:
        """Return whether a Pod does not exist, or its node is lost."""
        known = self._pods.items.get(pod)
        node_lost_at = self._lost_at(known, now) if known is not None else None
        return known is None or (node_lost_at is not None and node_lost_at <= now)

    def _lost_at(self, pod: Pod, now: dt.datetime) -> dt.datetime | None:
        """Return when a Pod's node counts as lost; None where the Pod does not terminate, or has ended."""
        if not pod.terminating or pod.finished:
            return None
        return self._terminating_since.setdefault(pod.metadata.name, now) + pod.grace + self._node_grace

    def _with_idleness(self, worker: ObservedWorker, busy: set[str], now: dt.datetime) -> ObservedWorker:
        if worker.pod is None or worker.state is not WorkerState.READY:
            return worker
        name = worker.pod.metadata.name
        if name in busy:
            self._idle_since.pop(name, None)
            return worker
        return replace(worker, idle_since=self._idle_since.setdefault(name, now))


def _bound_model(job: GenerationJob) -> str:
    return job.status.parameters.model if job.status.parameters is not None else job.spec.model or ""


def _age(pod: Pod) -> tuple[dt.datetime, str]:
    return pod.metadata.creation_timestamp or _NEVER_BEFORE, pod.metadata.name
