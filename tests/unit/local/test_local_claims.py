"""What one cluster has claimed, another does not get."""

import socket

from kubediffusion.local.claims import Claims, listening


def test_a_claimed_port_is_below_the_ephemeral_ones_and_free(tmp_path):
    with Claims(tmp_path) as claims:
        port = claims.port()
        assert 20_000 <= port < 32_768
        assert not listening(port)


def test_no_port_is_claimed_twice_until_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr("random.shuffle", lambda _: None)  # both look in the same order
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        taken = first.port()
        assert second.port() != taken
        first.release()
        assert Claims(tmp_path).port() == taken


def test_networks_are_claimed_as_ports_are(tmp_path, monkeypatch):
    monkeypatch.setattr("random.shuffle", lambda _: None)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert (first.network(), second.network()) == ("127.1", "127.2")


def test_a_port_on_which_something_listens_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("random.shuffle", lambda _: None)
    with Claims(tmp_path) as claims:
        free = claims.port()
        claims.release()
        with socket.create_server(("127.0.0.1", free)):
            assert listening(free)
            assert claims.port() != free
