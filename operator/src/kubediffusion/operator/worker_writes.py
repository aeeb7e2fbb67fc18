"""Writes of what was decided about workers and models: create, delete, report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import CreateWorker, DeleteWorker, ReportModel
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import RETRY_SECONDS, Cluster, NameTakenError, action_name
from kubediffusion.operator.state import Namespaces
from kubediffusion.operator.telling import Teller
from kubediffusion.operator.workers import BatchJob
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.client import ConflictError, KubernetesError
from kubediffusion.resources.diffusion_model import DiffusionModel

logger = logging.getLogger(__name__)

LONGEST_REFUSAL_PAUSE = 60.0
"""Seconds between tries to create a worker that the API server refuses, at most."""

WorkerAction = CreateWorker | DeleteWorker | ReportModel


class WorkerWrites:
    """Carries out actions on workers and models, each once at a time.

    Args:
        cluster: Where they are written.
        namespaces: What the passes see; the answers go there at once.
        background: Where the writes run.
        teller: Told of what was written.
        on_done: Called with the namespace when a write has ended, whatever became of it.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Namespaces,
        background: BackgroundTasks,
        teller: Teller,
        on_done: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._namespaces = namespaces
        self._background = background
        self._teller = teller
        self._on_done = on_done
        self._busy: set[str] = set()
        self._refused: dict[str, Backoff] = {}
        """The pauses of models whose workers the API server refuses, by the model's uid."""

    def start(self, action: WorkerAction) -> None:
        """Have an action written, unless the same is under way."""
        key = _key(action)
        if key not in self._busy:
            self._busy.add(key)
            self._background.create_task(self._write(action, key))

    def forget(self, model: DiffusionModel) -> None:
        """Drop what is kept of a model that is gone."""
        self._refused.pop(model.uid, None)

    async def _write(self, action: WorkerAction, key: str) -> None:
        name = action_name(action)
        try:
            written = await self._cluster.execute(action)
            metrics.ACTIONS.labels(name, "done").inc()
        except KubernetesError as error:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.warning("%s failed, trying again: %s", name, error, extra={"key": key})
            pause = self._refuse(action.model, error) if isinstance(action, CreateWorker) else RETRY_SECONDS
            # The key stays busy meanwhile, so that no pass starts the same again.
            await asyncio.sleep(error.retry_after or pause)
        except Exception:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.exception("a defect: %s failed, trying again", name, extra={"key": key})
            await asyncio.sleep(RETRY_SECONDS)
        else:
            self._take(written)
            if isinstance(action, ReportModel):
                self._teller.model_reported(action)
            elif isinstance(action, CreateWorker):
                self._refused.pop(action.model.uid, None)
                self._namespaces.of(action.model).refusals.pop(action.model.name, None)
        finally:
            self._busy.discard(key)
            self._on_done(action.namespace if isinstance(action, DeleteWorker) else action.model.metadata.namespace)

    def _take(self, written: BatchJob | DiffusionModel | None) -> None:
        """Take the answer in before the watch tells of it: else the next pass would decide the same again."""
        match written:
            case BatchJob():
                self._namespaces.of(written).put_batch_job(written)
            case DiffusionModel():
                state = self._namespaces.of(written)
                # One that the watch has told to be gone meanwhile stays gone.
                if written.name in state.models:
                    state.put_model(written)
            case None:
                pass

    def _refuse(self, model: DiffusionModel, error: KubernetesError) -> float:
        """Keep why a worker's Job was refused, for those who wait, and give the seconds until the next try.

        An Event tells of it once, not at every try. What goes by without anybody's doing is no refusal: the API server
        is away or busy, or others write the same quota.
        """
        passing = error.transient or (isinstance(error, ConflictError) and not isinstance(error, NameTakenError))
        refusals = self._namespaces.of(model).refusals
        if not passing and refusals.get(model.name) != error.message:
            refusals[model.name] = error.message
            self._teller.worker_refused(model, error.message)
        return self._refused.setdefault(model.uid, Backoff(RETRY_SECONDS, LONGEST_REFUSAL_PAUSE)).next_pause()


def _key(action: WorkerAction) -> str:
    match action:
        case CreateWorker():
            return f"create/{action.model.uid}/{action.template_hash}/{action.ordinal}"
        case DeleteWorker():
            return f"delete/{action.uid}"
        case ReportModel():
            return f"report/{action.model.uid}"
