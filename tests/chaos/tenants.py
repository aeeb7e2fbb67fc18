"""One operator and several namespaces: faults strike one of them, and how fast another's jobs end is measured."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos import clock
from chaos.client import Clients
from chaos.evidence import Evidence, Object, Pace
from chaos.faults import TenantKind
from chaos.load import MODELS, orders
from chaos.run import take_down, wait_for_ends
from chaos.system import START_SECONDS, Build, Site, System, model_manifest
from chaos.tenant_faults import INJECTORS, Struck
from kubediffusion.local import installation
from kubediffusion.local.errors import NotInTimeError
from kubediffusion.local.testing import Namespace, eventually

logger = logging.getLogger(__name__)

STEPS = 10
"""Steps of a job that is measured: long enough that a moment of the machine's own weighs little."""
OWN_RATE = 1.0
"""Jobs a second of the namespace that is struck."""
RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class TenantPlan:
    """What a run of several namespaces consists of.

    Attributes:
        name: Of the namespace that is struck; those of the others begin with it.
        seed: Decides the jobs of the struck namespace.
        kinds: The faults, one after the other.
        jobs: How many jobs of the neighbour are measured beside each fault, and as many before it.
        rate: How many of them come in a second.
        patience: Seconds without any job's end after which those that are left are given up.
        build: How the parts are built.
    """

    name: str
    seed: int
    kinds: Sequence[TenantKind]
    jobs: int = 40
    rate: float = 3.0
    patience: float = 120.0
    build: Build = field(default_factory=Build)

    @property
    def neighbour(self) -> str:
        """The namespace whose jobs are measured."""
        return f"{self.name}-neighbour"

    @property
    def doomed(self) -> str:
        """The namespace that is deleted."""
        return f"{self.name}-doomed"


async def run_tenants(where: Site, plan: TenantPlan, folder: Path) -> tuple[Evidence, Evidence]:
    """Carry a plan out, and return the evidence of the namespace that was struck and that of its neighbour."""
    clocks = clock.prepare(folder / "clock")
    struck, neighbour, doomed = (
        System(where, Namespace(where.cluster, name), clocks) for name in (plan.name, plan.neighbour, plan.doomed)
    )
    served = {"KUBEDIFFUSION_NAMESPACES": ",".join((plan.name, plan.neighbour, plan.doomed))}
    environment = {**clock.environment(clocks), **plan.build.worker}
    evidence, theirs = (
        Evidence(system.namespace.name, installation.BUCKET, installation.PREFIX) for system in (struck, neighbour)
    )
    for system in (struck, neighbour, doomed):
        system.namespace.create()
    where.cluster.apply([installation.release_binding(plan.name)])
    for system in (neighbour, doomed):
        system.namespace.apply(
            *installation.namespaced(system.namespace.name, where.storage_settings),
            _operator_binding(plan.name),
            model_manifest(MODELS[0], environment),
        )
    with struck.recorder.recording(), neighbour.recorder.recording(), doomed.recorder.recording():
        struck.install(Build({**served, **plan.build.operator}, plan.build.worker))
        await struck.wait_ready()
        await _wait_worker(neighbour)
        # Its own jobs come all the time: a fault has something to strike, and both sides of the measure are alike.
        seconds = (2 * len(plan.kinds) + 1) * plan.jobs / plan.rate
        own = orders(plan.seed, int(seconds * OWN_RATE))
        placing = asyncio.create_task(Clients(struck, evidence).place(own, OWN_RATE))
        measure = _Measure(neighbour, theirs, plan)
        await measure.durations("warm-up")
        for kind in plan.kinds:
            logger.info("%s", kind)
            # Just before, as the machine is not equally fast at all times.
            without = await measure.durations(f"before-{kind.name.lower()}")
            striking = asyncio.create_task(INJECTORS[kind](Struck(struck, doomed, evidence, environment)))
            theirs.paces.append(Pace(kind, without, await measure.durations(kind.name.lower())))
            await striking
            logger.info("  %.2f times as long", theirs.paces[-1].ratio)
        await placing
        for system, found in ((struck, evidence), (neighbour, theirs)):
            await wait_for_ends(system, plan.patience)
            found.versions = list(system.recorder.versions)
            found.gaps = list(system.recorder.gaps)
            found.stored = await asyncio.to_thread(system.stored)
        # The operator is the struck namespace's: it goes last.
        await take_down(neighbour, theirs)
        await take_down(struck, evidence)
        for system in (struck, neighbour):
            system.namespace.delete()
    return evidence, theirs


class _Measure:
    """Places jobs in the neighbour's namespace and measures how long each takes from its creation to its end."""

    def __init__(self, system: System, evidence: Evidence, plan: TenantPlan) -> None:
        self._system = system
        self._evidence = evidence
        self._plan = plan

    async def durations(self, name: str) -> tuple[float, ...]:
        """Place jobs at the plan's rate, and return the seconds of each."""
        began = time.monotonic()
        created: dict[str, float] = {}
        for number in range(self._plan.jobs):
            await asyncio.sleep(max(0.0, began + number / self._plan.rate - time.monotonic()))
            moment = time.monotonic()
            label = f"{name}-{number:03}".replace("_", "-")
            job = await asyncio.to_thread(self._system.create_job, label, {"numInferenceSteps": STEPS})
            self._evidence.accepted.add(job["metadata"]["name"])
            created[job["metadata"]["uid"]] = moment
        finished = self._system.recorder.finished

        async def ended() -> bool:
            return created.keys() <= finished.keys()

        with contextlib.suppress(NotInTimeError):
            await eventually("the neighbour's jobs to end", ended, self._plan.patience)
        late = time.monotonic()
        return tuple(finished.get(uid, late) - moment for uid, moment in created.items())


async def _wait_worker(system: System) -> None:
    async def ready() -> bool:
        return bool(system.ready_pods(MODELS[0]))

    await eventually(f"a worker in {system.namespace.name}", ready, START_SECONDS)


def _operator_binding(home: str) -> Object:
    """Return a RoleBinding that lets the operator of another namespace serve this one."""
    name = installation.OPERATOR
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{name}-of-{home}"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": home}],
    }
