"""A cluster of these tests' own: what happens to its parts would disturb others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from chaos.system import Site, site

SEED = 20261


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def where(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """The cluster, whose logs stay if a test failed."""
    async with site(SEED) as ours:
        yield ours
        ours.cluster.keep = bool(request.session.testsfailed)
