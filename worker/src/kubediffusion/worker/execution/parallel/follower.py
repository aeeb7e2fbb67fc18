"""What runs in the process of another rank: it loads the model, and makes the calls that rank 0 makes."""

from __future__ import annotations

import datetime as dt
import logging
import os
import signal
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.runtime import logs
from kubediffusion.resources.worker_settings import Parallelism
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.execution.accelerator import prepare
from kubediffusion.worker.execution.dtypes import dtype_for
from kubediffusion.worker.execution.parallel.mirror import Call, CalledFunctions
from kubediffusion.worker.execution.parallel.modes import compile_denoiser, denoiser_of, shared_functions
from kubediffusion.worker.execution.parallel.processes import Answer, RankSettings, receive
from kubediffusion.worker.families.registry import family_of
from kubediffusion.worker.loading.weights import load_pipeline
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Join:
    """Has a rank prepare its part and join the others.

    Attributes:
        compiled: Whether the denoiser is compiled.
        graphed: Whether calls are captured as graphs.
        fused: Whether the modules are brought into the form in which a device is fastest.
    """

    compiled: bool
    graphed: bool
    fused: bool


def parallelism_of(settings: Settings) -> Parallelism:
    """Return how a model is shared; it is a model that is."""
    if settings.spec.workers.shared is None:
        raise RuntimeError("the model is not shared among ranks")
    return settings.spec.workers.shared


def join_group(settings: Settings, rank: int, device: torch.device, meeting: Path) -> None:
    """Join the other ranks; returns when all are there.

    They are on one host and meet by a file: no port is opened to others. Gloo carries tensors on the CPU, NCCL those of
    CUDA devices.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    size = parallelism_of(settings).size
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(str(meeting), size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=dt.timedelta(seconds=settings.stuck_seconds),
    )


def follow(rank: int, pipe: Connection, given: RankSettings, kind: type[Follower] | None = None) -> None:
    """Run another rank until rank 0 is gone.

    Args:
        rank: Its number.
        pipe: From rank 0.
        given: What it is started with.
        kind: What loads the model and makes calls.
    """
    # What has begun is finished by rank 0, which is told to stop.
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    settings = given.settings
    logs.configure_logging(settings.log_level, settings.secrets)
    device = torch.device("cpu")
    if given.device == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    follower = (kind or Follower)(rank, given, device)
    try:
        while True:
            number, message = receive(pipe)
            pipe.send(follower.answer(number, message))
    except (EOFError, OSError):
        # Rank 0 is gone.
        os._exit(0)


class Follower:
    """Another rank.

    Args:
        rank: Its number.
        given: What it is started with.
        device: Where it computes.

    Attributes:
        device: Where it computes.
        pipeline: The model, once it is loaded.
    """

    def __init__(self, rank: int, given: RankSettings, device: torch.device) -> None:
        self._rank = rank
        self._given = given
        self.device = device
        self.pipeline: Any = None
        self._called: CalledFunctions | None = None

    def answer(self, number: int, message: Any) -> Answer:
        """Do what a message says, and return what is answered."""
        try:
            if isinstance(message, LocalModel):
                self.load(message)
            elif isinstance(message, Join):
                self._join(message)
            else:
                self._call(message)
        except Exception as error:  # noqa: BLE001 - rank 0 judges
            logger.warning("a rank failed", extra={"rank": self._rank, "error": type(error).__name__})
            said = str(error) if isinstance(error, BadModelError) else f"{type(error).__name__}: {error}"
            return Answer(number, Redactor(self._given.settings.secrets).redact(said), isinstance(error, BadModelError))
        return Answer(number)

    def load(self, model: LocalModel) -> None:
        """Load the model to this rank's device."""
        settings = self._given.settings

        def choose_dtype(index: dict[str, Any], stored: torch.dtype | None) -> torch.dtype:
            return dtype_for(settings.spec.torch_dtype, index, self.device, stored)

        fetched: Future[LocalModel] = Future()
        fetched.set_result(model)
        self.pipeline, _ = load_pipeline(settings, self.device, choose_dtype, prefetched=fetched)
        share_threads(settings, self.device)

    def _join(self, join: Join) -> None:
        settings, pipeline = self._given.settings, self.pipeline
        family = family_of(pipeline)
        if join.fused:
            prepare(pipeline)
        denoiser = denoiser_of(pipeline)
        for part in pipeline.components.values():
            # Rank 0 alone encodes and decodes.
            if isinstance(part, torch.nn.Module) and part is not denoiser:
                _let_go(part)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        join_group(settings, self._rank, self.device, self._given.meeting)
        functions = shared_functions(pipeline, family, parallelism_of(settings), self._rank, self.device)
        if join.compiled:
            compile_denoiser(denoiser)
        self._called = CalledFunctions(functions, self.device, graphed=join.graphed)

    def _call(self, call: Call) -> None:
        if self._called is None:
            raise RuntimeError("a call comes before the ranks have met")
        with torch.inference_mode():
            try:
                self._called.prepared(call).run()
                self._called.finish()
            except Exception:
                self._called.forget(call.key)
                raise


def _let_go(part: torch.nn.Module) -> None:
    """Free the memory of a component that is not used."""
    try:
        part.to("meta")
    except (ValueError, NotImplementedError):
        # Weights in few bits of some kinds cannot be moved; they stay.
        logger.info("%s stays in memory", type(part).__name__)


def share_threads(settings: Settings, device: torch.device) -> None:
    """Leave each rank its part of the processors, where they are what computes."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // parallelism_of(settings).size))
