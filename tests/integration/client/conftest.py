"""An API, and somebody who draws what it is asked for."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from integration.api.api_kit import Api, Site, Stage, png, serving
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.errors import LocalError
from kubediffusion.local.testing import Namespace

UNDRAWN = "nobody draws this"
"""A job whose prompt begins so waits for ever."""
REFUSED = "the model refuses this"
"""One whose prompt begins so fails."""


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let processes that are started hear Ctrl-C, also where the shell has started the tests in the background.

    A shell has such commands ignore it, and a process inherits what its parent ignores.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def client_site(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    namespace = Namespace(cluster, "client")
    namespace.create()
    with serving(namespace, tmp_path_factory.mktemp("client")) as site:
        yield site
    namespace.delete()


@pytest.fixture(scope="session")
def client_stage(client_site: Site) -> Stage:
    return client_site.stage


@pytest.fixture(scope="session")
def api(client_site: Site) -> Iterator[Api]:
    """An API whose jobs are drawn at once, but for those that say otherwise."""
    api: Api = client_site.start(RATE_LIMIT="")
    ended = threading.Event()
    artist = threading.Thread(target=_draw, args=(api, client_site.stage, ended))
    artist.start()
    yield api
    ended.set()
    artist.join()


def _draw(api: Api, stage: Stage, ended: threading.Event) -> None:
    while not ended.wait(0.05):
        # It goes on while other folders' tests run, and some of those restart the API server.
        with contextlib.suppress(httpx.HTTPError, LocalError):
            _draw_pending(api, stage)


def _draw_pending(api: Api, stage: Stage) -> None:
    for job in api.http.get("/v1/jobs", params={"phase": "Pending", "limit": 500}).json().get("jobs", ()):
        name, prompt = job["name"], job["prompt"]
        spec = stage.job(name)["spec"]
        if spec.get("cancel"):
            stage.cancelled(name)
        elif prompt.startswith(REFUSED):
            stage.bind(name)
            stage.run(name)
            stage.fail(name, "InvalidJob", "the sampler cannot do this; take another")
        elif not prompt.startswith(UNDRAWN):
            drawn = [png("red", 16 + 8 * index) for index in range(spec.get("numImages", 1))]
            stage.complete(name, *drawn, warnings=("the prompt was cut",) if prompt == "long" else ())
