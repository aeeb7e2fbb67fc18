"""The one owner of the operator's state: what is observed, and what is assumed until the API server has answered.

Watches and lists report to the store; so does the executor, whose answers arrive before the watch tells of them. The
store decides nothing and calls nobody. It keeps a list of changes and wakes the loop, which takes them.

A job that a write is under way for is *assumed*, as kube-scheduler assumes a binding: the loop sees it as it will be,
or not at all, and what is observed of it meanwhile is kept until the write has ended.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kubediffusion.operator.changes import Changes, JobChange, ObservationError
from kubediffusion.operator.namespace_state import NamespaceState
from kubediffusion.operator.object_cache import ObjectList
from kubediffusion.operator.workers import BatchJob, Pod
from kubediffusion.resources.diffusion_model import DiffusionModel, choose_model
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.objects import KubernetesObject
from kubediffusion.resources.transitions import TERMINAL

FRESH = dt.timedelta(seconds=2)
"""A job seen within so long of its creation is new: the moment it is seen says more than its timestamp."""


@dataclass(frozen=True)
class _Observation:
    """What a watch has told of a job while a write is under way for it.

    Attributes:
        job: The latest state; None while there was none.
        deleted: Whether the job is gone.
    """

    job: GenerationJob | None = None
    deleted: bool = False


class Store:
    """Everything that the operator knows of the cluster.

    Args:
        hash_of: Returns the hash of the worker template of a model.
        node_grace: How long after a Pod was to have ended its node counts as lost.
    """

    def __init__(self, hash_of: Callable[[DiffusionModel], str], node_grace: dt.timedelta) -> None:
        self._hash_of = hash_of
        self._node_grace = node_grace
        self._namespaces: dict[str, NamespaceState] = {}
        self._writes: dict[str, _Observation] = {}
        """Jobs that a write is under way for, by uid."""
        self._ended: dict[str, int] = {}
        """The version that a write ended a job with, by uid, until the watch has told of that one or a later one."""
        self._first_seen: dict[str, dt.datetime] = {}
        """When a job was first seen, by uid, until it is first written: its own timestamp has whole seconds only."""
        self._changes = Changes()
        self._changed = asyncio.Event()

    # What watches and lists observe.

    def observe_job(self, job: GenerationJob, deleted: bool) -> None:
        """Take in a GenerationJob as it is now, or its deletion."""
        if job.uid in self._writes:
            self._writes[job.uid] = _Observation(None, deleted=True) if deleted else _Observation(job)
            return
        if self._precedes_known_end(job, deleted):
            return
        with self._isolated(job):
            known = self._state(job).jobs.get(job.uid)
            if deleted:
                self._remove_job(job, known)
            elif known is None or known.metadata.version <= job.metadata.version:
                self._keep_job(job, known)

    def observe_model(self, model: DiffusionModel, deleted: bool) -> None:
        """Take in a DiffusionModel as it is now, or its deletion."""
        state = self._state(model)
        with self._isolated(model):
            if deleted:
                state.delete_model(model)
                self._changes.deleted_models.append(model)
            else:
                state.update_model(model)

    def observe_adapter(self, adapter: LoRAAdapter, deleted: bool) -> None:
        """Take in a LoRAAdapter as it is now, or its deletion."""
        state = self._state(adapter)
        with self._isolated(adapter):
            if deleted:
                state.file_anew(state.adapters.delete(adapter))
                self._changes.deleted_adapters.append(adapter)
            else:
                state.file_anew(state.adapters.update(adapter))

    def observe_batch_job(self, job: BatchJob, deleted: bool) -> None:
        """Take in a worker's batch/v1 Job as it is now, or its deletion."""
        state = self._state(job)
        with self._isolated(job):
            state.delete_batch_job(job) if deleted else state.update_batch_job(job)

    def observe_pod(self, pod: Pod, deleted: bool) -> None:
        """Take in a worker's Pod as it is now, or its deletion."""
        state = self._state(pod)
        with self._isolated(pod):
            state.delete_pod(pod) if deleted else state.update_pod(pod)

    def replace_models(self, models: ObjectList[DiffusionModel], scope: str | None = None) -> None:
        """Take in the full list of models: what it lacks is gone, unless a watch has told of it since.

        Args:
            models: The list.
            scope: The namespace that was listed; None for all.
        """
        for model in models.items:
            self.observe_model(model, deleted=False)
        for name in self._within(scope) | models.namespaces:
            state = self._namespace(name)
            # One at which the store failed and that it never knew is no model of which anything can be decided.
            known = tuple(model for model in models.within(name).items if model.name in state.models)
            self._changes.deleted_models.extend(state.replace_models(ObjectList(known, models.version)))
            self.mark_changed(name)

    def replace_adapters(self, adapters: ObjectList[LoRAAdapter], scope: str | None = None) -> None:
        """Take in the full list of adapters, as :meth:`replace_models` does."""
        for name in self._within(scope) | adapters.namespaces:
            state = self._namespace(name)
            before = state.adapters.items
            state.file_anew(state.adapters.replace(adapters.within(name)))
            gone = (adapter for known, adapter in before.items() if known not in state.adapters.items)
            self._changes.deleted_adapters.extend(gone)
            self.mark_changed(name)

    def replace_workers(
        self, batch_jobs: ObjectList[BatchJob], pods: ObjectList[Pod], scope: str | None = None
    ) -> None:
        """Take in the full lists of the workers' batch/v1 Jobs and Pods, as :meth:`replace_models` does."""
        for name in self._within(scope) | batch_jobs.namespaces | pods.namespaces:
            self._namespace(name).replace_workers(batch_jobs.within(name), pods.within(name))
            self.mark_changed(name)

    def unstarted_workers(self, now: dt.datetime) -> dict[str, set[str]]:
        """Return the uids of worker Jobs without a Pod, and of Pods that do not run yet, by namespace."""
        found = {name: state.unstarted_workers(now) for name, state in self._namespaces.items()}
        return {name: uids for name, uids in found.items() if uids}

    def observe_warnings(self, namespace: str, warnings: dict[str, str]) -> None:
        """Take in what Warning Events say of workers that do not start, by uid of their Jobs or Pods."""
        state = self._namespaces.get(namespace)
        if state is not None and state.replace_warnings(warnings):
            self.mark_changed(namespace)

    def correct_job(self, job: GenerationJob, found: GenerationJob | None) -> None:
        """Take in what was read of a job, unless a watch has told of its end, or a write has begun, meanwhile.

        Args:
            job: The job as it was known.
            found: The job as it was read; None when it is gone.
        """
        state = self._namespaces.get(job.metadata.namespace)
        if state is not None and job.uid in state.jobs and job.uid not in self._writes:
            self.observe_job(found or job, deleted=found is None)

    # What the executor reports.

    def is_being_written(self, uid: str) -> bool:
        """Return whether a write is under way for a job."""
        return uid in self._writes

    def assume_job(self, job: GenerationJob, becomes: GenerationJob | None) -> None:
        """Show a job as a write that begins now will make it, so that nobody decides on it twice.

        Args:
            job: The job as it was seen.
            becomes: The job as it will be; None keeps it out of sight until :meth:`settle_job`.
        """
        self._writes[job.uid] = _Observation()
        state = self._state(job)
        if becomes is None:
            state.delete_job(job.uid)
        else:
            state.update_job(becomes)

    def hide_job(self, job: GenerationJob) -> None:
        """Keep a job whose write has failed out of sight, so that it holds no worker's place until it is settled."""
        self._state(job).delete_job(job.uid)

    def settle_job(self, before: GenerationJob, result: GenerationJob | None) -> None:
        """Replace what was assumed by what is: the newest of the write's answer and what was observed meanwhile.

        Args:
            before: The job as it was when the write began.
            result: The job as the API server answered; None when it is gone, or nothing is known.
        """
        observed = self._writes.pop(before.uid)
        state = self._state(before)
        state.delete_job(before.uid)
        # Of two of one version the watch's: what it has told, it does not tell again.
        known = [job for job in (observed.job, result) if job is not None and not observed.deleted]
        now = max(known, key=lambda job: job.metadata.version, default=None)
        with self._isolated(now or before):
            if now is None:
                self._remove_job(before, before)
            else:
                if now is not observed.job and now.status.phase in TERMINAL:
                    self._ended[now.uid] = now.metadata.version
                self._keep_job(now, before)

    def take_worker(self, job: BatchJob) -> None:
        """Take in a worker's batch/v1 Job that was created, before the watch tells of it."""
        self._state(job).update_batch_job(job)

    def take_model(self, model: DiffusionModel) -> None:
        """Take in a model whose status was written; one that is gone meanwhile stays gone."""
        state = self._state(model)
        if model.name in state.models:
            state.update_model(model)

    def take_adapter(self, adapter: LoRAAdapter) -> None:
        """Take in an adapter whose status was written; one that is gone meanwhile stays gone."""
        state = self._state(adapter)
        if adapter.name in state.adapters.items:
            state.adapters.update(adapter)

    def set_worker_refusal(self, model: DiffusionModel, message: str, tried: str = "") -> bool:
        """Keep why the API server takes no worker of a model, and return whether that is news.

        Args:
            model: The model.
            message: Why.
            tried: Hash of the template that was tried, which the model may have no more; empty where none was.
        """
        state = self._state(model)
        if tried and state.untried_template(model.name) != tried:
            return False
        refusals = state.refusals
        is_news = refusals.get(model.name) != message
        refusals[model.name] = message
        return is_news

    def clear_worker_refusal(self, model: DiffusionModel) -> None:
        """Forget why the API server took no worker of a model, since it took one."""
        self._state(model).refusals.pop(model.name, None)

    def accept_template(self, model: DiffusionModel, template_hash: str) -> None:
        """Have workers of a model be made from a template that the API server takes."""
        self._state(model).accept_template(model.name, template_hash)

    def mark_changed(self, namespace: str) -> None:
        """Have the loop decide on a namespace soon."""
        self._changes.namespaces[namespace] = None
        self._changed.set()

    # What the loop reads.

    async def wait_for_change(self) -> None:
        """Wait until something has changed that :meth:`take_changes` has not returned yet."""
        await self._changed.wait()

    def take_changes(self) -> Changes:
        """Return what has changed since the last call."""
        changes, self._changes = self._changes, Changes()
        self._changed.clear()
        return changes

    def namespace(self, name: str) -> NamespaceState | None:
        """Return the state of a namespace, and forget one that has become empty; None where there is none."""
        state = self._namespaces.get(name)
        if state is not None and state.empty:
            del self._namespaces[name]
            return None
        return state

    def job(self, namespace: str, uid: str) -> GenerationJob | None:
        """Return an unfinished job, as it is or is assumed to be; None when it is not known."""
        state = self._namespaces.get(namespace)
        return state.jobs.get(uid) if state is not None else None

    def unfinished_jobs(self, namespace: str | None) -> list[GenerationJob]:
        """Return the unfinished jobs of one namespace, or of all where it is None."""
        states = [state for state in self._namespaces.values() if namespace in {None, state.name}]
        return [job for state in states for job in state.jobs.values()]

    def model_of(self, job: GenerationJob) -> DiffusionModel | None:
        """Return the model that a job runs or ran on; None where it does not exist."""
        state = self._namespaces.get(job.metadata.namespace)
        name = job.status.parameters.model if job.status.parameters is not None else job.spec.model
        return choose_model(state.models, name) if state is not None else None

    def unfinished_count(self, namespace: str) -> int:
        """Return how many unfinished jobs a namespace has."""
        state = self._namespaces.get(namespace)
        return len(state.jobs) if state is not None else 0

    def worker_end(self, job: GenerationJob) -> float:
        """Return the seconds after which a job's worker has ended, or its node is lost, if it is told to go now."""
        return self._state(job).longest_end(job.status.worker or "").total_seconds()

    def bound_jobs(self, scope: str | None = None) -> list[GenerationJob]:
        """Return the jobs that are bound to workers, in one namespace or in all where it is None."""
        return [job for name in self._within(scope) for job in self._namespaces[name].bound_jobs]

    def pop_first_seen(self, job: GenerationJob) -> dt.datetime | None:
        """Return and forget when a job was first seen, where that says more than its creation timestamp."""
        return self._first_seen.pop(job.uid, None)

    # Within.

    @contextmanager
    def _isolated(self, item: KubernetesObject) -> Iterator[None]:
        """Keep an error at one object to itself: watches and lists go on, and the loop is told."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of any kind: it concerns this object alone
            self._changes.errors.append(ObservationError(item, error))
        self.mark_changed(item.metadata.namespace)

    def _within(self, scope: str | None) -> set[str]:
        """Return the names of the known namespaces that a list of a scope speaks of."""
        return {name for name in self._namespaces if scope in {None, name}}

    def _state(self, item: KubernetesObject) -> NamespaceState:
        return self._namespace(item.metadata.namespace)

    def _namespace(self, name: str) -> NamespaceState:
        if name not in self._namespaces:
            self._namespaces[name] = NamespaceState(name, self._hash_of, self._node_grace)
        return self._namespaces[name]

    def _keep_job(self, job: GenerationJob, known: GenerationJob | None) -> None:
        state = self._state(job)
        state.update_job(job)
        if job.status.phase in TERMINAL:
            if known is not None:
                # A job that had finished before this operator began may have run on another revision.
                state.learn_revision(job)
        elif known is None:
            self._note_first_sight(job)
        self._changes.jobs.append(JobChange(job.uid, known, job))

    def _remove_job(self, job: GenerationJob, known: GenerationJob | None) -> None:
        self._state(job).delete_job(job.uid)
        self._first_seen.pop(job.uid, None)
        self._changes.jobs.append(JobChange(job.uid, known, None))

    def _note_first_sight(self, job: GenerationJob) -> None:
        created, now = job.metadata.creation_timestamp, dt.datetime.now(dt.UTC)
        if created is not None and now - created < FRESH and job.status.queued_at is None:
            self._first_seen[job.uid] = now

    def _precedes_known_end(self, job: GenerationJob, deleted: bool) -> bool:
        """Return whether a job is told as it was before a write ended it: a list may be older than the write's answer.

        Once the end itself has been told, nothing older will be, and nothing is kept.
        """
        ended = self._ended.get(job.uid)
        if ended is None:
            return False
        if not deleted and job.metadata.version < ended:
            return True
        del self._ended[job.uid]
        return False
