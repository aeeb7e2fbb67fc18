"""Which addresses and hosts may be called, and what signs."""

from __future__ import annotations

import base64
import datetime as dt
import socket
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from kubediffusion.api.webhook_urls import AllowedHosts, refusal
from kubediffusion.api.webhooks.addresses import PrivateAddressError, PublicResolver, is_public
from kubediffusion.api.webhooks.signing import MOST_KEYS, SigningError, keys_of, signature_headers

PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101", "2002:101:101::"]
PRIVATE = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16"),  # noqa: S104
    *("169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1"),
    *("64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "fc00::1"),
    *("fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_called(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_may_not(address: str) -> None:
    assert not is_public(address)


@given(number=st.integers(0, 2**32 - 1))
def test_an_address_of_ipv6_that_stands_for_one_of_ipv4_is_judged_by_that(number: int) -> None:
    plain = is_public(str(IPv4Address(number)))
    assert is_public(str(IPv6Address((0xFFFF << 32) | number))) is plain
    assert is_public(str(IPv6Address((0x2002 << 112) | (number << 80)))) is plain
    assert is_public(str(IPv6Address((0x64FF9B << 96) | number))) is plain


def test_networks_can_be_denied_besides() -> None:
    denied = (ip_network("1.1.1.0/24"), ip_network("2606:4700::/32"))
    assert not is_public("1.1.1.1", denied)
    assert not is_public("::ffff:1.1.1.1", denied)
    assert not is_public("2606:4700:4700::1111", denied)
    assert is_public("8.8.8.8", denied)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.com", True),
        ("https://example.com:8443/x?y=z", True),
        ("http://example.com", False),
        ("http://inside.svc/x", True),
        ("http://INSIDE.svc.:9000/x", True),
        ("http://one-port.svc:8080/", True),
        ("http://one-port.svc/", False),
        ("http://inside.svc.example.com/", False),
        ("http://[::1]:8080/", True),
        ("ftp://inside.svc/", False),
        ("https://user@example.com/", False),
        ("https://example.com:0/", False),
        ("https://example.com:99999/", False),
        ("https:///x", False),
    ],
)
def test_http_is_for_hosts_that_are_allowed_by_name(url: str, allowed: bool) -> None:
    hosts = AllowedHosts("inside.svc, one-port.svc:8080,[::1]:8080")
    assert (refusal(url, hosts) is None) is allowed


@pytest.mark.parametrize("hosts", ["http://a", "a/b", "a:b", "*", "a b"])
def test_what_is_no_host_is_refused_as_a_setting(hosts: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        AllowedHosts(hosts)


def encoded(key: bytes, prefix: str = "whsec_") -> str:
    return base64.b64encode((prefix + base64.b64encode(key).decode() + "\n").encode()).decode()


@given(key=st.binary(min_size=24, max_size=64), body=st.text(max_size=200))
def test_the_package_of_the_standard_verifies(key: bytes, body: str) -> None:
    body = body.encode(errors="replace").decode()
    (whole,) = keys_of("kubediffusion-webhooks", {"key": encoded(key)})
    headers = signature_headers("uid-completed", dt.datetime.now(dt.UTC), body, [whole])
    Webhook(whole).verify(body, headers, json_parse=False)


def test_a_message_without_keys_has_no_signature() -> None:
    assert "webhook-signature" not in signature_headers("uid-completed", dt.datetime.now(dt.UTC), "{}", [])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"key": ""},
        {"key": base64.b64encode(b"secret").decode()},
        {"key": encoded(b"x" * 23)},
        {"key": encoded(b"x" * 32, prefix="")},
        {"key": base64.b64encode(b"whsec_\xff").decode()},
        {"key": base64.b64encode(b"whsec_" + base64.urlsafe_b64encode(b"\xff" * 48)).decode()},
        {str(number): encoded(b"x" * 32) for number in range(MOST_KEYS + 1)},
    ],
    ids=["none", "empty", "no key", "short", "no prefix", "no text", "another alphabet", "too many"],
)
def test_what_is_no_key_is_named_and_not_quoted(data: dict[str, str]) -> None:
    with pytest.raises(SigningError, match="Secret kubediffusion-webhooks") as caught:
        keys_of("kubediffusion-webhooks", data)
    assert "secret" not in str(caught.value).replace("Secret", "")
    assert "xxxx" not in str(caught.value)


def test_a_key_need_not_be_padded() -> None:
    padded = "whsec_" + base64.b64encode(b"x" * 25).decode()
    data = {
        "a": base64.b64encode(padded.encode()).decode(),
        "b": base64.b64encode(padded.rstrip("=").encode()).decode(),
    }
    assert keys_of("kubediffusion-webhooks", data) == [padded, padded.rstrip("=")]


async def test_a_name_is_refused_without_the_address_that_it_has_within() -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.96.4.3", 443))]
    resolver = PublicResolver(lookup=lambda *_: found)
    with pytest.raises(
        PrivateAddressError, match=r"hooks\.team\.svc has an address that is no public address"
    ) as caught:
        await resolver.resolve("hooks.team.svc", 443)
    assert "10.96" not in str(caught.value)
    await resolver.close()
