"""An engine whose denoiser is called by several ranks together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.worker.engine import BadModelError, Engine, EngineInfo, ImagePlan, ImageRequest, Monitor
from kubediffusion.worker.engine.adapters import AdapterRefusedError, AdapterWeights
from kubediffusion.worker.execution.parallel.follower import (
    Join,
    join_group,
    parallelism_of,
    share_threads,
)
from kubediffusion.worker.execution.parallel.mirror import CalledFunctions, MirroredCalls
from kubediffusion.worker.execution.parallel.modes import (
    FIELD,
    check_mode,
    compile_denoiser,
    denoiser_of,
    share,
    shared_functions,
)
from kubediffusion.worker.execution.parallel.processes import RankProcesses, RankSettings
from kubediffusion.worker.execution.parallel.start import start_rank
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.families.registry import Unsupported
from kubediffusion.worker.optional_libraries import hidden_libraries
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel


class Ranks:
    """The other ranks, from the start of their processes until they have joined.

    Args:
        settings: The worker's.
        device: Rank 0's.
        end: Ends this process with a reason, where the engine's thread waits for a rank that is lost.
        follow: What the other processes run.

    Raises:
        BadModelError: There are fewer GPUs than ranks.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        end: Callable[[str], object],
        follow: Callable[[int, Connection, RankSettings], None] = start_rank,
    ) -> None:
        self._settings = settings
        self._device = device
        self._parallelism = parallelism_of(settings)
        size = self._parallelism.size
        if device.type == "cuda" and (found := torch.cuda.device_count()) < size:
            raise BadModelError(
                f"{FIELD}.size: {size} GPUs are to share the model, and the worker sees {found}; ask for {size} in "
                "spec.workers.resources, or set another size"
            )
        self._meeting = Path(tempfile.mkdtemp(prefix="ranks-")) / "meeting"
        self.processes = RankProcesses(
            follow,
            RankSettings(settings, device.type, self._meeting, frozenset(hidden_libraries())),
            size,
            timeout=settings.stuck_seconds,
            end=end,
        )

    def load(self, model: Future[LocalModel]) -> Future[LocalModel]:
        """Have the other ranks load a model as soon as it is fetched, and return its future."""
        self._loading: Future[int] = Future()

        def fetched(future: Future[LocalModel]) -> None:
            try:
                self._loading.set_result(self.processes.send(future.result(), asked=True, bounded=False))
            except Exception as error:  # noqa: BLE001 - raised to whoever waits for the load
                self._loading.set_exception(error)

        model.add_done_callback(fetched)
        return model

    def share(
        self,
        engine: Engine,
        pipeline: Any,
        family: ModelFamily | Unsupported,
        *,
        compiled: bool,
        graphed: bool,
        fused: bool,
    ) -> ParallelEngine:
        """Have the ranks share the denoiser of an engine, and return the engine that they are.

        Args:
            engine: Rank 0's, which makes all of an image but the calls of its denoiser.
            pipeline: Its pipeline.
            family: Its family.
            compiled: Whether the denoiser is compiled.
            graphed: Whether calls are captured as graphs.
            fused: Whether the modules are in the form in which a device is fastest.

        Raises:
            BadModelError: Another rank cannot load it, and a restart would not change that.
            EngineLostError: A rank is lost.
            RuntimeError: Another rank could not load it now.
        """
        share_threads(self._settings, self._device)
        self._heed(self._loading.result())
        number = self.processes.send(Join(compiled, graphed, fused), asked=True)
        with self.processes:
            join_group(self._settings, 0, self._device, self._meeting)
            functions = shared_functions(pipeline, family, self._parallelism, 0, self._device)
            if compiled:
                compile_denoiser(denoiser_of(pipeline))
            self._heed(number)
        calls = MirroredCalls(self.processes, CalledFunctions(functions, self._device, graphed=graphed))
        share(pipeline, family, self._parallelism, functions, calls.call)
        return ParallelEngine(engine, self.processes)

    def check(self, pipeline: Any, family: ModelFamily | Unsupported) -> None:
        """Check that a model can be shared as it asks: see :func:`check_mode`."""
        check_mode(pipeline, family, self._parallelism)

    def close(self) -> None:
        """End the other ranks."""
        _end_ranks(self.processes)

    def _heed(self, number: int) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(self.processes.answers(number), 1) if error]
        if failed:
            raise RuntimeError("; ".join(failed))


def _end_ranks(processes: RankProcesses) -> None:
    processes.close()
    if dist.is_initialized():
        dist.destroy_process_group()


class ParallelEngine:
    """An engine whose denoiser is called by several ranks: see :class:`kubediffusion.worker.engine.Engine`.

    Args:
        engine: Rank 0's.
        ranks: The other ranks.

    Attributes:
        engine: Rank 0's.
        ranks: The other ranks.
    """

    def __init__(self, engine: Engine, ranks: RankProcesses) -> None:
        self.engine = engine
        self.ranks = ranks

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        return self.engine.info

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return how an image runs: see :meth:`kubediffusion.worker.engine.Engine.plan`."""
        return self.engine.plan(request)

    def read_adapter(self, _file: Path) -> AdapterWeights:
        """Refuse an adapter: the other ranks know of none."""
        raise AdapterRefusedError(
            AdapterReason.NOT_SUPPORTED,
            f"the model is shared among GPUs ({FIELD}), where it takes no adapters; use one without parallelism",
        )

    def prepare_while_idle(self, wake: Callable[[], None]) -> bool:
        """Let the engine prepare what it can, and notice ranks that are lost while there is nothing to do.

        Raises:
            EngineLostError: A rank is lost.
        """
        self.ranks.when_lost(wake)
        self.ranks.check()
        return self.engine.prepare_while_idle(wake)

    def run(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Make the images of one batch: see :meth:`kubediffusion.worker.engine.Engine.run`."""
        self.ranks.check()
        with self.ranks:
            self.engine.run(requests, monitor)
        self.ranks.check()

    def close(self) -> None:
        """End the other ranks; images can be made no more."""
        _end_ranks(self.ranks)
