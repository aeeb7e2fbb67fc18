"""The worker's process: reads the settings, loads the model, and joins the parts. Nothing happens on import."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import uvloop
from prometheus_client import REGISTRY, CollectorRegistry

from kubediffusion.resources.client import KubernetesClient
from kubediffusion.resources.errors import BAD_MODEL_EXIT_CODE
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.runtime import garbage, logs
from kubediffusion.resources.runtime.probes import serve_probes
from kubediffusion.resources.runtime.settings import read
from kubediffusion.resources.storage import ImageStorage
from kubediffusion.resources.transitions import TERMINAL
from kubediffusion.resources.watching import Reflector
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.engine import BadModelError, Engine
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.parts import UPLOADS, Parts, joined
from kubediffusion.worker.progress import Progress
from kubediffusion.worker.reporter import Reporter
from kubediffusion.worker.runner import Limits, Runner
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.start_report import StartReport
from kubediffusion.worker.starting import load_pipeline
from kubediffusion.worker.termination import scrubbed, write_reason

logger = logging.getLogger(__name__)

LoadEngine = Callable[[Settings, Progress], Engine]
"""Loads the model, and tells where that stands; called in the engine's thread, so it may take its time."""


def main() -> None:
    """Run the worker until it is told to stop; the console script ``kubediffusion-worker``."""
    # Not 78 as elsewhere: that says of the model that it cannot be loaded, and its jobs would fail.
    settings = read(Settings, exit_code=1)
    logs.configure(settings.log_level, settings.secrets)
    logging.captureWarnings(True)
    code = uvloop.run(serve(settings, load_pipeline))
    logging.shutdown()
    sys.stderr.flush()
    # Not sys.exit: a model that is still loading, in its thread, would be waited for.
    os._exit(code)


async def serve(settings: Settings, load: LoadEngine, registry: CollectorRegistry = REGISTRY) -> int:
    """Run a worker, and give the process's exit code.

    Args:
        settings: Every knob.
        load: Loads the engine.
        registry: Where metrics are registered.

    Returns:
        0 after it was told to stop; 78 when the model cannot be loaded for good; 1 for anything that may pass.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health, metrics = Health(settings.stuck_seconds), Metrics(registry)
    engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    try:
        async with serve_probes(settings.bind_address, settings.port, live=health.live, ready=health.ready) as port:
            logger.info("worker starts", extra={"model": settings.model_name, "port": port})
            client = await KubernetesClient.connect(f"kubediffusion-worker/{settings.pod_name}")
            async with client, _told(client, settings) as start:
                engine = await _load(settings, load, engine_thread, health, metrics, start, stop)
                if engine is None:
                    return 0
                await _work(settings, client, engine, engine_thread, health, metrics, start, stop)
    except BadModelError as error:
        reason = scrubbed(str(error), settings)
        logger.error("the model cannot be loaded: %s", reason)  # noqa: TRY400 - the message is the whole story
        write_reason(settings.termination_log, reason)
        return BAD_MODEL_EXIT_CODE
    except Exception as error:
        logger.exception("the worker fails")
        write_reason(settings.termination_log, scrubbed(_reason(error), settings))
        return 1
    else:
        logger.info("worker ends")
        return 0
    finally:
        engine_thread.shutdown(wait=False, cancel_futures=True)


@contextlib.asynccontextmanager
async def _told(client: KubernetesClient, settings: Settings) -> AsyncIterator[StartReport]:
    """Show how far the start has come, beside all else."""
    start = StartReport(client, settings.pod_namespace, settings.pod_name)
    telling = asyncio.create_task(start.run())
    try:
        yield start
    finally:
        telling.cancel()


async def _load(
    settings: Settings,
    load: LoadEngine,
    thread: ThreadPoolExecutor,
    health: Health,
    metrics: Metrics,
    start: StartReport,
    stop: asyncio.Event,
) -> Engine | None:
    """Load the model; None when the worker is told to stop meanwhile."""
    health.waits_for("loading the model")
    began = time.monotonic()
    loading = asyncio.get_running_loop().run_in_executor(thread, load, settings, start.tell)
    if not await _first(loading, stop):
        loading.add_done_callback(lambda future: future.cancelled() or future.exception())
        return None
    engine = loading.result()
    seconds = time.monotonic() - began
    metrics.load.set(seconds)
    logger.info("model loaded", extra={"seconds": round(seconds, 3), "revision": engine.info.revision})
    return engine


async def _work(
    settings: Settings,
    client: KubernetesClient,
    engine: Engine,
    engine_thread: ThreadPoolExecutor,
    health: Health,
    metrics: Metrics,
    start: StartReport,
    stop: asyncio.Event,
) -> None:
    """Run the jobs that are bound to this worker until told to stop."""
    health.waits_for("waiting for the API server")
    work = asyncio.Event()
    assignments = Assignments(settings.pod_name)
    with joined(
        engine=engine,
        engine_thread=engine_thread,
        assignments=assignments,
        reporter=Reporter(client, settings.pod_namespace),
        storage=ImageStorage(settings.bucket, UPLOADS),
        prefix=settings.prefix,
        limits=Limits(settings.spec.workers.max_batch_size, settings.upload_buffer_mib * 2**20),
        health=health,
        metrics=metrics,
        work=work,
    ) as parts:

        def on_change(job: GenerationJob, gone: bool) -> None:
            dropped = assignments.observe(job, gone)
            if dropped is not None:
                logger.info("job taken away", extra={"job": dropped.name, "attempt": dropped.binding.attempt})
                parts.finisher.forget(dropped)
            work.set()

        watch = Reflector(
            client.generation_jobs,
            settings.pod_namespace,
            on_change,
            field_selector=_selector(settings.pod_name),
        )
        await _run(watch, parts, health, start, stop)


async def _run(
    watch: Reflector[GenerationJob], parts: Parts, health: Health, start: StartReport, stop: asyncio.Event
) -> None:
    """Run the parts until the runner has ended; a part that breaks ends the worker."""
    async with asyncio.TaskGroup() as tasks:
        background = [
            tasks.create_task(watch.run()),
            tasks.create_task(parts.announcer.run()),
            tasks.create_task(_ready(watch, health, start)),
            tasks.create_task(_stop(parts.runner, health, stop)),
        ]
        try:
            await parts.runner.run()
        finally:
            for task in background:
                task.cancel()


async def _ready(watch: Reflector[GenerationJob], health: Health, start: StartReport) -> None:
    await watch.synced.wait()
    garbage.settle()
    health.waits_for(None)
    start.ready()
    logger.info("worker ready")


async def _stop(runner: Runner, health: Health, stop: asyncio.Event) -> None:
    await stop.wait()
    logger.info("worker stops: what has begun is finished")
    health.waits_for("stopping")
    runner.stop()


def _reason(error: BaseException) -> str:
    """Say what went wrong: of a group of parts that ended together, the first that broke."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _selector(pod: str) -> str:
    """Give the field selector of the jobs that this worker has."""
    return ",".join([f"status.worker={pod}", *(f"status.phase!={phase}" for phase in sorted(TERMINAL, key=Phase))])


async def _first(future: asyncio.Future[Engine], stop: asyncio.Event) -> bool:
    """Wait for a future or the signal to stop, and tell whether the future is done."""
    stopped = asyncio.create_task(stop.wait())
    future.add_done_callback(lambda _: stopped.cancel())
    await asyncio.wait([stopped])
    return future.done()
