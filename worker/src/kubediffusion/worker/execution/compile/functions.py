"""Compiled functions, and how they become bytes that another process calls without tracing or compiling anything.

PyTorch compiles them ahead of time (``aot_compile``), each for the one shape of its arguments. What of the arguments
is a module is taken as it was: whoever loads such bytes has to have the same model and the same code, by the place
that they are kept in.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

Function = Callable[..., Any]

_DIGITS = 16
"""Hexadecimal digits of the digest in a name: enough that no two of one model are alike."""


def compiled_for(function: Function, arguments: tuple[Any, ...], backend: Any = "inductor") -> Function:
    """Compile a function for arguments of exactly these shapes, without running it.

    Args:
        function: What PyTorch can trace as a whole.
        arguments: Tensors, mappings of tensors, and what is no tensor and stays as it is. Weights of a module among
            them are those of the module of each call, which has to be built like the first.
        backend: PyTorch's name of what compiles, or a function that does.

    Returns:
        The compiled function. It raises RuntimeError when its tensors are of another shape.

    Raises:
        Exception: It cannot be compiled.
    """
    # Where it is not on by default yet.
    torch._dynamo.config.enable_aot_compile = True  # noqa: SLF001 - its documented place
    # Modules' own guards cannot be saved, and nothing changes a model that is loaded.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
    wrapped: Any = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)
    compiled: Function = wrapped.aot_compile((arguments, {}))
    return compiled


def to_bytes(compiled: Any) -> bytes:
    """Serialize a function that :func:`compiled_for` made: pickles, sources and machine code, without weights.

    Raises:
        Exception: Its backend makes nothing that can be saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "function")
        compiled.save_compiled_function(str(file))
        return file.read_bytes()


def from_bytes(data: bytes) -> Function:
    """Load a function that :func:`to_bytes` serialized. This runs code of the bytes, so they must be trusted.

    Raises:
        Exception: They are not whole, or not of this version of PyTorch.
    """
    function: Function = torch.compiler.load_compiled_function(io.BytesIO(data))
    return function


def name_of(function: Function, arguments: tuple[Any, ...], kind: str = "") -> str:
    """Name a function compiled for arguments: its own name, and a digest of what they are.

    Args:
        function: The function.
        arguments: Its arguments.
        kind: What tells it apart beside them.
    """
    told = [*([kind] if kind else []), *(described_argument(argument) for argument in arguments)]
    digest = hashlib.sha256(repr(told).encode())
    return f"{function.__name__}-{digest.hexdigest()[:_DIGITS]}"


def described_argument(argument: Any) -> Any:
    """Return what compiled code depends on of an argument; of a module, its class."""
    if isinstance(argument, torch.Tensor):
        return (str(argument.dtype), tuple(argument.shape), argument.stride(), argument.device.type)
    if isinstance(argument, dict):
        return sorted((name, described_argument(part)) for name, part in argument.items())
    if isinstance(argument, list | tuple):
        return [described_argument(part) for part in argument]
    if isinstance(argument, torch.nn.Module):
        return type(argument).__qualname__
    return repr(argument)


@cache
def code_version() -> str:
    """Return a digest of the worker's sources that are compiled: they change between its releases too."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for source in sorted([*folder.rglob("*.py"), *folder.with_name("families").rglob("*.py")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:_DIGITS]
