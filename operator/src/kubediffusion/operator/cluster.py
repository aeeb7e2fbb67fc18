"""The operator's requests to the API server: lists what there is, writes what a pass decided.

Events are in :mod:`.events`, watches in :mod:`.watching`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

from kubediffusion.operator.actions import (
    CreateWorker,
    DeletePod,
    DeleteWorker,
    ReportAdapter,
    ReportModel,
    TryWorker,
    WorkerAction,
)
from kubediffusion.operator.job_quotas import ResourceQuota, jobs_admitted
from kubediffusion.operator.manifests import WorkerDefaults, worker_job
from kubediffusion.operator.model_status import name_taken, pod_deletion_reason
from kubediffusion.operator.object_cache import ObjectList
from kubediffusion.operator.request_places import RequestPlaces
from kubediffusion.operator.retrying import retry_until_done
from kubediffusion.operator.slim_jobs import lacks_prompt, slim_jobs
from kubediffusion.operator.worker_template import TemplateError
from kubediffusion.operator.workers import BatchJob, Pod
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubernetesError,
    NotFoundError,
)
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.merge_patch import merge_patch
from kubediffusion.resources.objects import CustomResource, KubernetesObject
from kubediffusion.resources.schema import Schema
from kubediffusion.resources.texts import MAX_NOTE, shorten
from kubediffusion.resources.transitions import BOUND, TERMINAL

logger = logging.getLogger(__name__)

UNFINISHED = ",".join(f"status.phase!={phase}" for phase in sorted(TERMINAL))
"""Field selector of jobs that have not finished."""

BOUND_JOBS = ",".join(f"status.phase!={phase}" for phase in sorted(set(Phase) - BOUND))
"""Field selector of jobs that workers have."""

MOST_EVENT_PAGES = 10
"""Pages of 500 Warning Events that are looked through for why workers of a namespace do not start."""

T = TypeVar("T")
Kind = TypeVar("Kind", bound=KubernetesObject)


class NameTakenError(ConflictError):
    """409: a worker's name is taken by a batch/v1 Job that is no worker, until somebody sees to it."""


