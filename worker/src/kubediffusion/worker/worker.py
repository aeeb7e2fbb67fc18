"""The worker around its engine: what carries an image from its job to storage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.worker.adapters import AdapterLoader
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.cpus import usable_cpus
from kubediffusion.worker.finisher import Finisher
from kubediffusion.worker.inputs import InputFetcher
from kubediffusion.worker.previews import Previews
from kubediffusion.worker.progress_reporter import ProgressReporter
from kubediffusion.worker.runner import Runner
from kubediffusion.worker.uploads import Uploader

logger = logging.getLogger(__name__)

UPLOADS = 16
"""Uploads that may be under way at the same time."""

INPUT_THREADS = 2
"""Input images that are read and decoded at the same time: each may take some 200 MiB meanwhile."""

ADAPTER_THREADS = 2
"""Adapters that are fetched and read at the same time."""

PREVIEW_UPLOADS = 2
"""Previews that may be under way at the same time, beside the images."""


class Worker:
    """Runs the jobs that it observes, until it is told to stop.

    Args:
        context: What its parts share.
        uploads: Threads that upload.
        encoders: Threads that encode.
        previews: Threads that encode and upload previews.
        inputs: Threads that read and decode input images.
        adapters: Threads that fetch and read adapters.
    """

    def __init__(
        self,
        context: WorkerContext,
        uploads: Executor,
        encoders: Executor,
        previews: Executor,
        inputs: Executor,
        adapters: Executor,
    ) -> None:
        self._context = context
        self._previews = Previews(context.storage, context.prefix, previews)
        self._progress = ProgressReporter(context.assignments, context.reporter, self._on_fenced)
        uploader = Uploader(context.storage, uploads, context.refused_seconds)
        self._finisher = Finisher(context, self._progress, self._previews, uploader, encoders)
        self._inputs = InputFetcher(context, self._finisher.finish_image, self._progress, inputs)
        self._adapters: AdapterLoader | None = None
        if context.adapters is not None:
            finish = self._finisher.finish_image
            self._adapters = AdapterLoader(context, context.adapters, finish, self._progress, adapters)
        self._runner = Runner(context, self._finisher, self._progress, self._previews)

    @classmethod
    @contextlib.contextmanager
    def open(cls, context: WorkerContext) -> Iterator[Worker]:
        """Make a worker with threads of its own; they end, and storage is closed, when the block is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(context.storage.close)
            uploads = stack.enter_context(ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload"))
            encoders = stack.enter_context(ThreadPoolExecutor(usable_cpus(), thread_name_prefix="encode"))
            previews = ThreadPoolExecutor(PREVIEW_UPLOADS, thread_name_prefix="preview")
            # Nothing that hangs there may hold up the end.
            inputs = ThreadPoolExecutor(INPUT_THREADS, thread_name_prefix="inputs")
            adapters = ThreadPoolExecutor(ADAPTER_THREADS, thread_name_prefix="adapters")
            for threads in (previews, inputs, adapters):
                stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            yield cls(context, uploads, encoders, previews, inputs, adapters)

    def observe(self, job: GenerationJob, gone: bool) -> None:
        """Take in one event of the watch.

        Args:
            job: The job as it is now.
            gone: The job is deleted, or no longer bound to this worker.
        """
        dropped = self._context.assignments.observe(job, gone)
        if dropped is not None:
            logger.info("job taken away", extra={"job": dropped.name, "attempt": dropped.binding.attempt})
            self._finisher.release(dropped)
        if (assignment := self._context.assignments.get(job.uid)) is not None:
            self._previews.observe(assignment)
            self._inputs.observe(assignment)
            if self._adapters is not None:
                self._adapters.observe(assignment)
            elif assignment.awaits_adapters and not assignment.finishing:
                refusal = JobFailure(ErrorCode.INVALID_ADAPTER, "adapters: this worker loads none")
                self._finisher.finish_image(assignment, 0, refusal)
        self._context.work_available.set()

    async def run(self) -> None:
        """Run jobs until :meth:`stop` is called, then finish what has begun.

        Raises:
            EngineLostError: Only a new process can go on. What was made before is stored and reported first.
        """
        async with asyncio.TaskGroup() as tasks:
            announcing = tasks.create_task(self._progress.run())
            try:
                await self._runner.run()
            finally:
                announcing.cancel()
                await self._previews.drain()

    def stop(self) -> None:
        """Start nothing new; what has begun is finished."""
        self._runner.stop()

    def _on_fenced(self, assignment: Assignment) -> None:
        self._finisher.abandon(assignment)
