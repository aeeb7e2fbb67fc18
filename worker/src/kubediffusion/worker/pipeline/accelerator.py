"""What is done differently on a CUDA device: graphs, compilation, streams. On the CPU each has a plain counterpart.

Nothing here waits for the device, except :class:`Pace`, which keeps the host one step ahead of it.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kubediffusion.worker.engine import described
from kubediffusion.worker.pipeline.batch import Batch, Row, denoise

logger = logging.getLogger(__name__)

_LARGE_BATCH = 16
"""From this size on cuDNN's attention is faster than flash attention."""

_VARIANTS = 64
"""Batch sizes, frames and dtypes for which one function may be compiled; PyTorch's limit is 8."""


def prepare(pipeline: Any) -> None:
    """Bring a pipeline's modules into the form in which a CUDA device is fastest; on the CPU leave them."""
    if pipeline.device.type != "cuda":
        return
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)
        module.fuse_qkv_projections()


def reserved_memory(device: torch.device) -> int | None:
    """Give the bytes of the device's memory that this process holds; None on the CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have every call choose the same kernels: no benchmark, and only those that give the same bits each time."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True), _attention(1):
        yield


class Beside:
    """Runs what feeds a batch in a stream of its own: its copies from the host then wait for no step.

    Args:
        device: What computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def run(self, make: Callable[[], Row]) -> Row:
        """Make a row; what is launched after this on the current stream finds it made."""
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            row = make()
        main = torch.cuda.current_stream()
        main.wait_stream(self._stream)
        for tensor in (row.history, *row.conditions.values()):
            tensor.record_stream(main)
        return row


class Pace:
    """Keeps the host from running far ahead of the device, so that what it decides between two steps is not stale.

    Args:
        device: What computes. The CPU has always finished when a call returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: Any = None

    def step(self) -> None:
        """Note that a step has been launched, and wait for the one before it: the device stays busy."""
        if not self._cuda:
            return
        launched = torch.cuda.Event()  # type: ignore[no-untyped-call]
        launched.record()
        if self._last is not None:
            self._last.synchronize()
        self._last = launched


class Steps(Protocol):
    """Makes a batch's steps."""

    def run(self, size: int) -> bool:
        """Launch one step of the first ``size`` slots, and tell whether it runs compiled."""

    def forget(self, size: int) -> None:
        """Free what was prepared for sizes from this one on: it does not fit the device's memory."""


class EagerSteps:
    """Makes steps as they are written.

    Args:
        batch: The batch.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def run(self, size: int) -> bool:
        """Make a step: see :meth:`Steps.run`."""
        history, control, conditions = self._batch.views(size)
        history.copy_(denoise(self._batch.unet, history, control, conditions))
        return False

    def forget(self, size: int) -> None:
        """Free nothing: nothing is prepared."""


class GraphedSteps:
    """Makes steps from a CUDA graph for each batch size, first of the plain step, then of the compiled one.

    Args:
        batch: The batch.
        compiler: Compiles in the background; None to stay with the plain step.
    """

    def __init__(self, batch: Batch, compiler: Compiler | None) -> None:
        self._batch = batch
        self._compiler = compiler
        self._graphs: dict[int, Any] = {}
        self._compiled: dict[int, bool] = {}
        # Sizes whose compiled step could not be captured.
        self._refused: set[int] = set()
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, size: int) -> bool:
        """Launch a step: see :meth:`Steps.run`."""
        if size not in self._graphs:
            self._capture(size, denoise, compiled=False)
        if not self._compiled[size] and self._compiler is not None and size not in self._refused:
            # Looked up between two steps: a graph is captured by the thread that launches everything.
            step = self._compiler.ready(self._batch, size)
            if step is not None:
                try:
                    self._capture(size, step, compiled=True)
                except Exception as error:  # noqa: BLE001 - the plain step's graph is there and serves
                    logger.warning("a compiled step cannot be captured", extra={"size": size, **described(error)})
                    self._refused.add(size)
        self._graphs[size].replay()
        return self._compiled[size]

    def forget(self, size: int) -> None:
        """Drop the graphs of sizes from this one on: see :meth:`Steps.forget`."""
        for prepared in [prepared for prepared in self._graphs if prepared >= size]:
            del self._graphs[prepared]
        torch.cuda.empty_cache()

    def _capture(self, size: int, step: Callable[..., torch.Tensor], *, compiled: bool) -> None:
        history, control, conditions = self._batch.views(size)

        def compute() -> torch.Tensor:
            with _attention(size):
                return step(self._batch.unet, history, control, conditions)

        self._graphs[size] = capture(compute, lambda output: history.copy_(output), self._pool)
        self._compiled[size] = compiled


def capture(compute: Callable[[], torch.Tensor], store: Callable[[torch.Tensor], object], pool: Any) -> Any:
    """Capture a computation as a CUDA graph, and give the graph.

    Args:
        compute: Reads memory that stays where it is.
        store: Puts what was computed where it is to be found; not called before the capture itself.
        pool: Memory that graphs share which never run at the same time.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # The first calls choose kernels and allocate workspaces, which a capture may not.
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads compile meanwhile; what they allocate is not part of it.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        store(compute())
    return graph


