"""Carries out what was decided on workers, models, adapters: create, delete, report. The answers go to the store."""

from __future__ import annotations

import asyncio
import logging

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import (
    CreateWorker,
    DeletePod,
    DeleteWorker,
    ReportAdapter,
    ReportModel,
    TryWorker,
    WorkerAction,
)
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import Cluster, NameTakenError
from kubediffusion.operator.events import (
    EventRecorder,
    events_of_adapter_report,
    events_of_model_report,
    pod_deleted,
    worker_refused,
)
from kubediffusion.operator.retrying import RETRY_SECONDS
from kubediffusion.operator.store import Store
from kubediffusion.operator.workers import BatchJob
from kubediffusion.resources.apiserver.errors import ConflictError, InvalidError, KubernetesError
from kubediffusion.resources.backoff import Backoffs
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.texts import MAX_NOTE, shorten

logger = logging.getLogger(__name__)

LONGEST_REFUSAL_PAUSE = 60.0
"""Seconds between tries of a write that the API server refuses, at most."""

SHORTEST_INVALID_PAUSE = 10.0
"""Seconds between tries of a Job that is not valid, at least. The model's spec can mend that, which makes another Job;
and to find hundreds of errors costs the API server seconds."""


class WorkerExecutor:
    """Carries out actions on workers, models and adapters, each once at a time.

    Args:
        cluster: Where they are written.
        store: Takes the answers.
        recorder: Takes the Events of what was written or refused.
        tasks: Runs the writes.
    """

    def __init__(self, cluster: Cluster, store: Store, recorder: EventRecorder, tasks: BackgroundTasks) -> None:
        self._cluster = cluster
        self._store = store
        self._recorder = recorder
        self._tasks = tasks
        self._under_way: set[str] = set()
        self._backoffs = Backoffs(RETRY_SECONDS, LONGEST_REFUSAL_PAUSE)
        """The pauses of what is refused: workers of a model, by its uid; other writes, by their key."""

    def start(self, action: WorkerAction) -> bool:
        """Begin to write an action, and return whether that was so: not while the same is under way."""
        key = _key(action)
        if key in self._under_way:
            return False
        self._under_way.add(key)
        self._tasks.create_task(self._write(action, key))
        return True

    def forget_model(self, model: DiffusionModel) -> None:
        """Drop what is kept of a model that is gone."""
        self._backoffs.forget(model.uid)
        self._backoffs.forget(f"report/{model.uid}")

    def forget_adapter(self, adapter: LoRAAdapter) -> None:
        """Drop what is kept of an adapter that is gone."""
        self._backoffs.forget(f"report/{adapter.uid}")

    async def _write(self, action: WorkerAction, key: str) -> None:
        name = metrics.action_label(action)
        try:
            written = await self._cluster.execute(action)
            metrics.ACTIONS.labels(name, "done").inc()
        except KubernetesError as error:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.warning("%s failed, trying again: %s", name, shorten(str(error), MAX_NOTE), extra={"key": key})
            if isinstance(action, CreateWorker | TryWorker):
                pause = self._refuse(action, error)
            else:
                pause = self._backoffs.next_pause(key) if is_refusal(error) else RETRY_SECONDS
            # The key stays under way meanwhile, so that no pass starts the same again.
            await asyncio.sleep(error.retry_after or pause)
        except Exception:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.exception("a defect: %s failed, trying again", name, extra={"key": key})
            await asyncio.sleep(RETRY_SECONDS)
        else:
            self._backoffs.forget(key)
            self._take(written)
            self._report(action)
        finally:
            self._under_way.discard(key)
            self._store.mark_changed(action.namespace)

    def _take(self, written: BatchJob | DiffusionModel | LoRAAdapter | None) -> None:
        """Put what was written into the store before the watch does: else the next pass would decide the same again."""
        match written:
            case BatchJob():
                self._store.take_worker(written)
            case DiffusionModel():
                self._store.take_model(written)
            case LoRAAdapter():
                self._store.take_adapter(written)
            case None:
                pass

    def _report(self, action: WorkerAction) -> None:
        """Tell of what was done."""
        match action:
            case ReportModel():
                self._recorder.record(*events_of_model_report(action))
            case ReportAdapter():
                self._recorder.record(*events_of_adapter_report(action))
            case CreateWorker():
                self._backoffs.forget(action.model.uid)
                self._store.clear_worker_refusal(action.model)
            case TryWorker():
                self._backoffs.forget(action.model.uid)
                self._store.accept_template(action.model, action.template_hash)
            case DeletePod():
                self._recorder.record(pod_deleted(action))
            case DeleteWorker():
                pass

    def _refuse(self, action: CreateWorker | TryWorker, error: KubernetesError) -> float:
        """Keep why a worker's Job was refused, for the jobs that wait, and return the seconds until the next try.

        An Event tells of it once, not at every try.
        """
        model, tried = action.model, action.template_hash if isinstance(action, TryWorker) else ""
        if is_refusal(error) and self._store.set_worker_refusal(model, error.message, tried):
            self._recorder.record(worker_refused(model, error.message))
        pause = self._backoffs.next_pause(model.uid)
        return max(pause, SHORTEST_INVALID_PAUSE) if isinstance(error, InvalidError) else pause


def is_refusal(error: KubernetesError) -> bool:
    """Return whether the API server will say the same until somebody acts.

    What passes without anybody's doing is no refusal: the API server is away or busy, or others write the same quota.
    A webhook that does not answer may, but somebody has to know of it.
    """
    if error.webhook_failed:
        return True
    return not error.transient and (not isinstance(error, ConflictError) or isinstance(error, NameTakenError))


def _key(action: WorkerAction) -> str:
    match action:
        case CreateWorker():
            return f"create/{action.model.uid}/{action.template_hash}/{action.ordinal}"
        case TryWorker():
            return f"try/{action.model.uid}/{action.template_hash}"
        case DeleteWorker():
            return f"delete/{action.uid}"
        case DeletePod():
            return f"delete-pod/{action.uid}"
        case ReportModel():
            return f"report/{action.model.uid}"
        case ReportAdapter():
            return f"report/{action.adapter.uid}"
