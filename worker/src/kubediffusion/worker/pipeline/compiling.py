"""Compiles in the background."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.engine import described
from kubediffusion.worker.pipeline.artifacts import Artifacts
from kubediffusion.worker.progress import Progress, untold

logger = logging.getLogger(__name__)

_VARIANTS = 64
"""Batch sizes, frames and dtypes for which one function may be compiled; PyTorch's limit is 8."""

_SWITCH_SECONDS = 0.0005
"""For which the compiler's thread may keep Python's lock from the engine's. A step gives the lock up some twenty times;
with Python's own 5 ms a batch that runs meanwhile would be many times slower."""

_USUAL_SWITCH_SECONDS = sys.getswitchinterval()

Function = Callable[..., Any]


@dataclass
class _Count:
    """How much there is to compile, and how much of it is done, compiled or refused."""

    planned: int = 0
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def complete(self) -> bool:
        return self.done >= self.planned


class Compiler:
    """Compiles functions for the shapes that are in use, one after the other, in a thread of its own.

    All but the compiling itself is for the engine's thread.

    Args:
        artifacts: Has what earlier workers compiled, and keeps it for the next; None for neither.
        backend: PyTorch's name of what compiles.
        progress: Told how much is compiled of what was asked for before :meth:`begin`.
    """

    def __init__(self, artifacts: Artifacts | None, backend: str = "inductor", progress: Progress = untold) -> None:
        torch._dynamo.config.recompile_limit = _VARIANTS  # noqa: SLF001 - its documented place
        self._artifacts = artifacts
        self._backend = backend
        self._progress = progress
        self._begun = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._functions: dict[Function, Function] = {}
        # A batch that is no longer in use must not be kept by what was compiled for it.
        self._jobs: WeakKeyDictionary[Any, dict[Hashable, Future[bool]]] = WeakKeyDictionary()
        self._latest: Future[bool] | None = None
        self._planned: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()
        self._count = _Count()

    def begin(self) -> None:
        """Compile from now on. Until then everything is prepared that cannot be while something is compiled."""
        if self._begun:
            return
        self._begun = True
        if self._artifacts is not None:
            # Here and in this thread, where no first image waits for it.
            self._thread.submit(self._load, self._artifacts)
        self._count.planned = sum(map(len, self._planned.values()))
        self._tell()

    @property
    def busy(self) -> bool:
        """Whether something is being compiled. While it is, no graph may be captured."""
        return self._latest is not None and not self._latest.done()

    def when_free(self, call: Callable[[], None]) -> None:
        """Call when what is being compiled is done, in another thread; at once when there is nothing."""
        if self._latest is None:
            call()
        else:
            self._latest.add_done_callback(lambda _: call())

    def refused(self, owner: Any, key: Hashable) -> bool:
        """Tell whether something cannot be compiled."""
        job = self._jobs.get(owner, {}).get(key)
        return job is not None and job.done() and not job.result()

    def ready(
        self, owner: Any, key: Hashable, function: Function, arguments: Callable[[], tuple[Any, ...]]
    ) -> Function | None:
        """Give a compiled function, or None while there is none; the first call that finds nobody busy makes it.

        Args:
            owner: What it is compiled for; not kept.
            key: Which of the owner's shapes.
            function: The function.
            arguments: Makes arguments of that shape, in the compiler's thread.
        """
        jobs = self._jobs.setdefault(owner, {})
        if not self._begun:
            self._planned.setdefault(owner, set()).add(key)
        if key not in jobs:
            if self._begun and not self.busy:
                if function not in self._functions:
                    self._functions[function] = torch.compile(
                        function, fullgraph=True, dynamic=False, backend=self._backend
                    )
                counted = not self._count.complete
                if counted:
                    self._tell(begins=True)
                jobs[key] = self._latest = self._thread.submit(self._compile, self._functions[function], arguments)
                if counted:
                    jobs[key].add_done_callback(partial(self._done, planned=key in self._planned.get(owner, ())))
            return None
        return self._functions[function] if jobs[key].done() and jobs[key].result() else None

    def _done(self, _job: Future[bool], *, planned: bool) -> None:
        self._tell(newly_done=int(planned))

    def _tell(self, newly_done: int = 0, *, begins: bool = False) -> None:
        """Tell how far it has come; from two threads, and whoever is last tells what is true last."""
        with self._count.lock:
            self._count.done += newly_done
            done, planned = self._count.done, self._count.planned
            if self._count.complete:
                self._progress(EngineReason.READY, "all that was prepared is compiled")
            elif begins or self.busy:
                self._progress(EngineReason.COMPILING, f"{done} of {planned} compiled; the rest runs uncompiled so far")
            else:
                self._progress(EngineReason.READY, f"{done} of {planned} compiled; the rest follows")

    def _compile(self, function: Function, arguments: Callable[[], tuple[Any, ...]]) -> bool:
        try:
            with torch.inference_mode(), _switching(), _own_stream():
                function(*arguments())
        except Exception as error:  # noqa: BLE001 - what cannot be compiled runs uncompiled
            logger.warning("something stays uncompiled", extra=described(error))
            return False
        logger.info("compiled")
        if self._artifacts is not None:
            # As a job of its own: what was just compiled need not wait for it.
            self._thread.submit(self._artifacts.save)
        return True

    @staticmethod
    def _load(artifacts: Artifacts) -> None:
        with _switching():
            artifacts.load()


@contextlib.contextmanager
def _own_stream() -> Iterator[None]:
    """Compute in a stream of its own, to its end; on the CPU there is none."""
    if not torch.cuda.is_available():
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        yield
        torch.cuda.current_stream().synchronize()
    # What was computed in it left memory that is kept for it.
    torch.cuda.empty_cache()


@contextlib.contextmanager
def _switching() -> Iterator[None]:
    """Have Python's threads take turns more often."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(_USUAL_SWITCH_SECONDS)
