"""Probes are answered on every address of a Pod, whichever families it has."""

from __future__ import annotations

import aiohttp
import pytest

from kubediffusion.local.reservations import Reservations
from kubediffusion.operator.settings import Settings
from kubediffusion.resources.runtime.probes import serve_probes


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_the_operator_s_default_serves_both_ip_families(host: str) -> None:
    with Reservations() as reservations:
        port = reservations.port()
        async with (
            serve_probes(Settings().bind_address, port, live=lambda: None, ready=lambda: None),
            aiohttp.ClientSession() as session,
            session.get(f"http://{host}:{port}/livez") as answer,
        ):
            assert answer.status == 200
