"""Two writers with disjoint rights, as the API server keeps them apart."""

from __future__ import annotations

from typing import Any

import pytest

from integration.resources.identities import Room, SignIn, a_job, refusal
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError, InvalidError
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.transitions import BOUND, TERMINAL, Writer, allowed

WORKER = "worker-a"
OTHER_WORKER = "worker-b"
WAYS: dict[Phase, tuple[tuple[Writer, Phase], ...]] = {
    Phase.PENDING: (),
    Phase.SCHEDULED: ((Writer.OPERATOR, Phase.SCHEDULED),),
    Phase.RUNNING: ((Writer.OPERATOR, Phase.SCHEDULED), (Writer.WORKER, Phase.RUNNING)),
    Phase.SUCCEEDED: ((Writer.OPERATOR, Phase.SCHEDULED), (Writer.WORKER, Phase.SUCCEEDED)),
    Phase.FAILED: ((Writer.OPERATOR, Phase.SCHEDULED), (Writer.WORKER, Phase.FAILED)),
    Phase.CANCELLED: ((Writer.OPERATOR, Phase.SCHEDULED), (Writer.OPERATOR, Phase.CANCELLED)),
}
"""By which writes a job gets to each phase."""

ONE_MORE_WORD = {"warnings": ["a word more"]}
"""Makes a write of the same phase a change."""

Clients = dict[Writer, KubernetesClient]


@pytest.fixture
def clients(operator: KubernetesClient, worker: KubernetesClient) -> Clients:
    return {Writer.OPERATOR: operator, Writer.WORKER: worker}


async def in_phase(room: Room, clients: Clients, phase: Phase) -> GenerationJob:
    job = await room.create()
    for writer, step in WAYS[phase]:
        binding = {"worker": WORKER, "attempt": 1} if step is Phase.SCHEDULED else {}
        job = await room.write(clients[writer], job, phase=step, **binding)
    assert job.status.phase is phase
    return job


def may(writer: Writer, old: Phase, new: Phase) -> bool:
    """Return what the table permits, and every write that leaves the phase as it is."""
    if old is new:
        return old not in TERMINAL and (writer is Writer.OPERATOR or old in BOUND)
    return allowed(writer, old, new)


@pytest.mark.parametrize("old", Phase)
async def test_the_api_server_answers_as_the_table_of_transitions_says(
    room: Room, clients: Clients, old: Phase
) -> None:
    job = await in_phase(room, clients, old)
    table, answers = {}, {}
    for writer in Writer:
        for new in Phase:
            patch = {"status": {"phase": new} | ONE_MORE_WORD}
            error = await refusal(room.try_patch(job.name, patch, clients[writer], "status"))
            assert error is None or isinstance(error, ForbiddenError | InvalidError)
            answers[writer, new], table[writer, new] = error is None, may(writer, old, new)
    assert answers == table


@pytest.mark.parametrize("phase", sorted(TERMINAL))
async def test_nobody_changes_a_word_of_a_finished_jobs_status(room: Room, clients: Clients, phase: Phase) -> None:
    job = await in_phase(room, clients, phase)
    changes: list[dict[str, Any]] = [
        ONE_MORE_WORD,
        {"worker": None},
        {"attempt": 2},
        {"phase": Phase.PENDING},
        {"images": []},
    ]
    for change in changes:
        for client in (room.client, *clients.values()):
            assert await refusal(room.try_patch(job.name, {"status": change}, client, "status")) is not None
    assert await room.client.generation_jobs.get(room.namespace, job.name) == job


async def test_a_worker_reports_on_its_own_job(room: Room, clients: Clients) -> None:
    job = await in_phase(room, clients, Phase.RUNNING)
    progress = {"step": 3, "total": 25, "summary": "3/25"}
    reported = await room.write(clients[Writer.WORKER], job, progress=progress)
    assert reported.status.progress is not None
    assert reported.status.progress.step == 3


async def test_a_worker_has_no_word_on_another_workers_job(
    room: Room, clients: Clients, other_worker: KubernetesClient
) -> None:
    job = await in_phase(room, clients, Phase.RUNNING)
    error = await refusal(room.write(other_worker, job, phase=Phase.SUCCEEDED))
    assert isinstance(error, ForbiddenError)
    assert "only the worker that status.worker names" in error.message


async def test_a_worker_cannot_take_a_job_that_nobody_gave_it(room: Room, worker: KubernetesClient) -> None:
    job = await room.create()
    for status in ({"phase": Phase.SCHEDULED, "worker": WORKER, "attempt": 1}, {"worker": WORKER}, ONE_MORE_WORD):
        assert isinstance(await refusal(room.write(worker, job, **status)), ForbiddenError)


