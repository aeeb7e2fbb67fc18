"""Ends images and jobs: encodes, uploads and reports while the engine computes the next batch."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.generation_job import DeletionPolicy, Image
from kubediffusion.resources.image_keys import image_key
from kubediffusion.resources.storage import SupersededError
from kubediffusion.worker import images, reports
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import ImageOutput, Outcome
from kubediffusion.worker.previews import Previews
from kubediffusion.worker.progress_reporter import ProgressReporter
from kubediffusion.worker.reporter import Build, Delivery, ReportRefusedError
from kubediffusion.worker.uploads import Uploader

logger = logging.getLogger(__name__)


class Finisher:
    """Carries what the engine made to storage, and the outcome of each job to its status.

    Args:
        context: What the parts of the worker share.
        progress: Writes progress; stopped for a job before its outcome is reported.
        previews: Stores previews; stopped in the same way.
        uploader: Uploads images.
        encoders: Threads that encode.

    Attributes:
        buffered: Bytes of finished images that are held in memory.
        defect: An exception that left a job without an outcome; None normally. Only the end of this process gives the
            job one: the operator binds it again.
    """

    def __init__(
        self,
        context: WorkerContext,
        progress: ProgressReporter,
        previews: Previews,
        uploader: Uploader,
        encoders: Executor,
    ) -> None:
        self._engine = context.engine.info
        self._assignments = context.assignments
        self._reporter = context.reporter
        self._prefix = context.prefix
        self._metrics = context.metrics
        self._wake_runner = context.work_available.set
        self._progress = progress
        self._previews = previews
        self._uploader = uploader
        self._encoders = encoders
        self._tasks: set[asyncio.Task[None]] = set()
        self.buffered = 0
        self.defect: BaseException | None = None

    def finish_image(self, assignment: Assignment, index: int, outcome: Outcome) -> None:
        """Store an image, or report its failure; nothing for a job that is no longer wanted.

        Args:
            assignment: The image's job.
            index: The image within the job.
            outcome: The image, or why there is none.
        """
        if assignment.dropped or assignment.finishing:
            return
        if isinstance(outcome, JobFailure):
            self._finish(assignment, self._fail(assignment, outcome))
        else:
            assignment.record_output(index, outcome, time.monotonic())
            task = self._spawn(self._store(assignment, index, outcome))
            assignment.tasks.add(task)
            task.add_done_callback(assignment.tasks.discard)

    def abandon(self, assignment: Assignment) -> None:
        """Stop all work on a job that is no longer this worker's."""
        logger.info("job is no longer ours", extra={"job": assignment.name, "attempt": assignment.binding.attempt})
        assignment.drop()
        self.release(assignment)
        self._assignments.remove(assignment)

    def release(self, assignment: Assignment) -> None:
        """Stop reporting on a job that the watch took away, and delete its images where they go with the job."""
        self._progress.stop(assignment)
        self._previews.stop(assignment)
        self._metrics.jobs.labels("dropped").inc()
        if assignment.images:
            self._spawn(self._delete_orphans(assignment, *assignment.images))

    async def drain(self) -> None:
        """Wait until everything that the engine made is stored and reported."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _store(self, assignment: Assignment, index: int, output: ImageOutput) -> None:
        ready = time.monotonic()
        try:
            image = await self._upload(assignment, index, output)
        except JobFailure as failure:
            self._finish(assignment, self._fail(assignment, failure))
            return
        except SupersededError:
            assignment.tasks.discard(asyncio.current_task())
            self.abandon(assignment)
            return
        except asyncio.CancelledError:
            await self._delete_orphans(assignment, index)
            raise
        except Exception as error:
            # A defect of this worker; the job must end all the same.
            logger.exception("an image cannot be stored", extra={"job": assignment.name})
            defect = JobFailure(ErrorCode.INTERNAL, f"the image cannot be stored: {type(error).__name__}: {error}")
            self._finish(assignment, self._fail(assignment, defect))
            return
        self._metrics.upload.observe(time.monotonic() - ready)
        assignment.images[index] = image
        if len(assignment.images) == assignment.parameters.num_images:
            seconds = time.monotonic() - assignment.spans[-1].ended
            self._finish(assignment, self._succeed(assignment, seconds))

    async def _upload(self, assignment: Assignment, index: int, output: ImageOutput) -> Image:
        with _BufferedBytes(self, len(output.rgb)) as buffered:
            png = await self._encode(assignment, index, output)
            buffered.resize(len(png.data))
            # Only the PNG is held while storage is waited for.
            output = replace(output, rgb=b"")
            uri = await self._uploader.put(
                self._key(assignment, index),
                png.data,
                assignment.binding.attempt,
                lambda problem: self._progress.report_storage_trouble(assignment, problem),
            )
        return Image(
            index=index,
            uri=uri,
            sha256=png.sha256,
            bytes=len(png.data),
            width=output.width,
            height=output.height,
            seed=assignment.seed(index),
            flagged=output.flagged,
        )

    async def _delete_orphans(self, assignment: Assignment, *indexes: int) -> None:
        """Delete images that may have been stored after their job was deleted.

        The operator deletes a deleted job's images, and may have done so before an upload that hung got through. While
        the job is there, it has not: what is stored by now goes with the job.
        """
        if assignment.job.spec.deletion_policy != DeletionPolicy.DELETE:
            return
        if await self._reporter.is_deleted(assignment):
            for index in indexes:
                await self._uploader.delete(self._key(assignment, index))

    def _key(self, assignment: Assignment, index: int) -> str:
        return image_key(self._prefix, assignment.job.metadata.namespace, assignment.binding.uid, index)

    async def _encode(self, assignment: Assignment, index: int, output: ImageOutput) -> images.Png:
        parameters = reports.completed_parameters(assignment.parameters, self._engine, output)
        own = parameters.model_copy(update={"seed": assignment.seed(index), "num_images": 1}).to_wire()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, images.encode, output, assignment.job.spec.prompt, own)

    def _finish(self, assignment: Assignment, report: Coroutine[Any, Any, None]) -> None:
        """Start to report an outcome, unless the job was dropped or has one."""
        if assignment.dropped or assignment.finishing:
            report.close()
            return
        assignment.finishing = True
        self._progress.stop(assignment)
        self._previews.stop(assignment)
        self._spawn(report)
        # After a failure the job's other images are not wanted; after a success there are none.
        assignment.tasks.discard(asyncio.current_task())
        assignment.cancel_tasks()

    async def _succeed(self, assignment: Assignment, upload_seconds: float) -> None:
        now = dt.datetime.now(dt.UTC)
        try:
            await self._deliver(
                assignment,
                "succeeded",
                lambda job: reports.succeeded(job, assignment, self._engine, upload_seconds, now),
            )
        except ReportRefusedError as error:
            logger.exception("the report of a success is refused", extra={"job": assignment.name})
            await self._fail(assignment, JobFailure(error.code, str(error)))

    async def _fail(self, assignment: Assignment, failure: JobFailure) -> None:
        now = dt.datetime.now(dt.UTC)
        await self._deliver(
            assignment, "failed", lambda job: reports.failed(job, assignment, failure, now), insist=True
        )

    async def _deliver(self, assignment: Assignment, outcome: str, build: Build, *, insist: bool = False) -> None:
        delivery = await self._reporter.deliver(assignment, build, insist=insist)
        if delivery is Delivery.FENCED:
            self.abandon(assignment)
            return
        self._assignments.remove(assignment)
        self._metrics.jobs.labels(outcome).inc()
        logger.info("job %s", outcome, extra={"job": assignment.name, "seconds": round(assignment.inference, 3)})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.defect = error
        self._wake_runner()

    def count_buffered(self, change: int) -> None:
        """Add to the bytes that are held in memory.

        Args:
            change: Bytes; negative when some were released.
        """
        self.buffered += change
        self._metrics.buffered.set(self.buffered)
        self._wake_runner()


class _BufferedBytes:
    """Counts the bytes of one image while they are held in memory."""

    def __init__(self, finisher: Finisher, size: int) -> None:
        self._finisher = finisher
        self._size = 0
        self.resize(size)

    def resize(self, size: int) -> None:
        self._finisher.count_buffered(size - self._size)
        self._size = size

    def __enter__(self) -> _BufferedBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)
