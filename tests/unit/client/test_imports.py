"""What importing the client loads: nothing that takes long. Modules are counted, as seconds depend on the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"PIL", "aiohttp", "boto3", "httpx", "kubernetes", "pydantic", "pydantic_settings", "rich", "torch", "yaml"}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import kubediffusion.client", set()),
        ("from kubediffusion.client import AsyncClient, Client", set()),
        ("from kubediffusion.client import Client; Client('http://localhost').close()", {"httpx", "pydantic", "rich"}),
    ],
)
def test_what_is_heavy_is_loaded_when_it_is_needed(statement: str, allowed: set[str]) -> None:
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert set(answer.stdout.split()) & HEAVY <= allowed
