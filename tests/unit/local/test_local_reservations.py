"""What one cluster has claimed, another does not get."""

import socket

import pytest

from kubediffusion.local.reservations import Reservations, listening


def test_a_claimed_port_is_below_the_ephemeral_ones_and_free() -> None:
    with Reservations() as reservations:
        port = reservations.port()
        assert 20_000 <= port < 32_768
        assert not listening(port)


def test_no_port_is_claimed_twice_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)  # both look in the same order
    with Reservations() as first, Reservations() as second:
        taken = first.port()
        assert second.port() != taken
        first.release()
        with Reservations() as third:
            assert third.port() == taken


def test_networks_are_claimed_as_ports_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)
    with Reservations() as first, Reservations() as second:
        taken = first.network()
        assert second.network() != taken
        first.release()
        with Reservations() as third:
            assert third.network() == taken


def test_a_port_on_which_something_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)
    with Reservations() as reservations:
        free = reservations.port()
        reservations.release()
        with socket.create_server(("127.0.0.1", free)):
            assert listening(free)
            assert reservations.port() != free