class Cluster:
    """Reads from and writes to the API server, typed.

    Args:
        client: The connection.
        namespaces: Namespaces to manage; empty for all.
        defaults: What the operator's settings add to workers.
        concurrent: Requests that may be under way at once, beside a few of each namespace's own.
    """

    def __init__(
        self, client: KubernetesClient, namespaces: Sequence[str], defaults: WorkerDefaults, concurrent: int
    ) -> None:
        self._client = client
        self._namespaces: Sequence[str | None] = list(namespaces) or [None]
        self._defaults = defaults
        self._places = RequestPlaces(concurrent)
        self._batch_jobs = Resource(client, BatchJob, "/apis/batch/v1", "jobs")
        self._jobs = slim_jobs(client)
        self._pods = Resource(client, Pod, "/api/v1", "pods")
        self._without_adapters: set[str | None] = set()
        """Scopes of which it was told that adapters cannot be listed."""
        self._quotas = Resource(client, ResourceQuota, "/api/v1", "resourcequotas")

    @property
    def scopes(self) -> Sequence[str | None]:
        """The namespaces to list one by one; None alone stands for the whole cluster."""
        return self._namespaces

    async def models(self, scope: str | None) -> ObjectList[DiffusionModel]:
        """List the DiffusionModels of a namespace; of the whole cluster for None."""
        return _listed(await self._client.diffusion_models.list(scope))

    async def adapters(self, scope: str | None) -> ObjectList[LoRAAdapter]:
        """List the adapters of a scope: none where an earlier release's CRDs or roles are in force."""
        try:
            return _listed(await self._client.lora_adapters.list(scope))
        except (NotFoundError, ForbiddenError) as error:
            if scope not in self._without_adapters:
                self._without_adapters.add(scope)
                logger.warning("LoRAAdapters cannot be listed, so there are none: %s", error)
            return ObjectList((), 0)

    async def unfinished_jobs(self, scope: str | None) -> ObjectList[GenerationJob]:
        """List the jobs that have not finished: all that a restart must know, however many finished ones are kept."""
        return _listed(await self._jobs.list(scope, field_selector=UNFINISHED))

    async def bound_jobs(self, scope: str | None) -> ObjectList[GenerationJob]:
        """List the jobs that are bound to workers: few, however many wait."""
        return _listed(await self._jobs.list(scope, field_selector=BOUND_JOBS))

    async def batch_jobs(self, scope: str | None) -> ObjectList[BatchJob]:
        """List the batch/v1 Jobs of workers."""
        return _listed(await self._batch_jobs.list(scope, label_selector=meta.WORKER_SELECTOR))

    async def pods(self, scope: str | None) -> ObjectList[Pod]:
        """List the Pods of workers."""
        return _listed(await self._pods.list(scope, label_selector=meta.WORKER_SELECTOR))

    async def warnings(self, namespace: str, uids: set[str]) -> dict[str, str]:
        """Return what the last Warning Events say of some Jobs and Pods, by uid.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        found: list[tuple[str, str, str]] = []
        for kind in ("Job", "Pod"):
            query: dict[str, str | int] = {"fieldSelector": f"type=Warning,regarding.kind={kind}", "limit": 500}
            # Others of the namespace may have more of them than are worth reading every few seconds.
            for _ in range(MOST_EVENT_PAGES):
                async with self._places.place(namespace):
                    answer = await self._client.request("GET", path, query=query)
                found += [
                    (
                        _event_time(event),
                        event["regarding"]["uid"],
                        f"{event.get('reason', '')}: {event.get('note', '')}",
                    )
                    for event in answer["items"]
                    if event.get("regarding", {}).get("uid") in uids
                ]
                if not (token := answer["metadata"].get("continue")):
                    break
                query["continue"] = token
        # The latest of each.
        return {uid: shorten(text, MAX_NOTE) for _, uid, text in sorted(found)}

    async def job_quotas(self) -> dict[str, int]:
        """Return how many GenerationJobs each namespace may have, where a ResourceQuota says so.

        A namespace whose quotas may not be listed is left out, unless it is the only one.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        found: list[ResourceQuota] = []
        refusal: KubernetesError | None = None
        for scope in self._namespaces:
            try:
                async with self._places.place(scope):
                    found += (await self._quotas.list(scope))[0]
            except ForbiddenError as error:
                refusal = error
        if refusal is not None and not found:
            raise refusal
        return jobs_admitted(found)

    async def get_job(self, namespace: str, name: str, uid: str) -> GenerationJob:
        """Read one job.

        Raises:
            NotFoundError: It is gone, or another has its name.
            KubernetesError: The API server refused, or is away.
        """
        async with self._places.place(namespace):
            job = await self._jobs.get(namespace, name)
        if job.uid != uid:
            raise NotFoundError(404, "NotFound", f"{namespace}/{name} is another job by now")
        return job

    async def find_job(self, job: GenerationJob) -> GenerationJob | None:
        """Read a job anew, and try again until the API server answers; None when the job is gone."""
        return await retry_until_done(
            "read a job", job.name, lambda: self.get_job(job.metadata.namespace, job.name, job.uid)
        )

    async def write_status(self, job: GenerationJob, status: GenerationJobStatus) -> GenerationJob:
        """Write a job's status if the job is still as it was seen, and return the job that the API server answers with.

        Raises:
            ConflictError: It has changed meanwhile; nothing was written.
            NotFoundError: It is gone.
            KubernetesError: The API server refused, or is away.
        """
        if lacks_prompt(job, status.parameters):
            status = await self._with_negative_prompt(job, status)
        patch = {"status": merge_patch(job.status.to_wire(), status.to_wire())}
        return await self._patch_job(job, patch, "status")

    async def _with_negative_prompt(self, job: GenerationJob, status: GenerationJobStatus) -> GenerationJobStatus:
        """Return a status whose recipe has the negative prompt of the job, which is read for it."""
        async with self._places.place(job.metadata.namespace):
            whole = await self._client.generation_jobs.get(job.metadata.namespace, job.name)
        if whole.uid != job.uid or status.parameters is None:
            raise NotFoundError(404, "NotFound", f"{job.metadata.namespace}/{job.name} is another job by now")
        parameters = status.parameters.model_copy(update={"negative_prompt": whole.spec.negative_prompt})
        return status.model_copy(update={"parameters": parameters})

    async def add_images_finalizer(self, job: GenerationJob) -> GenerationJob:
        """Add the finalizer of images to a job. Errors are those of :meth:`write_status`."""
        patch = {"metadata": {"finalizers": [*job.metadata.finalizers, meta.IMAGES_FINALIZER]}}
        return await self._patch_job(job, patch, "")

    async def remove_images_finalizer(self, job: GenerationJob) -> None:
        """Remove the finalizer of images from a job that was just read. Errors are those of :meth:`write_status`."""
        finalizers = [name for name in job.metadata.finalizers if name != meta.IMAGES_FINALIZER]
        await self._patch_job(job, {"metadata": {"finalizers": finalizers}}, "")

    async def annotate_job(self, job: GenerationJob, name: str, value: str) -> None:
        """Set an annotation of a job, whatever else has changed of it, unless it has that value.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        async with self._places.place(job.metadata.namespace):
            now = await self._jobs.get(job.metadata.namespace, job.name)
            if now.uid == job.uid and now.metadata.annotations.get(name) != value:
                patch = {"metadata": {"uid": job.uid, "annotations": {name: value}}}
                await self._jobs.patch(job.metadata.namespace, job.name, patch)

    async def write_default_ttl(self, job: GenerationJob, seconds: int) -> None:
        """Write a time to live into the spec of a job that names none; one that has changed since is left alone.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        with contextlib.suppress(ConflictError):  # another job has its name
            await self._patch_job(job, {"spec": {"ttlSecondsAfterFinished": seconds}}, "")

    async def delete_job(self, job: GenerationJob) -> None:
        """Delete a job. A job that is gone, or another of its name, is no error.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        async with self._places.place(job.metadata.namespace):
            try:
                await self._jobs.delete(job.metadata.namespace, job.name, job.uid)
            except (NotFoundError, ConflictError):
                return

    async def execute(self, action: WorkerAction) -> DiffusionModel | BatchJob | LoRAAdapter | None:
        """Carry out an action on a worker, a model or an adapter, and return the object as it is then.

        Raises:
            KubernetesError: The API server refused, or is away.
        """
        async with self._places.place(action.namespace):
            match action:
                case CreateWorker():
                    return await self._create_worker(action)
                case TryWorker():
                    await self._try_worker(action)
                    return None
                case DeleteWorker():
                    await self._delete_worker(action)
                    return None
                case DeletePod():
                    await self._delete_pod(action)
                    return None
                case ReportModel():
                    return await self._report(self._client.diffusion_models, action.model, action.status)
                case ReportAdapter():
                    return await self._report(self._client.lora_adapters, action.adapter, action.status)

    async def _patch_job(self, job: GenerationJob, patch: dict[str, Any], subresource: str) -> GenerationJob:
        # The resource version makes the API server refuse a write over a state that was never seen here.
        seen = {"resourceVersion": job.metadata.resource_version, "uid": job.uid}
        patch["metadata"] = patch.get("metadata", {}) | seen
        async with self._places.place(job.metadata.namespace):
            return await self._jobs.patch(job.metadata.namespace, job.name, patch, subresource=subresource)

    async def _create_worker(self, action: CreateWorker) -> BatchJob:
        manifest = self._worker_job(action.model, action.template_hash, action.ordinal)
        try:
            job = await self._batch_jobs.create(action.model.metadata.namespace, manifest)
        except ConflictError as refusal:
            return await self._worker_there(action, manifest["metadata"]["name"], refusal)
        logger.info("worker %s created", job.metadata.name, extra={"model": action.model.name})
        return job

    async def _try_worker(self, action: TryWorker) -> None:
        """Ask the API server whether it takes a worker's Job.

        Raises:
            KubernetesError: It refuses what the Job is, or is away.
        """
        manifest = self._worker_job(action.model, action.template_hash, 0)
        try:
            await self._batch_jobs.create(action.model.metadata.namespace, manifest, dry_run=True)
        except ConflictError:
            # One of this very template is there, or it is a quota's.
            return
        except KubernetesError as error:
            if not says_nothing_of_job(error):
                raise

    def _worker_job(self, model: DiffusionModel, template_hash: str, ordinal: int) -> dict[str, Any]:
        """Return the manifest of a worker's Job.

        Raises:
            InvalidError: A template would not make a worker, which the API server would not say.
        """
        try:
            return worker_job(model, template_hash, ordinal, self._defaults)
        except TemplateError as refusal:
            raise InvalidError(422, "Invalid", str(refusal)) from None

    async def _worker_there(self, action: CreateWorker, name: str, refusal: ConflictError) -> BatchJob:
        """Return the worker that was created before.

        Raises:
            NameTakenError: The name is that of another batch/v1 Job, which would be asked for again for ever.
            ConflictError: It is another conflict (a quota's), or the worker has gone since.
        """
        try:
            job = await self._batch_jobs.get(action.model.metadata.namespace, name)
        except NotFoundError:
            # Another conflict (a quota's), or it has gone since.
            raise refusal from None
        if not job.is_worker_of(action.model.name):
            raise NameTakenError(409, refusal.reason, name_taken(name))
        return job

    async def _delete_worker(self, action: DeleteWorker) -> None:
        try:
            await self._batch_jobs.delete(action.namespace, action.name, action.uid)
        except (NotFoundError, ConflictError):
            # It is gone, or another has its name.
            return
        logger.info("worker %s deleted: %s", action.name, action.reason)

    async def _delete_pod(self, action: DeletePod) -> None:
        try:
            await self._pods.delete(action.model.metadata.namespace, action.name, action.uid)
        except (NotFoundError, ConflictError):
            return
        logger.info("Pod %s deleted: %s", action.name, pod_deletion_reason(action), extra={"model": action.model.name})

    async def _report(self, kind: Resource[Kind], item: CustomResource[Any, Any], status: Schema) -> Kind | None:
        """Write the status of a model or an adapter, whatever else has changed of it; None where it is gone."""
        patch = {
            "metadata": {"uid": item.uid},
            "status": merge_patch(item.status.to_wire(), status.to_wire()),
        }
        try:
            return await kind.patch(item.metadata.namespace, item.name, patch, subresource="status")
        except (NotFoundError, ConflictError):
            # Another has its name, and other things to be told.
            return None


def says_nothing_of_job(error: KubernetesError) -> bool:
    """Return whether a try was refused for what would not keep a Job from being created in its time.

    The workers that it would replace may be what fills a quota; and a webhook may refuse to be asked without a write.
    """
    return "exceeded quota" in error.message or "does not support dry run" in error.message


def _event_time(event: dict[str, Any]) -> str:
    """Return when an Event was last seen, as RFC 3339, which sorts as text."""
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("deprecatedLastTimestamp") or event.get("eventTime") or "")


def _listed(listed: tuple[list[Kind], str]) -> ObjectList[Kind]:
    items, version = listed
    return ObjectList(tuple(items), int(version))
