"""A namespace that is served, with operator and worker played by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.api.api_kit import Site, serving
from integration.secrets.planted import Part
from kubediffusion.local.testing import Namespace


@pytest.fixture
def site(namespace: Namespace, tmp_path: Path) -> Iterator[Site]:
    """A namespace with a model."""
    with serving(namespace, tmp_path) as own:
        yield own


@pytest.fixture
def start(namespace: Namespace, tmp_path: Path) -> Iterator[Callable[..., Part]]:
    """Starts a part; keyword arguments are variables of its environment."""
    started: list[Part] = []

    def launch(name: str, **environment: str) -> Part:
        started.append(Part(name, namespace, tmp_path, environment))
        return started[-1]

    yield launch
    for part in started:
        part.close()
