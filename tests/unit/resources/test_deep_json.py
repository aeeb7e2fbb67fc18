"""JSON that is nested deeper than Python reads is read all the same, but for what lies deepest."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.apiserver import deep_json
from kubediffusion.resources.apiserver.errors import error_from_answer
from kubediffusion.resources.apiserver.watch_stream import decode_events
from kubediffusion.resources.runtime.nesting import DEEPEST

TEXTS = st.text(alphabet='[]{}"\\,:a\u00e9\n', max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


def nested(value: str, depth: int, opening: str = '{"a":', closing: str = "}") -> str:
    return opening * depth + value + closing * depth


def depth_of(value: Any) -> int:
    depth = 0
    while value:
        (value,) = value.values() if isinstance(value, dict) else value
        depth += 1
    return depth


@given(VALUES, VALUES)
def test_what_lies_beside_the_deepest_is_kept(before: Any, after: Any) -> None:
    deep = nested("1", DEEPEST - 1)
    text = f'{{"before":{json.dumps(before)},"deep":{deep},"after":{json.dumps(after)}}}'
    found = deep_json.loads(text.encode())
    assert (found["before"], found["after"]) == (before, after)
    assert depth_of(found["deep"]) == deep_json.DEEPEST - 1


@given(VALUES)
def test_what_python_reads_is_read_as_it_reads_it(value: Any) -> None:
    assert deep_json.loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize("opening", ['{"a":', "[", '[{"a":['])
def test_maps_and_lists_are_cut_alike(opening: str) -> None:
    closing = {"[": "]", '{"a":': "}", '[{"a":[': "]}]"}[opening]
    assert depth_of(deep_json.loads(nested("1", DEEPEST, opening, closing).encode())) == deep_json.DEEPEST


@pytest.mark.parametrize("broken", ["[" * DEEPEST, "[" * DEEPEST + "]" * 9, nested("1", DEEPEST) + "}", '["' * DEEPEST])
def test_what_is_no_json_is_an_error(broken: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        deep_json.loads(broken.encode())


async def test_a_watch_and_an_error_hold_what_is_deep() -> None:
    content = aiohttp.StreamReader(aiohttp.base_protocol.BaseProtocol(asyncio.get_running_loop()), 2**16)
    item = f'{{"metadata":{{"resourceVersion":"7"}},"spec":{nested("1", DEEPEST - 2)}}}'
    content.feed_data(f'{{"type":"ADDED","object":{item}}}\n'.encode())
    content.feed_eof()
    (event,) = [event async for event in decode_events(content)]
    assert event["object"]["metadata"] == {"resourceVersion": "7"}
    refusal = f'{{"reason":"Invalid","message":"no","details":{nested("1", DEEPEST)}}}'
    assert error_from_answer(422, refusal.encode()).reason == "Invalid"
