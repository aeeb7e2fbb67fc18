"""The page at ``/`` needs nothing but this server, and shows nothing to who has no key."""

from __future__ import annotations

import re

import httpx
import pytest

from integration.api.api_kit import Api


@pytest.fixture
def page(api: Api) -> httpx.Response:
    return api.http.get("/")


def test_is_served_without_a_key_and_may_load_only_what_this_server_has(page: httpx.Response) -> None:
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy


def test_everything_it_names_is_there_and_relative(api: Api, page: httpx.Response) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert addresses
    for address in addresses:
        assert not address.startswith(("/", "http"))
        assert api.http.get(f"/{address}").status_code == 200
    script = api.http.get("/page/page.js").text
    assert not re.findall(r"[\"'`](?:/\w|https?:)", script)