async def test_a_workers_account_without_its_pod_writes_nothing(room: Room, clients: Clients, sign_in: SignIn) -> None:
    job = await in_phase(room, clients, Phase.SCHEDULED)
    async with sign_in("kubediffusion-worker") as anybody:
        assert isinstance(await refusal(room.write(anybody, job, phase=Phase.RUNNING)), ForbiddenError)


@pytest.mark.parametrize(
    "status", [{"worker": OTHER_WORKER}, {"worker": None}, {"attempt": 2}, {"retries": 1}, {"suspects": 2}], ids=str
)
async def test_binding_and_counting_are_not_the_workers(room: Room, clients: Clients, status: dict[str, Any]) -> None:
    job = await in_phase(room, clients, Phase.SCHEDULED)
    error = await refusal(room.write(clients[Writer.WORKER], job, phase=Phase.RUNNING, **status))
    assert isinstance(error, ForbiddenError)
    assert "the operator's" in error.message


async def test_a_worker_that_lost_its_job_is_heard_no_more(room: Room, clients: Clients) -> None:
    job = await in_phase(room, clients, Phase.RUNNING)
    rebound = {"phase": Phase.SCHEDULED, "worker": OTHER_WORKER, "attempt": 2}
    await room.write(clients[Writer.OPERATOR], job, **rebound)
    assert isinstance(await refusal(room.write(clients[Writer.WORKER], job, phase=Phase.SUCCEEDED)), ForbiddenError)


async def test_a_report_of_an_earlier_attempt_changes_nothing(room: Room, clients: Clients) -> None:
    """Bound to the same worker again, only the attempt tells the two apart."""
    job = await in_phase(room, clients, Phase.RUNNING)
    rebound = await room.write(clients[Writer.OPERATOR], job, phase=Phase.SCHEDULED, attempt=2)

    def report(attempt: int) -> list[dict[str, Any]]:
        return [
            {"op": "test", "path": "/status/attempt", "value": attempt},
            {"op": "replace", "path": "/status/phase", "value": Phase.SUCCEEDED},
        ]

    late = room.try_patch(job.name, report(1), clients[Writer.WORKER], "status")
    assert isinstance(await refusal(late), InvalidError)
    assert await room.client.generation_jobs.get(room.namespace, job.name) == rebound
    await room.try_patch(job.name, report(2), clients[Writer.WORKER], "status")


async def test_attempts_never_count_backwards(room: Room, clients: Clients) -> None:
    job = await in_phase(room, clients, Phase.SCHEDULED)
    error = await refusal(room.write(clients[Writer.OPERATOR], job, attempt=0))
    assert isinstance(error, InvalidError)
    assert "attempt never goes back" in error.message


async def test_a_write_over_a_state_that_was_never_seen_is_a_conflict(room: Room, clients: Clients) -> None:
    job = await room.create()
    await room.write(clients[Writer.OPERATOR], job, **ONE_MORE_WORD)
    patch = {"metadata": {"resourceVersion": job.metadata.resource_version}, "status": {"phase": Phase.FAILED}}
    error = await refusal(room.try_patch(job.name, patch, clients[Writer.OPERATOR], "status"))
    assert error is not None
    assert error.status == 409


async def test_a_worker_may_read_jobs_and_nothing_beside(room: Room, worker: KubernetesClient) -> None:
    job = await room.bound(room.client, WORKER)
    jobs, _ = await worker.generation_jobs.list(room.namespace, field_selector=f"status.worker={WORKER}")
    assert job.name in {found.name for found in jobs}
    assert {found.status.worker for found in jobs} == {WORKER}
    core = {"group": "api/v1"}
    refused = {
        "create a job": worker.generation_jobs.create(room.namespace, a_job()),
        "change a spec": worker.generation_jobs.patch(room.namespace, job.name, {"spec": {"priority": 9}}),
        "delete a job": worker.generation_jobs.delete(room.namespace, job.name),
        "read its Secret": worker.request("GET", room.path("secrets", "kubediffusion-s3", **core)),
        "list Secrets": worker.request("GET", room.path("secrets", **core)),
        "list Pods": worker.request("GET", room.path("pods", **core)),
        "read models": worker.diffusion_models.list(room.namespace),
        "read another namespace": worker.generation_jobs.list("default"),
        "read all namespaces": worker.generation_jobs.list(None),
    }
    answers = {what: type(await refusal(request)) for what, request in refused.items()}
    assert answers == dict.fromkeys(refused, ForbiddenError)


