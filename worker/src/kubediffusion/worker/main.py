"""The worker's process: reads the settings, loads the model, and runs the jobs. Nothing happens on import."""

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import REGISTRY, CollectorRegistry

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError, KubernetesError
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.failures import BAD_MODEL_EXIT_CODE, REFUSED_MODEL_EXIT_CODE
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.lora_adapter import AdapterSource
from kubediffusion.resources.objects import ObjectMeta
from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.runtime import garbage, logs
from kubediffusion.resources.runtime.probes import serve_probes
from kubediffusion.resources.runtime.settings import read_settings
from kubediffusion.resources.storage import ImageStorage
from kubediffusion.resources.transitions import TERMINAL
from kubediffusion.worker.adapter_report import AdaptersReport
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.contact import ApiServerContact
from kubediffusion.worker.context import AdapterSettings, WorkerContext
from kubediffusion.worker.engine import BadModelError, Engine, EngineInfo
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.reporter import Reporter
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import ModelRefusedError
from kubediffusion.worker.stages import OnStage
from kubediffusion.worker.start_report import StartReport
from kubediffusion.worker.starting import start_engine
from kubediffusion.worker.termination import redact, write_termination_message
from kubediffusion.worker.worker import UPLOADS, Worker

logger = logging.getLogger(__name__)

RIGHTS_SECONDS = 5.0
"""Seconds until a worker that may not read its jobs ends, and says so."""

LoadEngine = Callable[[Settings, OnStage], Engine]
"""Loads the model and returns its engine, reporting its stages; called in the engine's thread, where it may block."""


def main() -> None:
    """Run the worker until it is told to stop; the console script ``kubediffusion-worker``."""
    # Not 78 as elsewhere: that says of the model that it cannot be loaded, and its jobs would fail.
    settings = read_settings(Settings, exit_code=1)
    logs.configure_logging(settings.log_level, settings.secrets)
    logging.captureWarnings(True)
    code = uvloop.run(serve(settings, start_engine))
    logging.shutdown()
    sys.stderr.flush()
    # Not sys.exit: a model that is still loading, in its thread, would be waited for.
    os._exit(code)


@dataclass(frozen=True)
class _Process:
    """What lasts as long as the process does."""

    settings: Settings
    health: Health
    metrics: Metrics
    engine_thread: ThreadPoolExecutor
    stop: asyncio.Event


async def serve(settings: Settings, load: LoadEngine, registry: CollectorRegistry = REGISTRY) -> int:
    """Run a worker, and return the process's exit code.

    Args:
        settings: The worker's settings.
        load: Loads the engine.
        registry: Where metrics are registered.

    Returns:
        0 after it was told to stop; 78 when the model cannot be loaded for good; 69 when a service refuses it; 1 for
        anything else, among it rights that are missing.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health, metrics = Health(settings.stuck_seconds), Metrics(registry)
    engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    process = _Process(settings, health, metrics, engine_thread, stop)
    try:
        async with serve_probes(
            settings.bind_address, settings.port, live=health.liveness_failure, ready=health.readiness_failure
        ) as port:
            logger.info("worker starts", extra={"model": settings.model_name, "port": port})
            client = await KubernetesClient.connect(f"kubediffusion-worker/{settings.pod_name}")
            async with client, _start_report(client, settings) as report:
                await _check_rights(client, settings)
                engine = await _load(process, load, report)
                if engine is None:
                    return 0
                if engine.info.facts is not None:
                    report.set_pipeline(engine.info.facts)
                await _work(process, client, engine, report)
    except BadModelError as error:
        reason = redact(str(error), settings)
        logger.error("the model cannot be loaded: %s", reason)  # noqa: TRY400 - the message is the whole story
        write_termination_message(settings.termination_log, reason)
        return REFUSED_MODEL_EXIT_CODE if isinstance(error, ModelRefusedError) else BAD_MODEL_EXIT_CODE
    except Exception as error:
        logger.exception("the worker fails")
        write_termination_message(settings.termination_log, redact(_reason(error), settings))
        return 1
    else:
        logger.info("worker ends")
        return 0
    finally:
        engine_thread.shutdown(wait=False, cancel_futures=True)


async def _check_rights(client: KubernetesClient, settings: Settings) -> None:
    """Ask whether the worker may read its jobs: else it would load its model, and wait for that without a word.

    Raises:
        ForbiddenError: It may not. Rights that are made beside its Pod have some seconds to come.
    """
    deadline, backoff = time.monotonic() + RIGHTS_SECONDS, Backoff(0.1, 1.0)
    while True:
        try:
            # It has none yet.
            await client.generation_jobs.list(settings.pod_namespace, field_selector=_field_selector(settings.pod_name))
        except ForbiddenError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(backoff.next_pause())
        except KubernetesError as error:
            # That the API server is away is waited out beside the load.
            logger.warning("cannot ask whether the jobs may be read: %s", error)
            return
        else:
            return


@contextlib.asynccontextmanager
async def _start_report(client: KubernetesClient, settings: Settings) -> AsyncIterator[StartReport]:
    """Write how far the start has come to the Pod's status, beside all else."""
    report = StartReport(client, settings.pod_namespace, settings.pod_name)
    writing = asyncio.create_task(report.run())
    try:
        yield report
    finally:
        writing.cancel()


