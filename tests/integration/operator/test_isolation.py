"""What fails at one object concerns that one alone: it says so, is tried again, and everything else goes on.

No object that the API server takes is known to make the operator raise. So models are read here with a value in them
that raises when it is used; for jobs, of which the operator keeps its own copies, a defect is planted in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from integration.operator.operators import JOB, MODEL, bindable_worker, error_count, events_of, has_pod, without_watches
from kubediffusion.local.errors import NotInTimeError
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator import job_executor, job_status, namespace_state
from kubediffusion.operator.actions import Bind
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.resource import MERGE_PATCH, Resource
from kubediffusion.resources.conditions import Condition, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.texts import ELLIPSIS, MAX_MESSAGE


def named(name: str, **spec: Any) -> dict[str, Any]:
    """The manifest of another model, which is no default."""
    return {**MODEL, "metadata": {"name": name}, "spec": {**MODEL["spec"], **spec}}


def read_planted(client: KubernetesClient, plant: Callable[[DiffusionModel], DiffusionModel]) -> None:
    """Have a client read the model ``broken`` as the function returns it."""

    def transform(model: DiffusionModel) -> DiffusionModel:
        return plant(model) if model.name == "broken" else model

    base = f"/apis/{meta.API_VERSION}"
    client.diffusion_models = Resource(client, DiffusionModel, base, meta.DIFFUSION_MODELS, transform=transform)


async def availability(client: KubernetesClient, namespace: Namespace, name: str) -> Condition | None:
    model = await client.diffusion_models.get(namespace.name, name)
    return find_condition(model.status.conditions, "Available")


async def test_a_refusal_longer_than_a_condition_may_be_is_cut(namespace: Namespace, client: KubernetesClient) -> None:
    """The API server names each of 400 wrong tolerations, in more characters than it takes of a condition."""
    tolerations = [{"key": f"key-{n}", "operator": "Wrong", "effect": "Nowhere"} for n in range(400)]
    workers = {"minReplicas": 1, "tolerations": tolerations}
    await client.diffusion_models.create(namespace.name, named("broken", workers=workers))
    await client.diffusion_models.create(namespace.name, MODEL)
    broken = await client.generation_jobs.create(namespace.name, {**JOB, "spec": {"prompt": "a", "model": "broken"}})
    async with without_watches(namespace, client):

        async def told() -> bool:
            found = await availability(client, namespace, "broken")
            job = await client.generation_jobs.get(namespace.name, broken.name)
            waits = find_condition(job.status.conditions, "Scheduled")
            return bool(found and "tolerations[0]" in found.message and waits and waits.reason == "WorkerRefused")

        # The API server itself takes seconds for it, and its time limit of 30 on a busy machine.
        await eventually("the refusal to be told", told, 120)
        await eventually("the other model's worker", lambda: has_pod(namespace, "emoji"), 30)
    found = await availability(client, namespace, "broken")
    assert found is not None
    assert (len(found.message), found.message[-1]) == (MAX_MESSAGE, ELLIPSIS)


NOWHERE = "WorkerUnschedulable"
"""What there is to tell where the Pod is admitted: it asks for a node that there is not."""
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "queue": ({"queueName": "Not A Queue!"}, "Not A Queue!"),
    "no-kueue": ({"queueName": "nobody"}, "Kueue has not admitted"),
    "no-priority": ({"priorityClassName": "nope"}, "no PriorityClass with name nope"),
    "priority": ({"priorityClassName": "Not Valid!"}, "priorityClassName"),
    "no-runtime": ({"runtimeClassName": "nope"}, 'RuntimeClass "nope" not found'),
    "account": ({"serviceAccountName": "Not Valid!"}, "serviceAccountName"),
    "quantity": ({"resources": {"requests": {"cpu": "1e"}}}, "quantit"),
    "negative": ({"resources": {"requests": {"cpu": "-1"}}}, "must be greater than or equal to 0"),
    "too-much": ({"resources": {"requests": {"memory": "9Gi"}, "limits": {"memory": "1Gi"}}}, "memory limit of 1Gi"),
    "resource": ({"resources": {"requests": {"not a name/!": "1"}}}, "not a name/!"),
    "part-of-a-gpu": ({"resources": {"limits": {"nvidia.com/gpu": "500m"}}}, "must be an integer"),
    "no-name": ({"env": [{}]}, "name: Required value"),
    "number": ({"env": [{"name": "A", "value": 3}]}, "EnvVar"),
    "misspelled": ({"env": [{"name": "A", "valu": "3"}]}, "valu"),
    "large": ({"env": [{"name": "A", "value": "x" * 200_000}]}, NOWHERE),
    "toleration": ({"tolerations": [{"key": 5}]}, "Toleration"),
    "tolerations": ({"tolerations": [{"key": f"k{n}", "operator": "Exists"} for n in range(500)]}, NOWHERE),
    "affinity": ({"affinity": {"nodeAffinity": "x"}}, "affinity"),
    "pull-secret": ({"imagePullSecrets": [{"name": 5}]}, "imagePullSecrets"),
    "image": ({"image": " img"}, "image"),
    "selector": ({"nodeSelector": {"a b": "c d"}}, "a b"),
}


async def test_whatever_is_wrong_in_a_model_is_told_and_keeps_no_other(
    namespace: Namespace, client: KubernetesClient
) -> None:
    """All at once, so that each is in the way of the others as far as it can be; in 7 s on two busy cores."""
    for name, (wrong, _) in WRONG.items():
        body = named(name, workers={**MODEL["spec"]["workers"], **wrong})
        await client.diffusion_models.create(namespace.name, body)
        job = {**JOB, "metadata": {"name": name}, "spec": {"prompt": "a fox", "model": name}}
        await client.generation_jobs.create(namespace.name, job)
    untold = dict(WRONG)
    async with without_watches(namespace, client):
        await client.diffusion_models.create(namespace.name, named("good"))
        await eventually("the worker of the model that is right", lambda: has_pod(namespace, "good"), 10)

        async def all_told() -> bool:
            for name, (_, words) in list(untold.items()):
                job = await client.generation_jobs.get(namespace.name, name)
                waits = find_condition(job.status.conditions, "Scheduled")
                if waits is not None and words in f"{waits.reason} {waits.message}":
                    del untold[name]
            return not untold

        with suppress(NotInTimeError):
            await eventually("each job to say what is wrong", all_told, 30)
        assert not untold


async def test_a_model_at_which_a_decision_fails_says_so_and_stops_no_other(
    namespace: Namespace, client: KubernetesClient
) -> None:
    fails = [True]

    class Uncountable(int):
        """A number that everything may keep and write, and nobody compare."""

        def __lt__(self, other: int) -> bool:
            if fails[0]:
                raise OverflowError("secret words of a prompt")
            return int(self) < other

    def plant(model: DiffusionModel) -> DiffusionModel:
        workers = model.spec.workers.model_copy(update={"max_replicas": Uncountable(1)})
        return model.model_copy(update={"spec": model.spec.model_copy(update={"workers": workers})})

    read_planted(client, plant)
    before = error_count("DiffusionModel")
    for body in (named("broken"), MODEL):
        await client.diffusion_models.create(namespace.name, body)
    async with without_watches(namespace, client):

        async def told() -> bool:
            found = await availability(client, namespace, "broken")
            return found is not None and found.reason == "InternalError"

        await eventually("the model to say so", told, 30)
        await eventually("the other model's worker", lambda: has_pod(namespace, "emoji"), 30)

        async def recorded() -> bool:
            return ("Warning", "InternalError") in await events_of(namespace, "broken")

        await eventually("the Event", recorded, 30)
        found = await availability(client, namespace, "broken")
        assert found is not None
        assert "OverflowError" in found.message
        assert "secret" not in found.message
        assert error_count("DiffusionModel") > before
        fails[0] = False
        await eventually("the broken model's worker", lambda: has_pod(namespace, "broken"), 30)


async def test_a_job_at_which_a_decision_fails_says_so_and_the_others_are_bound(
    namespace: Namespace, client: KubernetesClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = [True]

    def next_status(action: Any, *arguments: Any) -> Any:
        if isinstance(action, Bind) and action.job.name == "a-bad-one" and fails[0]:
            raise OverflowError("secret words of a prompt")
        return job_status.next_status(action, *arguments)

    monkeypatch.setattr(job_executor, "next_status", next_status)
    # One place: a job that fails before the others must not hold it.
    await client.diffusion_models.create(namespace.name, named("emoji", workers=MODEL["spec"]["workers"]))
    before = error_count("GenerationJob")
    async with without_watches(namespace, client) as operator:
        pod = await bindable_worker(namespace, client)
        for name in ("a-bad-one", "good"):
            body = {**JOB, "metadata": {"name": name}, "spec": {"prompt": "a fox", "model": "emoji"}}
            operator.store.observe_job(await client.generation_jobs.create(namespace.name, body), deleted=False)

        async def bound(name: str) -> bool:
            return (await client.generation_jobs.get(namespace.name, name)).status.worker == pod

        await eventually("the good one to be bound", lambda: bound("good"), 30)

        async def told() -> bool:
            job = await client.generation_jobs.get(namespace.name, "a-bad-one")
            waits = find_condition(job.status.conditions, "Scheduled")
            return waits is not None and waits.reason == "InternalError" and "secret" not in waits.message

        await eventually("the bad one to say so", told, 30)

        async def recorded() -> bool:
            return ("Warning", "InternalError") in await events_of(namespace, "a-bad-one")

        await eventually("the Event", recorded, 30)
        assert error_count("GenerationJob") > before
        fails[0] = False
        await eventually("the bad one to be tried again", lambda: bound("a-bad-one"), 60)


async def test_a_job_that_cannot_be_taken_in_says_so_and_keeps_no_other_from_a_starting_operator(
    namespace: Namespace, client: KubernetesClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    for name in ("a-bad-one", "good"):
        await client.generation_jobs.create(namespace.name, {**JOB, "metadata": {"name": name}})
    update, fails = namespace_state.NamespaceState.update_job, [True]

    def update_job(state: namespace_state.NamespaceState, job: GenerationJob) -> None:
        if job.name == "a-bad-one" and fails[0]:
            raise OverflowError("date value out of range")
        update(state, job)

    monkeypatch.setattr(namespace_state.NamespaceState, "update_job", update_job)
    async with without_watches(namespace, client) as operator:

        async def known(*names: str) -> bool:
            return {job.name for job in operator.store.unfinished_jobs(namespace.name)} == set(names)

        await eventually("the good one to be known", lambda: known("good"), 10)

        async def told() -> bool:
            job = await client.generation_jobs.get(namespace.name, "a-bad-one")
            waits = find_condition(job.status.conditions, "Scheduled")
            return waits is not None and waits.reason == "InternalError"

        await eventually("the bad one to say so", told, 30)
        fails[0] = False
        await eventually("both to be known", lambda: known("good", "a-bad-one"), 60)


async def test_a_model_that_cannot_be_taken_in_keeps_no_other_from_a_starting_operator(
    namespace: Namespace, client: KubernetesClient
) -> None:
    for body in (named("broken"), MODEL):
        await client.diffusion_models.create(namespace.name, body)

    class Unreadable(dict[str, str]):
        def get(self, *_: Any) -> Any:
            raise OverflowError("date value out of range")

    def plant(model: DiffusionModel) -> DiffusionModel:
        metadata = model.metadata.model_copy(update={"annotations": Unreadable(model.metadata.annotations)})
        return model.model_copy(update={"metadata": metadata})

    read_planted(client, plant)
    async with without_watches(namespace, client):
        await eventually("the other model's worker", lambda: has_pod(namespace, "emoji"), 30)

        async def told() -> bool:
            found = await availability(client, namespace, "broken")
            return found is not None and found.reason == "InternalError"

        await eventually("the model to say so", told, 30)


DENIES_STATUS: list[dict[str, Any]] = [
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "denies-binding"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["kubediffusion.io"],
                        "apiVersions": ["v1alpha1"],
                        "operations": ["UPDATE"],
                        "resources": ["generationjobs/status"],
                    }
                ]
            },
            "validations": [{"expression": "object.status.phase != 'Scheduled'", "message": "nobody binds here"}],
        },
    },
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "denies-binding"},
        "spec": {
            "policyName": "denies-binding",
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "NAMESPACE"}}},
        },
    },
]


async def test_a_job_whose_status_is_refused_for_good_is_tried_ever_more_seldom_and_ends(
    namespace: Namespace, client: KubernetesClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_executor, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(job_executor, "MOST_REFUSALS", 5)
    await client.diffusion_models.create(namespace.name, MODEL)
    path = "/apis/admissionregistration.k8s.io/v1"
    policy, binding = DENIES_STATUS
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    binding = {**binding, "spec": {**binding["spec"], "matchResources": {"namespaceSelector": selector}}}
    await client.request("POST", f"{path}/validatingadmissionpolicies", body=policy)
    await client.request("POST", f"{path}/validatingadmissionpolicybindings", body=binding)
    try:
        probe = await client.generation_jobs.create(namespace.name, {**JOB, "spec": {"prompt": "-", "suspend": True}})

        async def in_force() -> bool:
            bound = {"status": {"phase": "Scheduled", "worker": "none", "attempt": 1}}
            query = {"dryRun": "All"}
            status = client.generation_jobs.path(namespace.name, probe.name, "status")
            try:
                await client.request("PATCH", status, query=query, body=bound, content_type=MERGE_PATCH)
            except KubernetesError:
                return True
            return False

        await eventually("the policy to be in force", in_force)
        async with without_watches(namespace, client) as operator:
            await bindable_worker(namespace, client)
            job = await client.generation_jobs.create(namespace.name, JOB)
            operator.store.observe_job(job, deleted=False)

            async def ended() -> bool:
                status = (await client.generation_jobs.get(namespace.name, job.name)).status
                return status.phase is Phase.FAILED

            await eventually("the job to end", ended, 60)
        refusals = [record.created for record in caplog.records if "Bind failed, trying again" in record.getMessage()]
        assert len(refusals) == 5
        # Each is twice the one before, cut by up to a half at random.
        first, *_, last = (after - before for before, after in pairwise(refusals))
        assert 0.05 <= first < last
        assert last >= 0.4
        failed = (await client.generation_jobs.get(namespace.name, job.name)).status
        assert failed.error is not None
        assert failed.error.code == "StatusRefused"
        assert "nobody binds here" in failed.error.message
        assert ("Warning", "StatusRefused") in await events_of(namespace, job.name)
    finally:
        for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            await client.request("DELETE", f"{path}/{plural}/denies-binding")
