"""Carries out actions: a write to the API server, whose answer goes to the store. Nothing calls the loop."""

from __future__ import annotations

from kubediffusion.operator.actions import Action, WorkerAction
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.job_executor import JobExecutor
from kubediffusion.operator.store import Store
from kubediffusion.operator.worker_executor import WorkerExecutor
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.lora_adapter import LoRAAdapter


class ActionExecutor:
    """Carries out actions in the background.

    Args:
        cluster: Where they are written.
        store: Takes the answers.
        recorder: Takes the Events of what was written.
    """

    def __init__(self, cluster: Cluster, store: Store, recorder: EventRecorder) -> None:
        self._tasks = BackgroundTasks()
        self._jobs = JobExecutor(cluster, store, recorder, self._tasks)
        self._workers = WorkerExecutor(cluster, store, recorder, self._tasks)

    def start(self, action: Action) -> bool:
        """Begin to carry out an action; return whether that was so: not while another on its object is under way."""
        if isinstance(action, WorkerAction):
            return self._workers.start(action)
        return self._jobs.start(action)

    def forget_job(self, uid: str) -> None:
        """Drop what is kept of a job that has ended or is gone."""
        self._jobs.forget_job(uid)

    def forget_model(self, model: DiffusionModel) -> None:
        """Drop what is kept of a model that is gone."""
        self._workers.forget_model(model)

    def forget_adapter(self, adapter: LoRAAdapter) -> None:
        """Drop what is kept of an adapter that is gone."""
        self._workers.forget_adapter(adapter)

    async def close(self) -> None:
        """Cancel what is under way, and wait for its end."""
        await self._tasks.close()
