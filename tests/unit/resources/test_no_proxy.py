"""NO_PROXY names networks as curl and Go read them, for storage and for the API server."""

from __future__ import annotations

import pytest

from kubediffusion.resources.apiserver.configuration import proxy_for
from kubediffusion.resources.runtime.no_proxy import in_no_proxy_network

INSIDE = [
    ("10.0.0.0/8", "https://10.96.0.1:443"),
    ("example.com, 10.96.0.0/12", "https://10.96.0.1"),
    ("10.96.0.1", "https://10.96.0.1"),
    ("fd00::/8", "https://[fd00:10::1]:443"),
    ("[fd00:10::1]", "https://[fd00:10::1]:443"),
    ("::1", "http://[::1]:9000/bucket"),
]
OUTSIDE = [
    ("10.0.0.0/8", "https://192.0.2.1"),
    ("fd00::/8", "https://[2001:db8::1]"),
    ("10.0.0.0/8", "https://s3.example.com"),
    ("", "https://10.96.0.1"),
]


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize(
    ("entries", "url", "direct"), [*((*case, True) for case in INSIDE), *((*case, False) for case in OUTSIDE)]
)
def test_an_address_in_a_network_is_asked_directly(
    monkeypatch: pytest.MonkeyPatch, variable: str, entries: str, url: str, direct: bool
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv(variable, entries)
    assert in_no_proxy_network(url) is direct
    assert proxy_for(url) == (None if direct else "http://proxy:3128")
