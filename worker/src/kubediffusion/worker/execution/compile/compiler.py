"""Compiles in the background."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.compile_cache import CompiledCodeCache
from kubediffusion.worker.engine import described
from kubediffusion.worker.execution.compile.blocks import compiled_by_blocks
from kubediffusion.worker.execution.compile.functions import Function, compiled_for, from_bytes, name_of, to_bytes
from kubediffusion.worker.execution.faults import is_out_of_memory
from kubediffusion.worker.stages import OnStage, ignore_stage

logger = logging.getLogger(__name__)

_SWITCH_SECONDS = 0.0005
"""For which the compiler's thread may keep Python's lock from the engine's. A step gives the lock up some twenty times;
with Python's own 5 ms a batch that runs meanwhile would be many times slower."""

_USUAL_SWITCH_SECONDS = sys.getswitchinterval()

Arguments = Callable[[], tuple[Any, ...]]
"""Makes arguments of one shape; called in the compiler's thread."""


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

    What an earlier worker compiled is loaded instead, in seconds. All but that work itself is for the engine's thread.

    Args:
        cache: Has what earlier workers compiled, and keeps it for the next; None for neither.
        backend: PyTorch's name of what compiles.
        on_stage: Called with how much is compiled of what was asked for before :meth:`begin`.
    """

    def __init__(
        self, cache: CompiledCodeCache | None, backend: Any = "inductor", on_stage: OnStage = ignore_stage
    ) -> None:
        self._cache = cache
        self._backend = backend
        self._on_stage = on_stage
        self._begun = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        # A batch that is no longer in use must not be kept by what was compiled for it.
        self._jobs: WeakKeyDictionary[Any, dict[Hashable, Future[Function | None]]] = WeakKeyDictionary()
        self._latest: Future[Function | None] | None = None
        self._planned: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()
        self._count = _Count()
        self._stream: Any = None

    def begin(self) -> None:
        """Compile from now on. Until then everything is prepared that cannot be while something is compiled."""
        if self._begun:
            return
        self._begun = True
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

    def wait(self) -> None:
        """Wait until what was asked for is compiled and put into the cache."""
        # One thread does one thing after the other: first it compiles, then it keeps what it compiled.
        for _ in range(2):
            self._thread.submit(int).result()

    def refused(self, owner: Any, key: Hashable) -> bool:
        """Return whether a function could not be compiled for a key."""
        job = self._jobs.get(owner, {}).get(key)
        return job is not None and job.done() and job.result() is None

    def ready(
        self, owner: Any, key: Hashable, function: Function, arguments: Arguments, *, by_blocks: bool = False
    ) -> Function | None:
        """Return a compiled function; None while there is none. The first call that finds the compiler idle starts it.

        Args:
            owner: What it is compiled for; not kept.
            key: Which of the owner's shapes.
            function: The function.
            arguments: Makes arguments of that shape, in the compiler's thread.
            by_blocks: Whether only the blocks of the model that it runs are compiled: see :mod:`.blocks`.
        """
        jobs = self._jobs.setdefault(owner, {})
        if not self._begun:
            self._planned.setdefault(owner, set()).add(key)
        if key not in jobs:
            if self._begun and not self.busy:
                counted = not self._count.complete
                if counted:
                    self._tell(begins=True)
                jobs[key] = self._latest = self._thread.submit(self._compile, function, arguments, by_blocks)
                if counted:
                    jobs[key].add_done_callback(partial(self._done, planned=key in self._planned.get(owner, ())))
            return None
        return jobs[key].result() if jobs[key].done() else None

    def _done(self, _job: Future[Function | None], *, planned: bool) -> None:
        self._tell(newly_done=int(planned))

    def _tell(self, newly_done: int = 0, *, begins: bool = False) -> None:
        """Report how far compiling has come. Two threads call it; the lock keeps their reports in order."""
        with self._count.lock:
            self._count.done += newly_done
            done, planned = self._count.done, self._count.planned
            if self._count.complete:
                self._on_stage(EngineReason.READY, "all that was prepared is compiled")
            elif begins or self.busy:
                self._on_stage(EngineReason.COMPILING, f"{done} of {planned} compiled; the rest runs uncompiled so far")
            else:
                self._on_stage(EngineReason.READY, f"{done} of {planned} compiled; the rest follows")

    def _compile(self, function: Function, arguments: Arguments, by_blocks: bool) -> Function | None:
        try:
            with torch.inference_mode(), _switching(), self._own_stream():
                given = arguments()
                if by_blocks:
                    return compiled_by_blocks(function, given, self._compiled_for)
                return self._compiled_for(function, given)
        except Exception as error:  # noqa: BLE001 - what cannot be compiled runs uncompiled
            logger.warning("something stays uncompiled", extra={"function": function.__name__, **described(error)})
            return None

    def _compiled_for(self, function: Function, given: tuple[Any, ...], kind: str = "") -> Function:
        """Return a function compiled for arguments, or loaded where an earlier worker compiled it; it has run once.

        Raises:
            Exception: It cannot be compiled.
        """
        name = f"{name_of(function, given, kind)}.zip"
        if (loaded := self._loaded(name, given)) is not None:
            return loaded
        began = time.monotonic()
        compiled = compiled_for(function, given, self._backend)
        compiled(*given)
        logger.info("compiled", extra={"entry": name, "seconds": round(time.monotonic() - began, 3)})
        # As a job of its own: what was just compiled need not wait for it.
        self._thread.submit(self._keep, name, compiled)
        return compiled

    def _loaded(self, name: str, given: tuple[Any, ...]) -> Function | None:
        """Return a function that an earlier worker compiled, once it has run here; None where none does."""
        kept = [] if self._cache is None else self._cache.get(name)
        if not kept:
            return None
        began = time.monotonic()
        try:
            function = from_bytes(kept[0])
            function(*given)
        except Exception as error:
            if is_out_of_memory(error):
                # Nor is there any to compile it.
                raise
            logger.warning("what was compiled before cannot be used", extra={"entry": name, **described(error)})
            return None
        logger.info("loaded", extra={"entry": name, "seconds": round(time.monotonic() - began, 3)})
        return function

    def _keep(self, name: str, compiled: Function) -> None:
        if self._cache is None:
            return
        try:
            with _switching():
                data = to_bytes(compiled)
        except Exception as error:  # noqa: BLE001 - the next worker compiles it anew
            logger.warning("what was compiled cannot be kept", extra={"entry": name, **described(error)})
            return
        self._cache.put(name, [data])

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Compute in the stream of this thread, to its end; on the CPU there is none."""
        if not torch.cuda.is_available():
            yield
            return
        if self._stream is None:
            # One for all: libraries keep a workspace for each stream that ever used them.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()
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
