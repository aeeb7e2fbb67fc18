"""Streams of events, read by a real client from real replicas: order, resuming, ends, limits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai._streaming import SSEDecoder

from integration.api.api_kit import MODEL, Api, Site, Stage, StartApi, png
from integration.api.followers import Follower, following
from kubediffusion.local.layout import CHART
from kubediffusion.local.testing import wait_for
from kubediffusion.resources import meta

STREAMS = "kubediffusion_api_open_streams"


def events_of(name: str) -> str:
    return f"/v1/jobs/{name}/events"


def applied(stage: Stage, name: str, **labels: str) -> str:
    """Create a job as ``kubectl`` does."""
    manifest = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "metadata": {"name": name, "labels": labels}}
    stage.namespace.apply({**manifest, "spec": {"prompt": "a cat"}})
    return name


def shown(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.http.get(f"/v1/jobs/{name}").json()
    return found


@pytest.fixture(scope="module")
def quick(shared: Site) -> Api:
    """An API whose streams are never silent for long."""
    return shared.start(RATE_LIMIT="", STREAM_HEARTBEAT_SECONDS="0.05")


def test_a_job_is_followed_to_its_end(api: Api, stage: Stage) -> None:
    name = api.generate()
    lookups = api.metric("kubediffusion_api_lookups_total")
    with following(api, events_of(name)) as follower:
        assert follower.response is not None
        headers = follower.response.headers
        assert headers["Content-Type"].startswith("text/event-stream")
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
        first = follower.next(1)
        assert (first["phase"], first["attempt"]) == ("Pending", 0)
        assert first["queue_position"] >= 1
        stage.bind(name)
        assert follower.next(2)["attempt"] == 1
        stage.run(name, 1, 25)
        assert follower.next(3)["progress"] == "1/25"
        stage.run(name, 12, 25)
        assert follower.next(4)["progress"] == "12/25"
        stage.succeed(name, png(), warnings=("cut",))
        last = follower.next(5)
        wait_for("the end of the stream", follower.ended.is_set)
    phases = ["Pending", "Scheduled", "Running", "Running", "Succeeded"]
    assert follower.told == list(zip(["state"] * 4 + ["end"], phases, strict=True))
    # Each field is that of the view, and no read of the API server was needed.
    assert last == {field: value for field, value in shown(api, name).items() if field in last}
    assert len(last["images"]) == 1
    assert follower.events[0].retry == 2000
    assert api.metric("kubediffusion_api_lookups_total") == lookups


def test_why_it_waits_is_told_when_it_changes(api: Api, stage: Stage) -> None:
    name = api.generate()
    with following(api, events_of(name)) as follower:
        follower.next(1)
        for number, message in enumerate(("all 2 workers have their fill", "all 3 workers have their fill"), 2):
            stage.waits(name, "WorkersBusy", message)
            assert follower.next(number)["waiting"] == {"reason": "WorkersBusy", "message": message}


def test_the_place_in_the_queue_is_told_when_another_job_leaves_it(site: Site) -> None:
    api, stage = site.start(), site.stage
    ahead, name = api.generate(priority=1), api.generate()
    with following(api, events_of(name)) as follower:
        assert follower.next(1)["queue_position"] == 2
        stage.bind(ahead)
        assert follower.next(2)["queue_position"] == 1
    # The job itself is as it was: only the digest in the id tells the two apart.
    versions = {event.id.split("-")[0] for event in follower.events}
    assert len(versions) == 1
    assert len({event.id for event in follower.events}) == 2


def test_another_replica_goes_on_where_one_left_off(api: Api, replica: Api, stage: Stage) -> None:
    name = api.generate()
    stage.bind(name)
    with following(api, events_of(name)) as follower:
        wait_for("its worker", lambda: follower.events and follower.events[-1].json()["worker"])
    # Nothing has changed: nothing is told, until something does.
    with following(replica, events_of(name), follower.last_id) as second:
        stage.run(name, 1, 25)
        assert second.next(1)["progress"] == "1/25"
    # Much has changed: the present state is told at once, and what came between is not.
    for step in (2, 3):
        stage.run(name, step, 25)
    wait_for("the progress", lambda: shown(api, name)["progress"] == "3/25")
    with following(api, events_of(name), second.last_id) as third:
        assert third.next(1)["progress"] == "3/25"
        stage.succeed(name, png())
        third.until("end")
    assert third.told == [("state", "Running"), ("end", "Succeeded")]
    # Its end is known: a browser that is told 204 comes back no more.
    wait_for("the end", lambda: shown(replica, name)["phase"] == "Succeeded")
    answer = replica.http.get(events_of(name), headers={"Last-Event-ID": third.last_id})
    assert (answer.status_code, answer.content) == (204, b"")
    # Who does not know its end is told, however late.
    for told in (second.last_id, "", "0", "no id of ours", "999999999999999999999999"):
        with following(replica, events_of(name), told) as late:
            wait_for("the end of the stream", late.ended.is_set)
        assert late.told == [("end", "Succeeded")]


def test_a_change_of_metadata_is_no_other_state(api: Api, stage: Stage) -> None:
    name = api.generate()
    with following(api, events_of(name)) as follower, following(api, "/v1/events") as many:
        many.until("state", name)
        stage.namespace.kubectl("annotate", "generationjob", name, "example.com/a=b")
        version = stage.job(name)["metadata"]["resourceVersion"]
        stage.cancelled(name)
        follower.until("end")
        many.until("end", name)
    assert follower.told == [("state", "Pending"), ("end", "Cancelled")]
    told = [event for event in many.events if event.event != "bookmark" and event.json()["name"] == name]
    assert [event.event for event in told] == ["state", "end"]
    assert int(told[-1].id) > int(version)


def test_a_job_that_is_deleted(api: Api, replica: Api) -> None:
    name = api.generate()
    with following(replica, events_of(name)) as follower:
        follower.next(1)
        assert api.http.delete(f"/v1/jobs/{name}").status_code == 204
        assert follower.until("deleted").json() == {"name": name}
        wait_for("the end of the stream", follower.ended.is_set)
    assert follower.told == [("state", "Pending"), ("deleted", "")]
    gone = replica.http.get(events_of(name), headers={"Last-Event-ID": follower.last_id})
    assert (gone.status_code, gone.json()) == (410, {"detail": "The job has been deleted."})
    # Who has followed nothing hears what GET says.
    unknown = replica.http.get(events_of(name))
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Task ID not found."})


def test_a_client_that_hangs_up(api: Api) -> None:
    before = api.metric(STREAMS)
    with following(api, events_of(api.generate())) as follower:
        follower.next(1)
        assert api.metric(STREAMS) == before + 1
    wait_for("the end of the stream", lambda: api.metric(STREAMS) == before)


def test_head_has_the_headers_alone(api: Api) -> None:
    for path in (events_of(api.generate()), "/v1/events"):
        answer = api.http.head(path)
        assert (answer.status_code, answer.headers["X-Accel-Buffering"]) == (200, "no")


def lines_of(api: Api, path: str) -> Iterator[bytes]:
    """Read the lines of a stream as they are on the wire."""
    with httpx.Client(timeout=30, trust_env=False) as client, client.stream("GET", api.url + path) as response:
        for line in response.iter_lines():
            yield line.encode()


@pytest.mark.parametrize("many", [False, True])
def test_silence_is_broken_by_comments(quick: Api, many: bool) -> None:
    lines = lines_of(quick, "/v1/events?label=nobody" if many else events_of(quick.generate()))
    found = [next(lines) for _ in range(12)]
    assert found[:2] == [b": kubediffusion", b"retry: 2000"]
    assert found[-3:] == [b": waiting"] * 3
    # A comment that were an event of its own would be one without data for simple parsers.
    assert found.count(b"") == 1


def test_another_parser_reads_the_same(quick: Api, stage: Stage) -> None:
    name = quick.generate()
    stage.complete(name, png())
    quick.wait_phase(name, "Succeeded")
    events = list(SSEDecoder().iter_bytes(line + b"\n" for line in lines_of(quick, events_of(name))))
    with following(quick, events_of(name)) as follower:
        follower.until("end")
    assert [(event.event, event.json()) for event in events] == [("end", follower.events[0].json())]


def test_a_stop_ends_the_streams_and_another_replica_takes_over(
    start_api: StartApi, replica: Api, stage: Stage
) -> None:
    api = start_api()
    name = api.generate()
    with following(api, events_of(name)) as one, following(api, "/v1/events") as many:
        one.next(1)
        many.until("bookmark")
        began = time.monotonic()
        os.kill(api.pid, signal.SIGTERM)
        wait_for("the end of the streams", lambda: one.ended.is_set() and many.ended.is_set())
        assert api.stop() == 0
        # A request under way would have had 20 seconds.
        assert time.monotonic() - began < 15
    assert one.told == [("state", "Pending")]
    stage.cancelled(name)
    with (
        following(replica, events_of(name), one.last_id) as resumed,
        following(replica, "/v1/events", many.last_id) as all_,
    ):
        resumed.until("end")
        all_.until("end", name)


def test_many_jobs_are_followed(site: Site) -> None:
    api, stage = site.start(), site.stage
    stage.model("other", default=False)
    over, old = api.generate("over"), api.generate("old")
    stage.cancelled(over)
    wait_for("the end", lambda: shown(api, over)["phase"] == "Cancelled")
    red = applied(stage, "red", color="red", shape="round")
    wait_for("the job", lambda: "name" in shown(api, red))
    paths = {
        "all": "/v1/events",
        "red": "/v1/events?label=color%3Dred&label=shape",
        "blue": "/v1/events?label=color%3Dblue",
        "ends": "/v1/events?phase=Succeeded&phase=Failed&phase=Cancelled",
        "default": f"/v1/events?model={MODEL}",
        "other": "/v1/events?model=other",
    }
    streams = {what: Follower(api, path, {}) for what, path in paths.items()}
    for stream in streams.values():
        stream.until("bookmark")
    new = api.generate("new", model="other")
    blue = applied(stage, "blue", color="blue")
    for name in (old, red, new, blue):
        stage.cancelled(name)
        streams["all"].until("end", name)
    assert api.http.delete(f"/v1/jobs/{old}").status_code == 204
    streams["all"].until("deleted", old)
    for what, name in (("red", red), ("blue", blue), ("other", new), ("default", blue), ("ends", blue)):
        streams[what].until("end", name)
    for what in ("default", "ends"):
        streams[what].until("deleted", old)
    for stream in streams.values():
        stream.hang_up()
    # What had finished is not told to who has just come.
    assert over not in {name for _, name in told(streams["all"])}
    assert told(streams["red"]) == [("state", red), ("end", red)]
    assert told(streams["blue"])[-1] == ("end", blue)
    assert [name for _, name in told(streams["other"])][-1] == new
    assert told(streams["ends"]) == [*(("end", name) for name in (old, red, new, blue)), ("deleted", old)]
    assert {name for _, name in told(streams["default"])} == {old, red, blue}
    ids = [int(event.id) for event in streams["all"].events]
    assert ids == sorted(ids)
    # A list has the same filters.
    assert {job["name"] for job in api.http.get("/v1/jobs?label=color").json()["jobs"]} == {red, blue}


def told(follower: Follower) -> list[tuple[str, str]]:
    """Type and job of each event but bookmarks."""
    return [(event.event, event.json()["name"]) for event in follower.events if event.event != "bookmark"]


def is_gone(api: Api, name: str) -> bool:
    return api.http.get(f"/results/{name}").status_code == 404


def test_many_jobs_are_followed_from_replica_to_replica(site: Site) -> None:
    """Whoever hops between replicas misses the end of no job, and is told none twice."""
    replicas = [site.start(), site.start()]
    names = [replicas[number % 2].generate(f"number {number}") for number in range(12)]
    last_id, ends, deleted = None, [], []
    for number, name in enumerate(names):
        with following(replicas[number % 2], "/v1/events", last_id) as follower:
            site.stage.cancelled(name)
            follower.until("end", name)
            last_id = follower.last_id
        ends += [found for kind, found in told(follower) if kind == "end"]
        # While nobody listens.
        if number % 3 == 0:
            assert replicas[0].http.delete(f"/v1/jobs/{name}").status_code == 204
            deleted.append(name)
            for api in replicas:
                wait_for("the deletion", partial(is_gone, api, name))
    with following(replicas[0], "/v1/events", last_id) as follower:
        follower.until("bookmark")
    assert ends == names
    assert [name for kind, name in told(follower) if kind == "deleted"] == deleted[-1:] * (len(names) % 3 == 1)


@pytest.mark.parametrize("query", ["label=%3Dx", "label=a%3Db%3Dc", "label=", "phase=Gone", "label=a%20b"])
def test_a_filter_that_is_none(api: Api, query: str) -> None:
    answer = api.http.get(f"/v1/events?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["query", query.partition("=")[0]]


def test_streams_have_limits(start_api: StartApi, tmp_path: Path) -> None:
    for client in ("alice", "bob", "carol"):
        (tmp_path / client).write_text(f"key of {client}")
    api = start_api(API_KEYS_FILE=str(tmp_path), MAX_STREAMS="3", MAX_STREAMS_BY_CLIENT="2",
                    STREAM_HEARTBEAT_SECONDS="0.05")  # fmt: skip

    def key(client: str) -> dict[str, str]:
        return {"X-API-Key": f"key of {client}"}

    assert api.http.get("/v1/events").status_code == 401
    assert api.http.get("/v1/events", headers=key("nobody")).status_code == 403
    streams = [Follower(api, "/v1/events", key("alice")) for _ in range(2)]
    refused = api.http.get("/v1/events", headers=key("alice"))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    assert "of this client" in refused.json()["detail"]
    streams.append(Follower(api, "/v1/events", key("bob")))
    assert "3 streams" in api.http.get("/v1/events", headers=key("carol")).json()["detail"]
    # Who goes makes room; and whose key is withdrawn goes.
    streams[0].hang_up()
    wait_for("room", lambda: api.metric(STREAMS) == 2)
    (tmp_path / "bob").unlink()
    wait_for("the end of the stream", streams[2].ended.is_set)
    assert not streams[1].ended.is_set()
    with following(api, "/v1/events", **key("carol")):
        assert api.metric(STREAMS) == 2
    streams[1].hang_up()


def test_two_thousand_streams_fit_into_a_replica_s_memory(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    """The chart's default cap of open streams, within the chart's memory limit."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())["api"]
    limit = int(values["resources"]["limits"]["memory"].removesuffix("Mi"))
    count = values["maxStreams"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        api = site.start(RATE_LIMIT="", MAX_STREAMS=str(count), MAX_STREAMS_BY_CLIENT="0")
        names = [api.generate(f"number {number}") for number in range(100)]
        before = resident_mebibytes(api.pid)
        with contextlib.ExitStack() as stack:
            for number in range(count):
                path = "/v1/events" if number % 10 == 0 else events_of(names[number % 100])
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            wait_for("all streams", lambda: api.metric(STREAMS) == count, 60)
            assert api.http.get("/v1/events").status_code == 429
            # All are told of changes, though none of them is read.
            for name in names:
                site.stage.cancelled(name)
            wait_for("the ends", lambda: api.metric(STREAMS) == count / 10, 60)
            used = resident_mebibytes(api.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    record_property("kibibytes_a_stream", (used - before) * 1024 / count)
    assert used < limit * 0.75


def resident_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
