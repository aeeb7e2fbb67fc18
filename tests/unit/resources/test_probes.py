"""What kubelet and Prometheus ask a process."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from kubediffusion.resources.runtime.probes import serve_probes


async def ask(port: Any, path: Any) -> Any:
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_a_probe_says_what_is_wrong_for_as_long_as_it_is() -> None:
    problems = {"ready": "the model is loading"}
    async with serve_probes("127.0.0.1", 0, live=lambda: None, ready=lambda: problems.get("ready")) as port:
        assert await ask(port, "/livez") == (200, "ok")
        assert await ask(port, "/readyz") == (503, "the model is loading")
        problems.clear()
        assert await ask(port, "/readyz") == (200, "ok")


async def test_metrics_are_in_the_text_format() -> None:
    async with serve_probes("127.0.0.1", 0, live=lambda: None, ready=lambda: None) as port:
        status, text = await ask(port, "/metrics")
    assert status == 200
    assert "# TYPE process_cpu_seconds_total counter" in text


async def test_a_port_that_is_taken_is_said_at_once() -> None:
    async with serve_probes("127.0.0.1", 0, live=lambda: None, ready=lambda: None) as port:
        with pytest.raises(OSError, match=str(port)):
            async with serve_probes("127.0.0.1", port, live=lambda: None, ready=lambda: None):
                pass


async def test_nothing_listens_afterwards() -> None:
    async with serve_probes("127.0.0.1", 0, live=lambda: None, ready=lambda: None) as port:
        pass
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(port, "/livez")
