"""One managed namespace that is gone or closed keeps the operator from no other."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import kopf
import pytest
from prometheus_client import REGISTRY

from integration.operator.operators import MODEL, has_pod
from kubediffusion.local import installation
from kubediffusion.local.errors import LocalError
from kubediffusion.local.testing import Namespace, connect, eventually
from kubediffusion.operator.composition import Operator, compose
from kubediffusion.operator.handlers import register
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.store import Store
from kubediffusion.operator.watching import configure_kopf, watch_jobs
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError, NotFoundError
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.runtime.probes import serve_probes
from kubediffusion.resources.schema import format_time

OPERATOR = "kubediffusion-operator"


@pytest.fixture
def other(namespace: Namespace) -> Iterator[Namespace]:
    """A second namespace."""
    fresh = Namespace(namespace.cluster, f"{namespace.name}-other")
    fresh.create()
    yield fresh
    with suppress(LocalError):  # it may be gone already
        fresh.delete()


def permit(account: Namespace, where: Namespace) -> None:
    """Grant the operator's service account of one namespace its rights in another."""
    where.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": OPERATOR},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": OPERATOR},
            "subjects": [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": account.name}],
        }
    )


@pytest.fixture
async def account(namespace: Namespace, client: KubernetesClient) -> AsyncIterator[KubernetesClient]:
    """The operator's service account, with rights in its own namespace."""
    namespace.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": OPERATOR}})
    permit(namespace, namespace)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    path = f"/api/v1/namespaces/{namespace.name}/serviceaccounts/{OPERATOR}/token"
    token = (await client.request("POST", path, body=request))["status"]["token"]
    async with await connect(namespace.cluster.admin) as administrator:
        administrator.configuration.api_key = {"BearerToken": f"Bearer {token}"}
        # The certificate is the administrator's, and the TLS context that holds it is made with the first client.
        administrator.configuration.cert_file = administrator.configuration.key_file = None
        async with KubernetesClient(administrator.configuration) as own:
            yield own


@asynccontextmanager
async def running(account: KubernetesClient, *namespaces: Namespace) -> AsyncIterator[Operator]:
    settings = Settings(
        namespaces=",".join(each.name for each in namespaces),
        resync_seconds=0.3,
        worker_service_account="default",
        # A worker's Pod that is not there is given up after so long.
        node_grace_seconds=2,
    )
    operator = compose(account, settings, None, "test")

    async def listed() -> bool:
        # The right to the first may take a moment to arrive.
        with suppress(Exception):
            await operator.resync.list_all()
        return operator.resync.problem() is None

    await eventually("the first list", listed)
    task = asyncio.create_task(operator.run())
    try:
        yield operator
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def refused(namespace: Namespace) -> float | None:
    return REGISTRY.get_sample_value("kubediffusion_operator_namespace_refused", {"namespace": namespace.name})


async def test_a_namespace_whose_rolebinding_is_missing_is_named_and_taken_up_when_it_is_back(
    namespace: Namespace,
    other: Namespace,
    client: KubernetesClient,
    account: KubernetesClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for each in (namespace, other):
        await client.diffusion_models.create(each.name, MODEL)
    async with running(account, other, namespace) as operator:
        await eventually("the worker of the other namespace", lambda: has_pod(namespace, "emoji"))
        assert not await has_pod(other, "emoji")
        said = operator.resync.refusals()
        assert said is not None
        assert said.startswith(f"namespace {other.name}: ")
        assert "forbidden" in said
        assert caplog.text.count(f"namespace {other.name} cannot be listed") == 1
        assert (refused(other), refused(namespace)) == (1, 0)
        probes = serve_probes(
            "127.0.0.1", 0, live=operator.loop.problem, ready=operator.resync.problem, detail=operator.resync.refusals
        )
        async with probes as port, aiohttp.ClientSession() as session:
            answer = await session.get(f"http://127.0.0.1:{port}/readyz")
            assert (answer.status, await answer.text()) == (200, f"ok; {said}")
        permit(namespace, other)
        await eventually("its worker", lambda: has_pod(other, "emoji"))
        assert (operator.resync.refusals(), refused(other)) == (None, 0)


async def test_a_namespace_that_is_deleted_meanwhile_keeps_no_other_from_its_workers(
    namespace: Namespace, other: Namespace, client: KubernetesClient, account: KubernetesClient
) -> None:
    permit(namespace, other)
    await client.diffusion_models.create(other.name, MODEL)
    async with running(account, other, namespace) as operator:
        await eventually("its worker", lambda: has_pod(other, "emoji"))
        other.delete()
        # Roles go only after Pods, and a worker's Pod may take its whole grace period, which nobody waits for here.
        other.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")

        async def closed() -> bool:
            return operator.resync.refusals() is not None

        await eventually("it to be closed", closed)
        await client.diffusion_models.create(namespace.name, MODEL)
        await eventually("the worker of the other namespace", lambda: has_pod(namespace, "emoji"))
        assert operator.resync.problem() is None

        # Whoever creates it anew finds nothing of what was known of it: the model has the same name, and no worker yet.
        await eventually("it to be gone", lambda: is_gone(client, other), 60)
        other.create()
        permit(namespace, other)
        await client.diffusion_models.create(other.name, MODEL)
        await eventually("its worker, now that it is created anew", lambda: has_pod(other, "emoji"), 60)
        assert (operator.resync.refusals(), operator.resync.problem()) == (None, None)


async def is_gone(client: KubernetesClient, where: Namespace) -> bool:
    try:
        await client.request("GET", f"/api/v1/namespaces/{where.name}")
    except NotFoundError:
        return True
    return False


async def held_job(client: KubernetesClient, where: Namespace, name: str, **status: Any) -> None:
    """Create a job whose images go with it."""
    metadata = {"name": name, "finalizers": [meta.IMAGES_FINALIZER]}
    body = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "metadata": metadata}
    await client.generation_jobs.create(where.name, body | {"spec": {"prompt": "a fox", "deletionPolicy": "Delete"}})
    if status:
        await client.generation_jobs.patch(where.name, name, {"status": status}, subresource="status")


