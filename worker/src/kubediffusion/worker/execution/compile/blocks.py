"""Compiles a step block by block: a transformer's blocks are alike, so that two or three functions serve them all.

FLUX.1 has 57 blocks of two kinds. The step as a whole is one program of all of them, which takes minutes to compile,
for each batch size anew; its two kinds of blocks take seconds. What lies between the blocks runs as it is written: a
few small kernels, which a CUDA graph launches with the rest. It is the way of ``compile_repeated_blocks`` of diffusers,
with two differences: what is compiled can be kept for the next worker, and the model itself stays as it is, so that
images that must repeat, and other threads, run it uncompiled meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn

from kubediffusion.worker.engine import described
from kubediffusion.worker.execution.compile.functions import Function, described_argument
from kubediffusion.worker.execution.faults import is_out_of_memory
from kubediffusion.worker.execution.twins import shallow_copy, twin_with

logger = logging.getLogger(__name__)

CompileFor = Callable[[Function, tuple[Any, ...], str], Function]
"""Returns a function compiled for arguments, or loaded where an earlier worker compiled it; the last argument says what
tells it apart beside them.

Raises:
    Exception: It cannot be compiled.
"""

Call = tuple[str, str]
"""What a compiled block is for: how the block is built, and what it is called with."""

_PLACES = frozenset({"layer_id", "layer_idx", "layer_index", "layer_number", "block_id", "block_idx"})
"""Attributes that say which of its like a block is, and by which it computes nothing."""

_PLAIN = (bool, int, float, str, tuple, torch.dtype, Enum, type(None))
"""Types of attributes that a module computes by, and that can be written down."""


class BlockError(Exception):
    """No block of a step can be compiled."""


def compiled_by_blocks(function: Function, given: tuple[Any, ...], compile_for: CompileFor) -> Function:
    """Compile the blocks that a step calls, and return the step with them in the place of the model's own.

    One uncompiled step shows what each block is called with. Blocks that are built alike and called alike share what is
    compiled. One that cannot be compiled runs as it is written.

    Args:
        function: A step: its first argument is a :class:`.ModelFamily`.
        given: Arguments of the shapes that it is compiled for.
        compile_for: Compiles, or loads.

    Raises:
        BlockError: None can be compiled.
        HookedModuleError: Weights come from main memory.
        torch.OutOfMemoryError: There is no memory to try the step.
    """
    family, *rest = given
    blocks = repeated_blocks(family.denoiser)
    built = {name: structure_of(block) for name, block in blocks.items()}
    examples: dict[Call, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}

    def note_call(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Function | None:
        examples.setdefault((built[name], call_of(arguments, options)), (blocks[name], arguments, options))
        return None

    noting = {name: _dispatching(block, partial(note_call, name)) for name, block in blocks.items()}
    function(_with_blocks(family, noting), *rest)

    compiled: dict[Call, Function] = {}
    for call, (block, arguments, options) in examples.items():
        try:
            compiled[call] = compile_for(call_block, (block, arguments, options), call[0])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            logger.warning("a block stays uncompiled", extra={"block": type(block).__name__, **described(error)})
    examples.clear()
    if not compiled:
        raise BlockError(f"none of the {len(blocks)} blocks of {type(family.denoiser).__name__} can be compiled")

    def find(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Function | None:
        return compiled.get((built[name], call_of(arguments, options)))

    finding = {name: _dispatching(block, partial(find, name)) for name, block in blocks.items()}
    twin = _with_blocks(family, finding)
    return lambda _family, *more: function(twin, *more)


def repeated_blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return the members of a model's outermost lists of modules, by name: a transformer's blocks."""
    found: dict[str, nn.Module] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found |= {f"{name}.{number}": block for number, block in enumerate(module)}
    return found


def structure_of(block: nn.Module) -> str:
    """Describe all that a block computes by, but for the values of its weights."""
    parts: list[Any] = []
    for name, module in block.named_modules():
        parts.append((name, type(module).__qualname__, _settings(module)))
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        parts.append((name, type(tensor).__qualname__, described_argument(tensor)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def call_of(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    """Describe what a block is called with: shapes of tensors, and what is no tensor as it is."""
    return repr((described_argument(arguments), described_argument(dict(options))))


def call_block(block: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a block: what is compiled for one of a kind, and serves all of them."""
    return block(*arguments, **options)


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return a module's plain attributes, and those of the plain objects that it has, such as attention processors."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name not in _PLACES}
    settings: list[tuple[str, Any]] = []
    for name, value in sorted(own.items()):
        if isinstance(value, _PLAIN):
            settings.append((name, repr(value)))
        elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | torch.Tensor):
            plain = {key: repr(part) for key, part in sorted(vars(value).items()) if isinstance(part, _PLAIN)}
            settings.append((name, (type(value).__qualname__, plain)))
    return settings


_Find = Callable[[tuple[Any, ...], dict[str, Any]], Function | None]


def _dispatching(block: nn.Module, find: _Find) -> nn.Module:
    """Return a twin of a block that has each call computed by what is found for it, else by the block itself."""

    def forward(*arguments: Any, **options: Any) -> Any:
        function = find(arguments, options)
        return block(*arguments, **options) if function is None else function(block, arguments, options)

    twin: nn.Module = shallow_copy(block)
    twin.__dict__["forward"] = forward
    return twin


def _with_blocks(family: Any, blocks: Mapping[str, nn.Module]) -> Any:
    return family.with_denoiser(twin_with(family.denoiser, blocks), " in blocks")
