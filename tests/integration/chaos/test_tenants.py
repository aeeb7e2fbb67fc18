"""Faults of one namespace: its neighbour's jobs end, and the laws about blame catch a build that breaks them.

How fast the neighbour's jobs end is judged by `make chaos`, where nothing else runs; here other tests do.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.checker import check
from chaos.faults import TenantKind
from chaos.system import Build, Site, defect
from chaos.tenants import TenantPlan, run_tenants

# Three namespaces are installed, struck and taken down in each.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

SEED = 20261


async def test_a_neighbour_s_jobs_end_beside_a_fault(where: Site, tmp_path: Path) -> None:
    kinds = [TenantKind.STATUS_DENIED, TenantKind.WORKER_NOT_ADMITTED]
    struck, neighbour = await run_tenants(where, TenantPlan("tenants", SEED, kinds, jobs=8), tmp_path)
    assert [violation for violation in check(struck) if violation.law != "others end as fast"] == []
    assert [violation for violation in check(neighbour) if violation.law != "others end as fast"] == []
    assert len(neighbour.accepted) == 8 * (2 * len(kinds) + 1)


@pytest.mark.parametrize(
    ("name", "kind", "law"),
    [
        ("blocks_on_refusals", TenantKind.STATUS_DENIED, "others end as fast"),
        ("counts_every_retry", TenantKind.POISONOUS_JOB, "only the guilty fail"),
    ],
)
async def test_a_build_that_lets_others_pay_is_caught(
    where: Site, tmp_path: Path, name: str, kind: TenantKind, law: str
) -> None:
    plan = TenantPlan(name.replace("_", "-"), SEED, [kind], jobs=16, patience=20.0, build=Build(defect(name)))
    found = [violation.law for evidence in await run_tenants(where, plan, tmp_path) for violation in check(evidence)]
    assert law in found
