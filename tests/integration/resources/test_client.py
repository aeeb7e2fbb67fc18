"""The client against a real API server: each refusal is an error of its class."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from integration.resources.identities import Room, SignIn, a_job, refusal
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import connect
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import (
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    KubernetesError,
    NotFoundError,
)
from kubediffusion.resources.apiserver.resource import EventType
from kubediffusion.resources.generation_job import Phase


async def test_what_is_not_there_is_not_found(room: Room) -> None:
    jobs = room.client.generation_jobs
    for request in (jobs.get(room.namespace, "none"), jobs.delete(room.namespace, "none")):
        error = await refusal(request)
        assert isinstance(error, NotFoundError)
        assert error.reason == "NotFound"


async def test_a_name_that_is_taken_is_a_conflict(own_room: Room) -> None:
    await own_room.create("taken")
    error = await refusal(own_room.create("taken"))
    assert isinstance(error, ConflictError)
    assert error.reason == "AlreadyExists"


async def test_another_object_of_the_same_name_is_not_deleted(own_room: Room) -> None:
    old = await own_room.create("fox")
    await own_room.client.generation_jobs.delete(own_room.namespace, "fox", old.uid)
    new = await own_room.create("fox")
    error = await refusal(own_room.client.generation_jobs.delete(own_room.namespace, "fox", old.uid))
    assert isinstance(error, ConflictError)
    assert await own_room.client.generation_jobs.get(own_room.namespace, "fox") == new


async def test_a_refused_spec_names_its_field_for_programs_too(room: Room) -> None:
    error = await refusal(room.create(width=100))
    assert isinstance(error, InvalidError)
    assert [cause["field"] for cause in error.details["causes"]] == ["spec.width"]


async def test_a_right_that_is_missing_is_forbidden(room: Room, sign_in: SignIn) -> None:
    async with sign_in("kubediffusion-worker") as worker:
        error = await refusal(worker.generation_jobs.create(room.namespace, a_job()))
    assert isinstance(error, ForbiddenError)
    assert not error.transient


async def test_a_token_that_nobody_issued_is_refused_for_good(cluster: LocalCluster, room: Room) -> None:
    async with await connect(cluster.admin) as client:
        configuration = client.configuration
        configuration.cert_file = configuration.key_file = None
        configuration.api_key = {"BearerToken": "Bearer made-up"}
        async with KubernetesClient(configuration) as nobody:
            error = await refusal(nobody.generation_jobs.list(room.namespace))
    assert error is not None
    assert (error.status, error.transient) == (401, False)


async def test_a_history_that_is_gone_is_said_to_be(own_room: Room) -> None:
    with pytest.raises(GoneError):
        async for _ in own_room.client.generation_jobs.watch(own_room.namespace, "1"):
            pass


async def test_a_server_that_does_not_answer_may_answer_later(cluster: LocalCluster) -> None:
    async with await connect(cluster.admin) as client:
        client.configuration.host = "https://127.0.0.1:9"
        error = await refusal(client.generation_jobs.list("default"))
        assert error is not None
        assert (error.status, error.transient) == (0, True)
        with pytest.raises(KubernetesError, match="does not answer"):
            async for _ in client.generation_jobs.watch("default", "1"):
                pass


async def test_a_watch_tells_of_each_change_with_the_version_to_go_on_from(own_room: Room) -> None:
    jobs = own_room.client.generation_jobs
    _, version = await jobs.list(own_room.namespace)
    created = await own_room.create("fox")
    cancelled = await own_room.write(own_room.client, created, phase=Phase.CANCELLED)
    await jobs.delete(own_room.namespace, "fox")
    seen: list[tuple[EventType, Any]] = []
    async with aclosing(jobs.watch(own_room.namespace, version)) as events:
        async for event in events:
            seen.append((event.type, event.item))
            assert event.item is None or event.resource_version == event.item.metadata.resource_version
            if event.type is EventType.DELETED:
                break
    assert [kind for kind, _ in seen] == [EventType.ADDED, EventType.MODIFIED, EventType.DELETED]
    assert [item for _, item in seen[:2]] == [created, cancelled]
