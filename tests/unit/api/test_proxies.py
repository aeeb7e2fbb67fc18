"""Who may say where a request came from, and what nobody can say of himself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kubediffusion.api.proxies import Origin, TrustedProxies, client_of
from kubediffusion.api.settings import Settings


def origin(networks: str, peer: str, *headers: tuple[str, str], scheme: str = "http") -> Origin:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return TrustedProxies(networks).origin({"client": (peer, 1), "scheme": scheme, "headers": raw})


def forwarded(networks: str, peer: str, *lines: str) -> str | None:
    return origin(networks, peer, *(("X-Forwarded-For", line) for line in lines)).address


@pytest.mark.parametrize(
    ("networks", "peer", "lines", "client"),
    [
        ("", "10.0.0.1", ["192.0.2.1"], "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.0/8", "192.0.2.9", ["192.0.2.1"], "192.0.2.9"),
        # What the client wrote itself stands left of what the proxy appended.
        ("10.0.0.0/8", "10.0.0.1", ["1.1.1.1, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["1.1.1.1", "192.0.2.1"], "192.0.2.1"),
        # A client that names a trusted address is still the client.
        ("10.0.0.0/8", "10.0.0.1", ["10.9.9.9, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.0/8", "10.0.0.1", ["unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.0/8", "10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
        ("fd00::/8, 10.0.0.1", "fd00::2", ["2001:db8::1"], "2001:db8::1"),
        ("*", "10.0.0.1", ["1.1.1.1, 192.0.2.1"], "192.0.2.1"),
        ("*", "10.0.0.1", ["1.1.1.1", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_client_is_the_first_that_no_proxy_vouches_for(
    networks: str, peer: str, lines: list[str], client: str
) -> None:
    assert forwarded(networks, peer, *lines) == client


@given(st.lists(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30), max_size=4))
def test_nothing_that_a_client_writes_changes_who_it_is(lines: list[str]) -> None:
    for networks in ("10.0.0.0/8", "*"):
        assert forwarded(networks, "10.0.0.1", *lines, "192.0.2.1") == "192.0.2.1"
        assert forwarded(networks, "10.0.0.1", ",".join([*lines, "192.0.2.1"])) == "192.0.2.1"


def test_the_scheme_is_the_nearest_proxys_word() -> None:
    https = ("X-Forwarded-Proto", "https")
    assert origin("10.0.0.1", "10.0.0.1", https).scheme == "https"
    assert origin("10.0.0.1", "10.0.0.2", https).scheme == "http"
    assert origin("10.0.0.1", "10.0.0.1", ("X-Forwarded-Proto", "https, http")).scheme == "http"
    assert origin("10.0.0.1", "10.0.0.1", ("X-Forwarded-Proto", "gopher")).scheme == "http"


def test_a_socket_without_addresses_has_none() -> None:
    assert TrustedProxies("*").origin({"client": None, "scheme": "http", "headers": []}) == Origin(None, "http")


@pytest.mark.parametrize("networks", ["proxy.example.com", "10.0.0.0/8;10.1.0.0/16", "10.0.0.1/8"])
def test_what_is_no_network_is_refused_at_start(networks: str) -> None:
    with pytest.raises(ValidationError):
        Settings(trusted_proxies=networks)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_a_network_of_ipv6_that_one_machine_may_have_is_one_client(address: str, client: str) -> None:
    assert client_of(address) == client