async def _load(process: _Process, load: LoadEngine, report: StartReport) -> Engine | None:
    """Load the model; None when the worker is told to stop meanwhile."""
    process.health.mark_unready("loading the model")
    began = time.monotonic()
    loading = asyncio.get_running_loop().run_in_executor(
        process.engine_thread, load, process.settings, report.set_stage
    )
    if not await _done_before(loading, process.stop):
        # Nobody asks for its outcome any more; an error must not be logged as one that was never retrieved.
        loading.add_done_callback(lambda future: future.cancelled() or future.exception())
        return None
    engine = loading.result()
    seconds = time.monotonic() - began
    process.metrics.load.set(seconds)
    logger.info("model loaded", extra={"seconds": round(seconds, 3), "revision": engine.info.revision})
    return engine


async def _work(process: _Process, client: KubernetesClient, engine: Engine, report: StartReport) -> None:
    """Run the jobs that are bound to this worker until told to stop; a part that breaks ends the worker."""
    settings, health = process.settings, process.health
    health.mark_unready("waiting for the API server")
    redactor = Redactor(settings.secrets)
    adapters_report = AdaptersReport(client, settings.pod_namespace, settings.pod_name, redactor)
    context = WorkerContext(
        engine=engine,
        engine_thread=process.engine_thread,
        assignments=Assignments(settings.pod_name, _model(settings, engine.info)),
        reporter=Reporter(client, settings.pod_namespace, settings.refused_seconds, settings.secrets),
        storage=ImageStorage(settings.bucket, UPLOADS),
        prefix=settings.prefix,
        refused_seconds=settings.refused_seconds,
        max_batch_size=settings.spec.workers.max_batch_size,
        max_buffered_bytes=settings.upload_buffer_mib * 2**20,
        health=health,
        metrics=process.metrics,
        work_available=asyncio.Event(),
        adapters=AdapterSettings(
            model=settings.model_name,
            find=partial(client.lora_adapters.get, settings.pod_namespace),
            fetch=partial(_fetch_adapter, settings),
            capacity=settings.adapter_cache_mib * 2**20,
            reported=adapters_report.set,
        ),
    )
    with Worker.open(context) as worker:
        selector = _field_selector(settings.pod_name)
        watch = Reflector(client.generation_jobs, settings.pod_namespace, worker.observe, field_selector=selector)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(ApiServerContact(client, watch, health).run()),
                tasks.create_task(_ready(watch, health, report)),
                tasks.create_task(adapters_report.run()),
                tasks.create_task(_stop(worker, health, process.stop)),
            ]
            try:
                await worker.run()
            finally:
                for task in background:
                    task.cancel()


def _fetch_adapter(settings: Settings, source: AdapterSource) -> Path:
    # Late: it imports PyTorch, which the engine's thread imports while the model is fetched.
    from kubediffusion.worker.loading.adapter_files import fetch_adapter

    return fetch_adapter(source, settings)


def _model(settings: Settings, engine: EngineInfo) -> DiffusionModel:
    """Return the model that this worker holds, with what it knows of the pipeline."""
    model = DiffusionModel(metadata=ObjectMeta(name=settings.model_name), spec=settings.spec)
    return model.with_pipeline(engine.facts)


async def _ready(watch: Reflector[GenerationJob], health: Health, report: StartReport) -> None:
    await watch.synced.wait()
    garbage.freeze_startup_objects()
    health.mark_ready()
    report.set_ready()
    logger.info("worker ready")


async def _stop(worker: Worker, health: Health, stop: asyncio.Event) -> None:
    await stop.wait()
    logger.info("worker stops: what has begun is finished")
    health.mark_unready("stopping")
    worker.stop()


def _reason(error: BaseException) -> str:
    """Return type and text of an error; of a group, of the first that was raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _field_selector(pod: str) -> str:
    """Return the field selector of the unfinished jobs that are bound to a worker."""
    return ",".join([f"status.worker={pod}", *(f"status.phase!={phase}" for phase in sorted(TERMINAL, key=Phase))])


async def _done_before(future: asyncio.Future[Engine], event: asyncio.Event) -> bool:
    """Wait until a future is done or an event is set, and return whether the future is done."""
    waiting = asyncio.create_task(event.wait())
    either: list[asyncio.Future[Any]] = [future, waiting]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return future.done()
