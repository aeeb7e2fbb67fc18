"""An API with a model behind it, in a namespace of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubediffusion.local.testing import Namespace

# Tests are no packages, and conformance uses the same kit.
sys.path.insert(0, str(Path(__file__).parent))

from api_kit import Api, Stage, apis

StartApi = Callable[..., Api]


@pytest.fixture
def stage(namespace: Namespace, tmp_path: Path) -> Iterator[Stage]:
    """Whoever plays operator and worker; there is one model, and it is the default."""
    namespace.install()
    played = Stage(namespace, tmp_path)
    played.model()
    yield played
    played.close()


@pytest.fixture
def start_api(namespace: Namespace, stage: Stage, tmp_path: Path) -> Iterator[StartApi]:
    """Starts an API; keyword arguments are settings."""
    with apis(namespace, tmp_path) as start:
        yield start


@pytest.fixture
def api(start_api: StartApi) -> Api:
    """An API with the default settings."""
    return start_api()
