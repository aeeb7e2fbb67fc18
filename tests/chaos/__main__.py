"""``python -m chaos``: the long run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from chaos import clock
from chaos.checker import check
from chaos.faults import UNMET, Kind, TenantKind, schedule
from chaos.load import orders
from chaos.report import Result, row, table, write
from chaos.run import Plan, run
from chaos.system import site
from chaos.tenants import TenantPlan, run_tenants

JOBS_A_FAULT = 40


def main() -> int:
    """Run, judge, and say what came of it."""
    parser = argparse.ArgumentParser(prog="chaos", description="Faults over jobs, on a real control plane.")
    parser.add_argument("--seed", type=int, default=1, help="decides jobs and faults")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--faults", type=int, help=f"how many; one for {JOBS_A_FAULT} jobs where nothing is said")
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in Kind], help="only these faults")
    parser.add_argument(
        "--tenant-kinds",
        nargs="*",
        choices=[kind.name for kind in TenantKind],
        default=[kind.name for kind in TenantKind if kind not in UNMET],
        help="only these faults of one namespace among several, after the others (%(default)s)",
    )
    parser.add_argument("--tenant-jobs", type=int, default=40, help="of the neighbour that are measured beside each")
    parser.add_argument("--rate", type=float, default=10.0, help="jobs a second")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds without an end before giving up")
    parser.add_argument("--write", type=Path, help="a page that gets the results of this seed")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "botocore", "aiohttp"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    kinds = [Kind[name] for name in chosen.kinds or Kind.__members__]
    if Kind.CLOCK_STEPPED in kinds and not clock.available():
        logging.warning("left out, since there is no C compiler: %s", Kind.CLOCK_STEPPED)
        kinds.remove(Kind.CLOCK_STEPPED)
    count = chosen.faults if chosen.faults is not None else max(len(kinds), chosen.jobs // JOBS_A_FAULT)
    plan = Plan(
        name="chaos",
        orders=orders(chosen.seed, chosen.jobs),
        faults=schedule(chosen.seed, chosen.jobs, count, kinds),
        rate=chosen.rate,
        patience=chosen.patience,
    )
    struck = [TenantKind[name] for name in chosen.tenant_kinds]
    tenants = TenantPlan("tenants", chosen.seed, struck, jobs=chosen.tenant_jobs, patience=chosen.patience)
    result, folder = asyncio.run(_run(chosen.seed, plan, tenants))
    text = table(chosen.seed, plan, result)
    sys.stdout.write(text)
    if chosen.write:
        write(chosen.write, chosen.seed, row(chosen.seed, result), text)
    if result.violations:
        logging.error("the logs are in %s", folder)
    return 1 if result.violations else 0


async def _run(seed: int, plan: Plan, tenants: TenantPlan) -> tuple[Result, Path]:
    """Run on a cluster of its own, whose folder stays if a law was broken; return its logs too."""
    with tempfile.TemporaryDirectory(prefix="kubediffusion-chaos-") as folder:
        async with site(seed) as where:
            outcome = await run(where, plan, Path(folder)) if plan.orders else None
            struck = await run_tenants(where, tenants, Path(folder)) if tenants.kinds else ()
            found = [*([outcome.evidence] if outcome else []), *struck]
            paces = [pace for evidence in struck for pace in evidence.paces]
            violations = [violation for evidence in found for violation in check(evidence)]
            where.cluster.keep = bool(violations)
            return Result(outcome, paces, violations), where.cluster.logs


if __name__ == "__main__":
    sys.exit(main())
