"""CUDA graphs: captures functions and replays them; the steps' own are in :mod:`.stepping`.

Nothing is captured while something is compiled: a compiler synchronizes the device, and that breaks a capture. Until
then a computation runs from the graph that is there, or as it is written.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from kubediffusion.worker.engine import described
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.faults import check_device, is_out_of_memory

logger = logging.getLogger(__name__)

URGENT = -1
"""Priority of a stream whose few small kernels need not wait behind a step's many large ones."""


class GraphedFunction:
    """A function of a module and one tensor as a CUDA graph for each shape of the tensor.

    It always runs in the same stream. Its kernels go before those of a batch's steps.

    Args:
        function: Returns a tensor.
        module: Its first argument.
        compiler: Compiles it in the background; None to stay with the plain function.
        kept: Shapes whose graph is kept; each holds the function's working set for it.
    """

    def __init__(
        self,
        function: Callable[[Any, torch.Tensor], torch.Tensor],
        module: Any,
        *,
        compiler: Compiler | None = None,
        kept: int = 4,
    ) -> None:
        self._function = function
        self._module = module
        self._compiler = compiler
        self._kept = kept
        # Least recently used first.
        self._graphs: OrderedDict[tuple[int, ...], _Graph] = OrderedDict()
        self._refused: set[tuple[int, ...]] = set()

    @property
    def captured(self) -> dict[tuple[int, ...], bool]:
        """The shapes that have a graph, least recently used first, and whether it is of compiled code."""
        return {shape: graph.compiled for shape, graph in self._graphs.items()}

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        """Return the function's value for a tensor on the device."""
        shape = tuple(given.shape)
        if self._compiler is None or not self._compiler.busy:
            self._prepare(shape, given)
        if shape not in self._graphs:
            return self._function(self._module, given)
        self._graphs.move_to_end(shape)
        return self._graphs[shape].replay(given)

    def prepare(self) -> bool:
        """Compile for shapes that were used, as far as can be done now; not while something is compiled.

        Returns:
            Whether all are as fast as they get.
        """
        for shape, graph in list(self._graphs.items()):
            self._prepare(shape, graph.given)
        return self._compiler is None or all(
            graph.compiled or shape in self._refused for shape, graph in self._graphs.items()
        )

    def evict(self) -> bool:
        """Free the memory of all graphs, and return whether there were any. They are captured anew when used."""
        held = bool(self._graphs)
        # A shape that had a graph is captured anew. One that never had any still runs as it is written.
        self._refused.difference_update(self._graphs)
        self._graphs.clear()
        if held:
            torch.cuda.empty_cache()
        return held

    def _prepare(self, shape: tuple[int, ...], given: torch.Tensor) -> None:
        graph = self._graphs.get(shape)
        if shape in self._refused or (graph is not None and graph.compiled):
            return
        if graph is None:
            while len(self._graphs) >= self._kept:
                oldest, _ = self._graphs.popitem(last=False)
                self._refused.discard(oldest)
            self._capture(shape, self._function, given, compiled=False)
        if self._compiler is None or shape in self._refused:
            return
        example = given.clone()
        function = self._compiler.ready(self, shape, self._function, lambda: (self._module, example))
        if function is not None:
            self._capture(shape, function, given, compiled=True)
        elif self._compiler.refused(self, shape):
            self._refused.add(shape)

    def _capture(
        self, shape: tuple[int, ...], function: Callable[..., torch.Tensor], example: torch.Tensor, *, compiled: bool
    ) -> None:
        given = example.clone()
        plain = self._graphs.get(shape)
        # The compiled one takes the plain one's place, and its memory.
        pool = torch.cuda.graph_pool_handle() if plain is None else plain.pool
        try:
            result = torch.empty_like(function(self._module, given))
            graph = capture(lambda: function(self._module, given), result.copy_, pool, priority=URGENT)
        except Exception as error:  # noqa: BLE001 - what was there before serves
            refuse(self._function.__name__, error, example.device, compiled=compiled)
            self._refused.add(shape)
            return
        self._graphs[shape] = _Graph(given, result, graph, pool, compiled)


@dataclass(frozen=True)
class _Graph:
    """A captured function.

    Attributes:
        given: Where the graph reads.
        result: Where it writes.
        graph: The graph.
        pool: Its memory: given back when no graph uses it any more.
        compiled: Whether it is of compiled code.
    """

    given: torch.Tensor
    result: torch.Tensor
    graph: Any
    pool: Any
    compiled: bool

    def replay(self, given: torch.Tensor) -> torch.Tensor:
        self.given.copy_(given)
        self.graph.replay()
        # The next one overwrites it.
        return self.result.clone()


def refuse(what: str, error: Exception, device: torch.device, *, compiled: bool, **more: object) -> None:
    """Log that a capture failed. What was there before serves: the plain graph, or the computation as it is written.

    Args:
        what: What was captured.
        error: What the capture raised.
        device: Where.
        compiled: Whether it was of compiled code. The memory that a plain one lacks is lacking for the computation too.
        more: What else the log says.

    Raises:
        EngineLostError: The device failed.
        Exception: The error itself, where there is no memory for a plain capture.
    """
    if is_out_of_memory(error) and not compiled:
        raise error
    check_device(device, error)
    logger.warning("%s cannot be captured", what, extra={"compiled": compiled, **more, **described(error)})


def capture(compute: Callable[[], Any], store: Callable[[Any], object], pool: Any, *, priority: int = 0) -> Any:
    """Capture a computation as a CUDA graph, and return the graph.

    Args:
        compute: Reads memory that stays where it is.
        store: Puts what was computed where it is to be found; not called before the capture itself.
        pool: Memory that graphs share which never run at the same time.
        priority: Of the kernels, as a stream's.
    """
    side = _capturing_stream(priority)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # The first calls choose kernels and allocate workspaces, which a capture may not.
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    # What these calls held is kept for this stream, and nobody else could use it.
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
        store(compute())
    return graph


@cache
def _capturing_stream(priority: int) -> Any:
    """Return the stream of all captures: libraries keep a workspace for each stream that ever used them."""
    return torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]
