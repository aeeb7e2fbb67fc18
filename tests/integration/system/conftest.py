"""One studio for the tests of this folder that leave its models alone; more for those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from integration.system.studio import MODEL, STANDIN, Studio, standin_model, tiny_model
from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace
from kubediffusion.resources.apiserver.client import KubernetesClient


@pytest.fixture(scope="session")
def installed(cluster: LocalCluster, tiny_folder: Path) -> Iterator[Namespace]:
    """A namespace with operator, API, and two models that have a warm worker each."""
    namespace = Namespace(cluster, "studio")
    namespace.create()
    namespace.install(
        installation.operator(namespace.name),
        installation.api(namespace.name),
        tiny_model(tiny_folder),
        standin_model(),
    )
    yield namespace
    namespace.delete()


@pytest.fixture
async def studio(
    request: pytest.FixtureRequest, installed: Namespace, client: KubernetesClient
) -> AsyncIterator[Studio]:
    """The shared studio; its jobs are deleted after each test.

    They ask for the real pipeline, or for the stand-in in a test that is marked so: one that asks nothing of pixels.
    """
    model = STANDIN if request.node.get_closest_marker("standin") else MODEL
    shared = Studio(installed, client, model)
    shared.ready_pods("kubediffusion-operator", 1)
    shared.ready_pods(model, 1)
    yield shared
    await shared.clear()


@pytest.fixture
def open_studio(namespace: Namespace, client: KubernetesClient) -> Iterator[Callable[..., Studio]]:
    """Opens a studio of the test's own: with a model, and settings of the operator."""
    with ExitStack() as stack:

        def open_it(model: dict[str, Any], operator: dict[str, str] | None = None) -> Studio:
            namespace.install(installation.operator(namespace.name, operator), installation.api(namespace.name), model)
            # Nothing runs on that later tests would share the processors with.
            stack.callback(namespace.kubectl, "delete", "deployments,diffusionmodels", "--all")
            opened = Studio(namespace, client)
            opened.ready_pods("kubediffusion-operator", 1)
            return opened

        yield open_it