# PyTorch keeps this choice for the whole process, so only the thread that launches everything makes it: another one
# would change kernels in the middle of an image whose pixels must repeat.
def _attention(size: int) -> contextlib.AbstractContextManager[None]:
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    first = [cudnn, flash] if size >= _LARGE_BATCH else [flash, cudnn]
    context: contextlib.AbstractContextManager[None] = sdpa_kernel(
        [*first, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True
    )
    return context


class Compiler:
    """Compiles the step for the batch sizes that are in use, one after the other, in a thread of its own.

    Args:
        cache: File that keeps what was compiled, for the next worker; None for none.
    """

    def __init__(self, cache: Path | None) -> None:
        torch._dynamo.config.recompile_limit = _VARIANTS  # noqa: SLF001 - its documented place
        self._step = torch.compile(denoise, fullgraph=True, dynamic=False)
        self._cache = cache
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        # A batch that is no longer in use must not be kept by what was compiled for it.
        self._jobs: WeakKeyDictionary[Batch, dict[int, Future[bool]]] = WeakKeyDictionary()
        if cache is not None:
            load_compiled(cache)

    def ready(self, batch: Batch, size: int) -> Callable[..., torch.Tensor] | None:
        """Give the compiled step for a size, or None while there is none; the first call begins to make it."""
        jobs = self._jobs.setdefault(batch, {})
        job = jobs.get(size)
        if job is None:
            job = jobs[size] = self._thread.submit(self._compile, batch, size)
        return self._step if job.done() and job.result() else None

    def _compile(self, batch: Batch, size: int) -> bool:
        try:
            history, control, conditions = batch.views(size)
            with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                # On copies: the running batch writes into its own.
                copies = {name: condition.clone() for name, condition in conditions.items()}
                self._step(batch.unet, history.clone(), control.clone(), copies)
                torch.cuda.current_stream().synchronize()
        except Exception as error:  # noqa: BLE001 - what cannot be compiled runs uncompiled
            logger.warning("a batch size stays uncompiled", extra={"size": size, **described(error)})
            return False
        logger.info("batch size compiled", extra={"size": size})
        if self._cache is not None:
            save_compiled(self._cache)
        return True


def compile_cache(folder: Path, revision: str, device: str, versions: dict[str, str]) -> Path:
    """Give the file that keeps what was compiled: one for each model revision, kind of device and set of versions."""
    parts = [revision, device, *(f"{name}-{version}" for name, version in sorted(versions.items()))]
    name = "_".join("".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in part) for part in parts)
    return folder / "compiled" / f"{name}.bin"


def load_compiled(file: Path) -> None:
    """Give PyTorch what an earlier worker compiled, if there is any; what it cannot use it says in the log."""
    try:
        torch.compiler.load_cache_artifacts(file.read_bytes())
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("the compile cache cannot be read: %s", error)


def save_compiled(file: Path) -> None:
    """Keep what PyTorch compiled in this process; a reader never sees half of it."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: workers may share the folder.
        part = file.with_suffix(f".{uuid.uuid4()}.part")
        part.write_bytes(artifacts[0])
        part.replace(file)
    except OSError as error:
        logger.warning("the compile cache cannot be written: %s", error)
