"""A short run of what `make chaos` does, and the proof that its checker would have seen a defect."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.checker import check
from chaos.faults import Fault, Kind, schedule
from chaos.load import Order, Route, orders
from chaos.run import Plan, run
from chaos.system import Build, Site, defect

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20261
KINDS = [
    Kind.OPERATOR_KILLED,
    Kind.API_KILLED,
    Kind.WORKER_KILLED,
    Kind.WORKER_KILLED_UNREPORTED,
    Kind.WORKER_ZOMBIE,
    Kind.APISERVER_KILLED,
    Kind.STORAGE_ERRORS,
    Kind.WATCHES_GONE,
]


async def test_a_short_run_breaks_no_law(where: Site, tmp_path: Path) -> None:
    jobs = 150
    faults = schedule(SEED, jobs, len(KINDS), KINDS)
    outcome = await run(where, Plan("short", orders(SEED, jobs), faults), tmp_path)
    assert check(outcome.evidence) == []
    assert len(outcome.evidence.accepted) == jobs
    assert [strike.fault.kind for strike in outcome.strikes if not strike.hit] == []


@pytest.mark.parametrize(
    ("name", "build", "kind", "law"),
    [
        ("requeue-off", Build(operator=defect("requeue_off")), Kind.WORKER_KILLED, "each accepted job ends"),
        ("double-bind", Build(operator=defect("double_bind")), Kind.OPERATOR_KILLED, "only lost jobs are bound again"),
    ],
)
async def test_a_broken_build_is_caught(
    where: Site, tmp_path: Path, name: str, build: Build, kind: Kind, law: str
) -> None:
    faults = [Fault(kind, finished, 0.0, finished) for finished in (4, 16)]
    outcome = await run(where, Plan(name, orders(SEED, 40), faults, patience=10.0, build=build), tmp_path)
    assert law in {violation.law for violation in check(outcome.evidence)}


async def test_a_worker_without_fences_is_caught(where: Site, tmp_path: Path) -> None:
    # Jobs too short to be reported as Running, which are bound again at once, and so many that each worker always has
    # some: whichever is frozen holds some that end elsewhere, and draws them again when it is thawed.
    waiting = [
        Order(number, Route.KUBECTL, {"prompt": f"zombie {number}", "numInferenceSteps": 4}) for number in range(80)
    ]
    faults = [Fault(Kind.WORKER_ZOMBIE, finished, 0.0, finished) for finished in (4, 16)]
    build = Build(worker=defect("fencing_off"))
    plan = Plan("fencing-off", waiting, faults, rate=40.0, patience=10.0, build=build)
    outcome = await run(where, plan, tmp_path)
    assert "images are what was asked" in {violation.law for violation in check(outcome.evidence)}
