"""Starts the engine in the order that takes least time: what needs no Python lock runs beside the imports.

PyTorch, transformers and diffusers take seconds to import, on one processor and under Python's lock. Meanwhile the
model is fetched and its content hashed, which reads its files into memory too, and the device is opened.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TypeVar

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.runtime import garbage
from kubediffusion.worker.early_fetch import fetch_configurations, fetch_from_s3_or_disk, needs_hub
from kubediffusion.worker.engine import Engine
from kubediffusion.worker.optional_libraries import OPTIONAL, hide_libraries, needed_libraries
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import check_folder, local_folder
from kubediffusion.worker.stages import OnStage
from kubediffusion.worker.termination import redact, write_termination_message

logger = logging.getLogger(__name__)

T = TypeVar("T")


def start_engine(settings: Settings, on_stage: OnStage) -> Engine:
    """Load the model that the settings name, and return its engine.

    Blocks for the seconds that the imports take and for as long as the model takes to load.

    Args:
        settings: What to load, and how.
        on_stage: Called with each stage of the start.

    Raises:
        BadModelError: The model cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    folder = local_folder(settings.spec.source, settings.model_path)
    if folder is not None and settings.spec.source.single_file is None:
        # What may not be loaded is refused at once.
        check_folder(folder, settings.spec)
    model = None if needs_hub(settings) else run_in_thread(lambda: fetch_from_s3_or_disk(settings), "model")
    with TemporaryDirectory() as scratch:
        configurations = fetch_configurations(settings, Path(scratch))
        hide_libraries(OPTIONAL - needed_libraries(settings.spec, folder, configurations))
    on_stage(EngineReason.IMPORTING, "PyTorch and diffusers are imported")
    # Late: torch takes seconds, in which the probes answer.
    with garbage.collection_paused():
        from kubediffusion.worker.loading.device import open_device

        opened = run_in_thread(open_device, "device")
        from kubediffusion.worker.execution.build import load_engine
    # Nobody else may use the device while a graph is captured.
    opened.result()
    return load_engine(settings, on_stage, model, partial(end_process, settings))


def end_process(settings: Settings, reason: str) -> None:
    """End the process at once as one whose engine is lost, from any thread: the engine's does not come back.

    Args:
        settings: The worker's.
        reason: Why, which becomes the container's termination message.
    """
    text = redact(f"EngineLostError: {reason}", settings)
    logger.critical("the process ends, as its engine hangs: %s", text)
    write_termination_message(settings.termination_log, text)
    os._exit(1)


def run_in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Call a function in a daemon thread of its own: one that hangs does not keep the process from ending.

    Args:
        work: The function.
        name: Name of the thread.

    Returns:
        A future with the function's result or exception.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised to whoever asks for the result
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future
