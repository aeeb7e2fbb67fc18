"""An object that is nested as deeply as the API server takes them concerns itself alone."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

import aiohttp
import pytest

from kubediffusion.resources.apiserver.watch_stream import decode_events
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.runtime.nesting import DEEPEST, allow_deepest_objects


@pytest.fixture
def deepest_allowed() -> Iterator[None]:
    before = sys.getrecursionlimit()
    allow_deepest_objects()
    yield
    sys.setrecursionlimit(before)


def event_of_deepest_model() -> bytes:
    depth = DEEPEST - 5
    affinity = '{"a":' * depth + "1" + "}" * depth
    metadata = '{"name":"deep","namespace":"a","uid":"1","resourceVersion":"1"}'
    spec = f'{{"source":{{"path":"/models/x"}},"workers":{{"affinity":{affinity}}}}}'
    return f'{{"type":"ADDED","object":{{"metadata":{metadata},"spec":{spec}}}}}\n'.encode()


def test_python_s_own_limit_would_not_do() -> None:
    with pytest.raises(RecursionError):
        json.loads(event_of_deepest_model())


@pytest.mark.usefixtures("deepest_allowed")
async def test_the_deepest_object_is_decoded() -> None:
    content = aiohttp.StreamReader(aiohttp.base_protocol.BaseProtocol(asyncio.get_running_loop()), 2**16)
    content.feed_data(event_of_deepest_model())
    content.feed_eof()
    (event,) = [event async for event in decode_events(content)]
    model = DiffusionModel.from_wire(event["object"])
    assert model.name == "deep"
    assert model == DiffusionModel.from_wire(event["object"])
