"""What is owed survives the end of every part, and is told once where nothing ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from integration.api.faults import faulty_server
from integration.deliverer.deliverers import Jobs, Receiver, StartDeliverer, identity_in, verified
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources.apiserver.client import KubernetesClient

JOBS = 12


def test_what_is_owed_while_nobody_delivers_is_told_later(
    own_jobs: Jobs, receiver: Receiver, start_deliverer: StartDeliverer
) -> None:
    uids = {f"owed-{number}": own_jobs.ended(f"owed-{number}", receiver.url("200")) for number in range(JOBS)}
    assert not any(map(own_jobs.told, uids))
    first = start_deliverer()
    for name in uids:
        own_jobs.wait_delivered(name)
    assert [len(receiver.requests(uid)) for uid in uids.values()] == [1] * JOBS
    # Another one finds nothing to do.
    first.kill()
    second = start_deliverer()
    second.wait_leading()
    own_jobs.ended("last", receiver.url("200"))
    own_jobs.wait_delivered("last")
    assert [len(receiver.requests(uid)) for uid in uids.values()] == [1] * JOBS


def test_one_that_is_killed_while_it_tells_is_followed_by_one_that_tells_again(
    own_jobs: Jobs, receiver: Receiver, start_deliverer: StartDeliverer
) -> None:
    uid = own_jobs.ended("asked", receiver.url("silent"))
    first = start_deliverer()
    receiver.wait_for(uid, 1)
    assert not own_jobs.told("asked")
    first.kill()
    start_deliverer()
    before, after = receiver.wait_for(uid, 2)[:2]
    assert before["headers"]["webhook-id"] == after["headers"]["webhook-id"]
    assert verified(before) == verified(after)


def test_what_was_told_and_could_not_be_written_is_told_again(
    namespace: Namespace, own_jobs: Jobs, receiver: Receiver, start_deliverer: StartDeliverer, tmp_path: Path
) -> None:
    """The receiver answered, the API server is away, and then the deliverer is killed."""
    with faulty_server(identity_in(namespace), tmp_path) as proxy:
        uid = own_jobs.ended("unwritten", receiver.url("200"))
        proxy.faults.patches_away.set()
        first = start_deliverer(proxy.kubeconfig)
        receiver.wait_for(uid, 1)
        wait_for("the deliverer to miss the API server", lambda: "cannot write how a webhook went" in first.said())
        assert not own_jobs.told("unwritten")
        first.kill()
    start_deliverer()
    state = own_jobs.wait_delivered("unwritten")
    first_request, second_request = receiver.requests(uid)
    assert first_request["headers"]["webhook-id"] == second_request["headers"]["webhook-id"]
    assert state["attempts"] == 1


def test_while_the_api_server_is_away_nothing_is_told_twice(
    namespace: Namespace, own_jobs: Jobs, receiver: Receiver, start_deliverer: StartDeliverer, tmp_path: Path
) -> None:
    with faulty_server(identity_in(namespace), tmp_path) as proxy:
        process = start_deliverer(proxy.kubeconfig)
        process.wait_leading()
        proxy.faults.patches_away.set()
        uid = own_jobs.ended("patient", receiver.url("200"))
        receiver.wait_for(uid, 1)
        wait_for("the deliverer to miss the API server", lambda: "cannot write how a webhook went" in process.said())
        proxy.faults.patches_away.clear()
        own_jobs.wait_delivered("patient")
        assert len(receiver.requests(uid)) == 1


def test_of_two_replicas_one_delivers_and_the_other_follows(
    own_jobs: Jobs, receiver: Receiver, start_deliverer: StartDeliverer
) -> None:
    replicas = [start_deliverer(), start_deliverer()]
    for replica in replicas:
        replica.wait_ready()
    uids = [own_jobs.ended(f"two-{number}", receiver.url("200")) for number in range(JOBS)]
    for number in range(JOBS):
        own_jobs.wait_delivered(f"two-{number}")
    assert [len(receiver.requests(uid)) for uid in uids] == [1] * JOBS
    (leader,) = (replica for replica in replicas if replica.leads())
    (other,) = (replica for replica in replicas if replica is not leader)
    assert (leader.metric("kubediffusion_webhooks_leading"), other.metric("kubediffusion_webhooks_leading")) == (1, 0)
    # One that is stopped hands over, and what is under way comes to its end.
    assert leader.stop() == 0
    other.wait_leading()
    uid = own_jobs.ended("followed", receiver.url("200"))
    own_jobs.wait_delivered("followed")
    assert len(receiver.requests(uid)) == 1


async def test_a_delivery_costs_one_write_and_a_job_without_webhook_none(
    namespace: Namespace, own_jobs: Jobs, receiver: Receiver, start_deliverer: StartDeliverer, client: KubernetesClient
) -> None:
    """Every write of an object is a new resource version: the watch counts them."""
    jobs = client.generation_jobs
    _, version = await jobs.list(namespace.name)
    seen: dict[str, list[str]] = {}

    async def count() -> None:
        async for event in jobs.watch(namespace.name, version):
            if event.item is not None:
                seen.setdefault(event.item.name, []).append(event.item.metadata.resource_version)

    counting = asyncio.create_task(count())
    await asyncio.to_thread(start_deliverer)
    await asyncio.to_thread(own_jobs.ended, "with", receiver.url("200"))
    await asyncio.to_thread(own_jobs.stage.create, "without", {"prompt": "a fox"})
    await asyncio.to_thread(own_jobs.stage.complete, "without")
    await asyncio.to_thread(own_jobs.wait_delivered, "with")
    last = own_jobs.stage.job("with")["metadata"]["resourceVersion"]

    def counted() -> bool:
        return last in seen.get("with", ())

    await asyncio.to_thread(wait_for, "the watch", counted)
    counting.cancel()
    # Created, bound, running, succeeded; and told.
    assert (len(seen["with"]), len(seen["without"])) == (5, 4)