async def test_the_operator_neither_makes_jobs_nor_reads_secrets(room: Room, operator: KubernetesClient) -> None:
    job = await room.create()
    refused = {
        "create a job": operator.generation_jobs.create(room.namespace, a_job()),
        "read Secrets": operator.request("GET", room.path("secrets", group="api/v1")),
        "make a Pod": operator.request("POST", room.path("pods", group="api/v1"), body={}),
        "make an Event of the core": operator.request("POST", room.path("events", group="api/v1"), body={}),
        "read a status alone": operator.request("GET", room.path("generationjobs", job.name, "status")),
    }
    answers = {what: type(await refusal(request)) for what, request in refused.items()}
    assert answers == dict.fromkeys(refused, ForbiddenError)


async def test_the_api_submits_and_cancels_and_writes_no_status(room: Room, sign_in: SignIn) -> None:
    async with sign_in("kubediffusion-api") as api:
        job = await api.generation_jobs.create(room.namespace, a_job())
        cancelled = await api.generation_jobs.patch(room.namespace, job.name, {"spec": {"cancel": True}})
        assert cancelled.spec.cancel
        assert isinstance(await refusal(room.write(api, job, phase=Phase.CANCELLED)), ForbiddenError)
        await api.generation_jobs.delete(room.namespace, job.name)


TOLD = {"delivered": ["completed"], "event": "completed", "attempts": 1, "responseStatus": 204}


@pytest.mark.parametrize("phase", Phase)
async def test_the_deliverer_writes_the_state_of_webhooks_and_nothing_else(
    room: Room, clients: Clients, deliverer: KubernetesClient, phase: Phase
) -> None:
    job = await in_phase(room, clients, phase)
    changes: list[dict[str, Any]] = [
        ONE_MORE_WORD,
        {"phase": Phase.RUNNING, "worker": None},
        {"attempt": 7},
        {"timings": {"queue": 1.0}},
        {"completionTime": "2030-01-01T00:00:00Z"},
    ]
    for change in changes:
        error = await refusal(room.try_patch(job.name, {"status": change | {"webhook": TOLD}}, deliverer, "status"))
        assert isinstance(error, ForbiddenError | InvalidError), change
    written = await room.write(deliverer, job, webhook=TOLD)
    assert written.status.webhook is not None
    assert written.status.model_copy(update={"webhook": None}) == job.status


@pytest.mark.parametrize("phase", [Phase.SCHEDULED, Phase.RUNNING, Phase.SUCCEEDED])
async def test_the_state_of_webhooks_is_the_deliverers_alone(
    room: Room, clients: Clients, deliverer: KubernetesClient, phase: Phase
) -> None:
    job = await in_phase(room, clients, phase)
    for state in (TOLD, {"attempts": 1}):
        for client in clients.values():
            error = await refusal(room.try_patch(job.name, {"status": {"webhook": state}}, client, "status"))
            assert isinstance(error, ForbiddenError)
            assert "status.webhook is the deliverer's" in error.message
    await room.write(deliverer, job, webhook=TOLD)
    for client in clients.values():
        error = await refusal(room.try_patch(job.name, {"status": {"webhook": None}}, client, "status"))
        assert isinstance(error, ForbiddenError)


async def test_reports_and_deliveries_leave_each_other_alone(
    room: Room, clients: Clients, deliverer: KubernetesClient
) -> None:
    job = await in_phase(room, clients, Phase.RUNNING)
    started = {"delivered": ["started"], "event": "started", "attempts": 1}
    await room.write(deliverer, job, webhook=started)
    ended = await room.write(clients[Writer.WORKER], job, phase=Phase.SUCCEEDED)
    assert ended.status.webhook is not None
    told = await room.write(deliverer, job, webhook={**TOLD, "delivered": ["started", "completed"]})
    assert told.status.phase is Phase.SUCCEEDED


async def test_a_webhook_is_asked_for_by_those_alone_who_may(room: Room, sign_in: SignIn) -> None:
    body = a_job("told", webhook={"url": "https://example.com"})
    path = room.path("generationjobs")

    async def try_as(account: str) -> Any:
        async with sign_in(account) as client:
            return await refusal(client.request("POST", path, query={"dryRun": "All"}, body=body))

    assert await try_as("kubediffusion-api") is None
    # A right to create jobs, and no more.
    rights = {"apiGroups": ["kubediffusion.io"], "resources": ["generationjobs"], "verbs": ["create", "list"]}
    name = "without-webhooks"
    grouped = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    await room.client.request("POST", room.path("serviceaccounts", group="api/v1"), body={"metadata": {"name": name}})
    role = {**grouped, "kind": "Role", "rules": [rights]}
    binding = {
        **grouped,
        "kind": "RoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": room.namespace}],
    }
    for plural, manifest in (("roles", role), ("rolebindings", binding)):
        where = room.path(plural, group="apis/rbac.authorization.k8s.io/v1")
        await room.client.request("POST", where, body=manifest)
    error = await try_as(name)
    assert isinstance(error, ForbiddenError)
    assert "spec.webhook: nobody delivers webhooks here, or you may not ask for them" in error.message
