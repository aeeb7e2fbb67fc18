"""The start of a worker, in the order that takes least time: what needs no Python lock runs beside the imports.

PyTorch, transformers and diffusers take seconds to import, on one processor and under Python's lock. Meanwhile the
model is fetched and its content hashed, which reads its files into memory too, and the device is opened.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.runtime import garbage
from kubediffusion.worker import s3models
from kubediffusion.worker.engine import BadModelError, Engine
from kubediffusion.worker.progress import Progress
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel, check_folder, content_revision, local_folder

logger = logging.getLogger(__name__)

T = TypeVar("T")


def load_pipeline(settings: Settings, progress: Progress) -> Engine:
    """Load the diffusers pipeline: see :func:`kubediffusion.worker.pipeline.loading.load_engine`."""
    folder = local_folder(settings.spec.source, settings.model_path)
    if folder is not None:
        # What may not be loaded is refused at once.
        check_folder(folder, settings.spec)
    model = None if settings.spec.source.hugging_face is not None else beside(lambda: bring(settings), "model")
    progress(EngineReason.IMPORTING, "PyTorch and diffusers are imported")
    # Late: torch takes seconds, in which the probes answer.
    with garbage.paused():
        from kubediffusion.worker.pipeline.device import open_device

        opened = beside(open_device, "device")
        from kubediffusion.worker.pipeline.loading import load_engine
    # Nobody else may use the device while a graph is captured.
    opened.result()
    return load_engine(settings, progress, model)


def bring(settings: Settings) -> LocalModel:
    """Bring a model to this machine that does not come from the Hugging Face Hub.

    Raises:
        BadModelError: There is no such model.
        DownloadError: It could not be fetched this time.
    """
    source = settings.spec.source
    if source.s3 is not None:
        fetched = s3models.fetch(source.s3.uri, cache_folder(settings))
        return LocalModel(fetched, content_revision(fetched))
    if (local := local_folder(source, settings.model_path)) is None:
        raise BadModelError("spec.source names no place to load the model from")
    return LocalModel(local, content_revision(local))


def cache_folder(settings: Settings) -> Path:
    """Give the folder for what need not be fetched or made again while this machine has it."""
    return settings.cache_dir or Path(tempfile.gettempdir()) / "kubediffusion-models"


def beside(work: Callable[[], T], name: str) -> Future[T]:
    """Do something in a thread that ends with it; one that hangs keeps no process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future
