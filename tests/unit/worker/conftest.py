"""Puts the builders of this folder on the path, as tests are no packages, and makes pipelines for all of its tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kubediffusion.worker import testing
from kubediffusion.worker.execution import graphs
from kubediffusion.worker.execution.continuous import ContinuousEngine
from unit.worker.continuous_engines import load
from unit.worker.graph_captures import Captures


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the folder of its tiny pipeline, made once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = getattr(testing, f"save_{family}")(tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder


@pytest.fixture
def touched() -> Iterator[list[str]]:
    """Every path that is opened and every address that is looked up meanwhile."""
    seen: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in {"open", "socket.connect", "socket.getaddrinfo"}:
            seen.append(str(arguments))

    # A hook cannot be taken away again.
    sys.addaudithook(hook)
    yield seen
    watching = False


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    """In the place of CUDA graphs, which the machine of these tests has no device for."""
    made = Captures()
    monkeypatch.setattr(graphs, "capture", made)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return made


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """As the engine computes: code is compiled for tensors that know of none."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny(folders: Callable[[str], Path]) -> ContinuousEngine:
    """An engine with four slots, of a tiny Stable Diffusion."""
    return load(folders("stable_diffusion"))
