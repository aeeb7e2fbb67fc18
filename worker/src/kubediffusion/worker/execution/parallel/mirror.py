"""Calls of a function on all ranks at once, with the tensors of rank 0.

A call is known by the shapes of its tensors and by all else that it is given. What is new is told to the other ranks
whole, and they say how it went; after that a number is all that is sent. On a CUDA device a call is a graph from its
second time on, the tensors' way between the ranks included, so that the host's part of it is one message.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from kubediffusion.worker.execution import graphs
from kubediffusion.worker.execution.accelerator import repeatable
from kubediffusion.worker.execution.parallel.processes import RankProcesses

logger = logging.getLogger(__name__)

KEPT = 16
"""Calls that are kept, each with its tensors and its graph; when there are more, all are dropped and made anew."""

Function = Callable[..., Any]
"""Returns tensors, in any structure, the same on every rank."""


@dataclass(frozen=True)
class GivenTensor:
    """Where a call has a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Signature:
    """All of a call but the values of its tensors; it can be pickled.

    Attributes:
        name: The function.
        given: Positional and keyword arguments, with :class:`GivenTensor` in the place of each tensor.
        plain: Whether it is computed as written, by kernels that give the same bits each time.
    """

    name: str
    given: tuple[tuple[Any, ...], dict[str, Any]]
    plain: bool


@dataclass(frozen=True)
class Call:
    """What rank 0 tells the others of a call.

    Attributes:
        key: The number of its signature.
        signature: The signature where it is new; else None.
        afresh: Whether all earlier ones are forgotten first.
    """

    key: int
    signature: Signature | None = None
    afresh: bool = False


class _PreparedCall:
    """A call of one signature on one rank.

    Args:
        function: What is called.
        signature: The signature.
        device: The rank's.
        graphed: Whether it is captured as a graph.
        pool: Memory of the graphs.
    """

    def __init__(
        self, function: Function, signature: Signature, device: torch.device, *, graphed: bool, pool: Any
    ) -> None:
        self._function = function
        self._device = device
        self._plain = signature.plain
        self._graphed, self._pool = graphed and not signature.plain, pool
        self._graph: Any = None
        self._result: Any = None
        self.tensors: list[torch.Tensor] = []
        self._args, self._kwargs = pytree.tree_map(self._placed, signature.given)

    def _placed(self, leaf: Any) -> Any:
        if not isinstance(leaf, GivenTensor):
            return leaf
        tensor = torch.empty(leaf.shape, dtype=leaf.dtype, device=self._device)
        self.tensors.append(tensor)
        return tensor

    def run(self) -> Any:
        """Call the function with the tensors as rank 0 has them, and return its result."""
        if not self._graphed:
            with repeatable(self._device) if self._plain else contextlib.nullcontext():
                return self._compute()
        if self._graph is None:
            self._result = pytree.tree_map(torch.empty_like, self._compute())
            self._graph = graphs.capture(self._compute, self._store, self._pool)
        self._graph.replay()
        # The next one overwrites it.
        return pytree.tree_map(torch.clone, self._result)

    def _compute(self) -> Any:
        for tensor in self.tensors:
            dist.broadcast(tensor, 0)
        return self._function(*self._args, **self._kwargs)

    def _store(self, computed: Any) -> None:
        for kept, made in zip(pytree.tree_leaves(self._result), pytree.tree_leaves(computed), strict=True):
            kept.copy_(made)


class CalledFunctions:
    """The functions of one rank, and the calls that are prepared there.

    Args:
        functions: By name.
        device: The rank's.
        graphed: Whether calls are captured as graphs.
    """

    def __init__(self, functions: Mapping[str, Function], device: torch.device, *, graphed: bool) -> None:
        self._functions = functions
        self._device = device
        self._graphed = graphed
        self._pool = torch.cuda.graph_pool_handle() if graphed else None
        self._prepared: dict[int, _PreparedCall] = {}

    def prepared(self, call: Call) -> _PreparedCall:
        """Return what makes a call, prepared where its signature is new."""
        if call.afresh:
            self._prepared.clear()
            if self._graphed:
                self._pool = torch.cuda.graph_pool_handle()
                torch.cuda.empty_cache()
        if call.signature is not None:
            function = self._functions[call.signature.name]
            self._prepared[call.key] = _PreparedCall(
                function, call.signature, self._device, graphed=self._graphed, pool=self._pool
            )
        return self._prepared[call.key]

    def forget(self, key: int) -> None:
        """Forget a signature: its first call failed."""
        self._prepared.pop(key, None)

    def finish(self) -> None:
        """Wait until the device has done what it was told."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class MirroredCalls:
    """Rank 0's calls, which the other ranks make too.

    Args:
        ranks: The other ranks.
        called: The functions of rank 0.
    """

    def __init__(self, ranks: RankProcesses, called: CalledFunctions) -> None:
        self._ranks = ranks
        self._called = called
        # Texts, as not all that a call is given can be hashed.
        self._keys: dict[str, int] = {}
        self._last = 0

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function on all ranks, and return what it gives on this one.

        Raises:
            EngineLostError: A rank is lost, or failed where others did not.
            Exception: What the function raised on every rank.
        """
        plain = torch.backends.cudnn.deterministic
        signature = Signature(name, pytree.tree_map(_described, (args, kwargs)), plain)
        with self._ranks, torch.inference_mode():
            result = self._known(signature, [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf)])
        # What was made in inference mode cannot be changed outside of it.
        return result if torch.is_inference_mode_enabled() else pytree.tree_map(torch.clone, result)

    def _known(self, signature: Signature, tensors: list[torch.Tensor]) -> Any:
        text = repr(signature)
        if (key := self._keys.get(text)) is None:
            return self._first(text, signature, tensors)
        call = Call(key)
        self._ranks.send(call)
        try:
            return self._run(call, tensors)
        except Exception as error:
            raise self._ranks.lose(f"rank 0 failed: {type(error).__name__}: {error}") from error

    def _first(self, text: str, signature: Signature, tensors: list[torch.Tensor]) -> Any:
        """Make the first call of a signature: what it lacks in memory, or refuses, shows now, and on every rank."""
        afresh = len(self._keys) >= KEPT
        if afresh:
            self._keys.clear()
        self._last += 1
        call = Call(self._last, signature, afresh)
        number = self._ranks.send(call, asked=True)
        result, raised = None, None
        try:
            result = self._run(call, tensors)
            self._called.finish()
        except Exception as error:  # noqa: BLE001 - judged by what the others say
            raised = error
        errors = self._ranks.answers(number)
        if raised is None and not any(errors):
            self._keys[text] = call.key
            return result
        self._called.forget(call.key)
        if raised is not None and all(errors):
            raise raised
        told = [raised and f"{type(raised).__name__}: {raised}", *errors]
        failed = "; ".join(f"rank {rank}: {error}" for rank, error in enumerate(told) if error)
        raise self._ranks.lose(f"not all ranks could make a call ({failed})")

    def _run(self, call: Call, tensors: list[torch.Tensor]) -> Any:
        prepared = self._called.prepared(call)
        for kept, tensor in zip(prepared.tensors, tensors, strict=True):
            kept.copy_(tensor)
        return prepared.run()


def _described(leaf: Any) -> Any:
    return GivenTensor(tuple(leaf.shape), leaf.dtype) if _is_tensor(leaf) else leaf


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)
