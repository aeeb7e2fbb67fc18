"""What each fault of one namespace does to it. None of it needs a hook in production code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from chaos.evidence import Evidence, Object
from chaos.faults import TenantKind
from chaos.injectors import XML
from chaos.load import NEVER, SCHEME
from chaos.picture import POISON
from chaos.proxy import Disturbance
from chaos.system import System, ended, model_manifest
from kubediffusion.local import installation
from kubediffusion.local.errors import LocalError, NotInTimeError
from kubediffusion.local.testing import eventually

SECONDS = 15.0
"""How long a denial lasts."""
END_SECONDS = 60.0
"""How long a fault waits for its own jobs to end; the checker judges those that have not."""
NAMESPACE_SECONDS = 90.0
"""How long a namespace may take to go: its workers' time of grace is 30 seconds."""
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
LARGEST_PROMPT = 4_000
ANNOTATION_BYTES = 200 * 1024
TOLERATIONS = 400


@dataclass(frozen=True)
class Struck:
    """What a fault can take hold of.

    Attributes:
        system: The namespace that is struck.
        doomed: The namespace that is deleted.
        evidence: Of the namespace that is struck; names of jobs that a fault creates go there.
        environment: Of workers.
    """

    system: System
    doomed: System
    evidence: Evidence
    environment: Mapping[str, str]

    async def create(self, name: str, spec: Object, annotations: Object | None = None) -> str:
        """Create a job of the fault's own, and return its uid."""
        job = await asyncio.to_thread(self.system.create_job, name, spec, annotations)
        self.evidence.accepted.add(name)
        return str(job["metadata"]["uid"])

    async def wait(self, uids: set[str]) -> None:
        """Wait until jobs have ended, for a while."""

        async def over() -> bool:
            return uids <= self.system.recorder.finished.keys()

        with contextlib.suppress(NotInTimeError):
            await eventually("the fault's own jobs to end", over, END_SECONDS)

    @asynccontextmanager
    async def model(self, name: str, **spec: Any) -> AsyncIterator[None]:
        """Have a DiffusionModel for as long as the block runs."""
        manifest = model_manifest(name, self.environment, place=1)
        workers = manifest["spec"]["workers"] | spec.pop("workers", {})
        manifest["spec"] |= {**spec, "workers": workers}
        await asyncio.to_thread(self.system.namespace.apply, manifest)
        try:
            yield
        finally:
            await asyncio.to_thread(self.system.namespace.kubectl, "delete", "diffusionmodel", name, "--wait=false")


Injector = Callable[[Struck], Coroutine[Any, Any, None]]


async def deny_status(struck: Struck) -> None:
    """Deny every write of a job's status, by a policy of the cluster's administrator."""
    name = struck.system.namespace.name
    cluster = struck.system.site.cluster
    await asyncio.to_thread(cluster.apply, _denial(f"deny-status-{name}", name))
    await asyncio.sleep(SECONDS)  # the fault's own length
    for path in (BINDINGS, POLICIES):
        await asyncio.to_thread(cluster.control_plane.rest.request, "DELETE", f"{path}/deny-status-{name}")


async def deny_prefix(struck: Struck) -> None:
    """Deny whatever is asked of storage for the namespace's images."""
    prefix = f"/{installation.BUCKET}/{installation.PREFIX}/{struck.system.namespace.name}/"
    with struck.system.site.to_storage.disturbed(Disturbance(path=prefix, answer=(403, XML % b"AccessDenied"))):
        await asyncio.sleep(SECONDS)


async def poison(struck: Struck) -> None:
    """Send a job whose worker exits with it, among others that run in its batch."""
    names = [f"poisoned-{number}" for number in range(8)]
    struck.evidence.guilty.add(names[3])
    uids = set()
    for name in names:
        prompt = f"{name} {POISON if name in struck.evidence.guilty else 'innocent'}"
        spec = {"prompt": prompt, "numInferenceSteps": 20, "priority": 100, "backoffLimit": 1}
        uids.add(await struck.create(name, spec))
    await struck.wait(uids)


async def never_start(struck: Struck) -> None:
    """Send a job to a model whose workers never finish loading."""
    async with struck.model(NEVER, source={"path": f"{SCHEME}{NEVER}"}):
        await struck.wait({await struck.create("waits-for-ever", _impatient(NEVER))})


async def refuse_pods(struck: Struck) -> None:
    """Send a job to a model whose workers' Pods are refused."""
    async with struck.model("refused", workers={"serviceAccountName": "nope"}):
        await struck.wait({await struck.create("waits-for-a-pod", _impatient("refused"))})


async def delete_namespace(struck: Struck) -> None:
    """Delete a namespace with finished, running and waiting jobs, some of which hold their images' finalizer."""
    doomed = struck.doomed
    for number in range(12):
        spec = {"numInferenceSteps": 1 if number < 4 else 60, "deletionPolicy": ("Delete", "Retain")[number % 2]}
        await asyncio.to_thread(doomed.create_job, f"doomed-{number:02}", spec)

    async def under_way() -> bool:
        return len(doomed.recorder.finished) >= 4 and any(
            doomed.holder(job["metadata"]["uid"]) for job in doomed.jobs()
        )

    with contextlib.suppress(NotInTimeError):
        await eventually("jobs under way in the doomed namespace", under_way, END_SECONDS)
    await asyncio.to_thread(doomed.namespace.delete)
    name = doomed.namespace.name

    async def gone() -> bool:
        try:
            await asyncio.to_thread(doomed.site.cluster.get, "namespace", name)
        except LocalError:
            return True
        return False

    try:
        await eventually("the namespace to go", gone, NAMESPACE_SECONDS)
    except NotInTimeError:
        left = ", ".join(job["metadata"]["name"] for job in doomed.jobs() if not ended(job)) or "no unfinished job"
        struck.evidence.remains.append(f"Namespace {name} with {left}")


async def send_largest(struck: Struck) -> None:
    """Send jobs as large as the API server takes, and a model that it answers with the longest refusal."""
    wrong = [{"key": f"not a key {number}!", "operator": "Exists"} for number in range(TOLERATIONS)]
    async with struck.model("largest", workers={"tolerations": wrong}):
        uids = set()
        for number in range(20):
            prompt = f"largest {number} ".ljust(LARGEST_PROMPT, "x")
            spec = {"prompt": prompt, "negativePrompt": prompt[::-1], "numInferenceSteps": 1}
            uids.add(await struck.create(f"largest-{number:02}", spec, {"example.com/ballast": "x" * ANNOTATION_BYTES}))
        await struck.wait(uids)


def _impatient(model: str) -> Object:
    return {"model": model, "activeDeadlineSeconds": 20}


def _denial(name: str, namespace: str) -> list[Object]:
    """Return a policy that refuses every update of a GenerationJob's status in a namespace, and its binding."""
    version = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["kubediffusion.io"],
        "apiVersions": ["*"],
        "operations": ["UPDATE"],
        "resources": ["generationjobs/status"],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return [
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
                "validations": [{"expression": "false", "message": "injected", "reason": "Forbidden"}],
            },
        },
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


INJECTORS: dict[TenantKind, Injector] = {
    TenantKind.STATUS_DENIED: deny_status,
    TenantKind.PREFIX_DENIED: deny_prefix,
    TenantKind.POISONOUS_JOB: poison,
    TenantKind.WORKER_NEVER_STARTS: never_start,
    TenantKind.WORKER_NOT_ADMITTED: refuse_pods,
    TenantKind.NAMESPACE_DELETED: delete_namespace,
    TenantKind.LARGEST_OBJECTS: send_largest,
}