async def test_a_namespace_whose_roles_are_deleted_first_does_not_stay_for_its_jobs(
    namespace: Namespace,
    other: Namespace,
    client: KubernetesClient,
    account: KubernetesClient,
) -> None:
    permit(namespace, other)
    other.cluster.apply([installation.release_binding(namespace.name)])
    now = format_time(dt.datetime.now(dt.UTC))
    await held_job(client, other, "finished", phase=Phase.CANCELLED, completionTime=now)
    await held_job(client, other, "waiting")
    parameters = {"model": "emoji", "numInferenceSteps": 1, "guidanceScale": 1, "seed": 1, "numImages": 1}
    await held_job(client, other, "bound", phase=Phase.SCHEDULED, worker="p", attempt=1, parameters=parameters)
    # Nothing binds or ends them meanwhile: the one that is bound has a worker that is there.
    await client.diffusion_models.create(other.name, MODEL)
    async with running(account, other, namespace) as operator:
        store = operator.store
        watch = watch_jobs(account, other.name, store.observe_job, store.unfinished_jobs(other.name))
        watching = asyncio.create_task(watch.run())
        await asyncio.wait_for(watch.synced.wait(), 30)
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{other.name}/rolebindings/{OPERATOR}"
        await client.request("DELETE", path)

        async def closed() -> bool:
            return operator.resync.refusals() is not None

        await eventually("the operator to lose its rights", closed)
        other.delete()

        await eventually("the namespace to go", lambda: is_gone(client, other), 60)
        watching.cancel()


@pytest.mark.parametrize(
    ("patch", "taken"),
    [
        ({"metadata": {"finalizers": []}}, True),
        ({"metadata": {"annotations": {"kubediffusion.io/images-held": "AccessDenied"}}}, True),
        ({"metadata": {"annotations": {"example.com/a": "b"}}}, False),
        ({"metadata": {"labels": {"example.com/a": "b"}}}, False),
        ({"spec": {"priority": 9}}, False),
    ],
    ids=str,
)
async def test_who_may_only_release_jobs_changes_nothing_else_of_them(
    namespace: Namespace,
    other: Namespace,
    client: KubernetesClient,
    account: KubernetesClient,
    patch: dict[str, Any],
    taken: bool,
) -> None:
    other.cluster.apply([installation.release_binding(namespace.name)])
    await held_job(client, other, "held")

    async def refusal() -> str:
        try:
            await account.generation_jobs.patch(other.name, "held", patch)
        except ForbiddenError as error:
            return error.message
        return ""

    async def policed() -> bool:
        return "may only release" in await refusal()

    # Not before it is deleted, whatever it is.
    await eventually("the rights and the policy to be in force", policed)
    await client.generation_jobs.delete(other.name, "held")
    assert ("may only release" in await refusal()) is not taken
    with suppress(NotFoundError):
        await client.generation_jobs.patch(other.name, "held", {"metadata": {"finalizers": []}})


async def test_kopf_watches_a_namespace_again_whose_rolebinding_is_back(
    namespace: Namespace, other: Namespace, client: KubernetesClient, account: KubernetesClient
) -> None:
    registry, settings, store = kopf.OperatorRegistry(), kopf.OperatorSettings(), Store(lambda _: "", dt.timedelta())
    register(registry, store)
    configure_kopf(registry, settings, account)
    stop = asyncio.Event()
    options: dict[str, Any] = {"identity": "test", "namespaces": [other.name, namespace.name]}
    watches = asyncio.create_task(
        kopf.operator(registry=registry, settings=settings, standalone=True, stop_flag=stop, **options)
    )

    async def known(where: Namespace) -> bool:
        return store.namespace(where.name) is not None

    try:
        for each in (namespace, other):
            await client.diffusion_models.create(each.name, MODEL)
        await eventually("the model of the other namespace", lambda: known(namespace))
        assert not await known(other)
        permit(namespace, other)
        await eventually("its model", lambda: known(other), 60)
    finally:
        stop.set()
        await watches
