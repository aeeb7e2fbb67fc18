"""The Python client against a real API: images, handles, lists, errors, what is lost on the way, and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

from chaos.proxy import Disturbance, Proxy
from integration.api.api_kit import Api, Site, Stage, free_port, png
from integration.client.conftest import REFUSED, UNDRAWN
from kubediffusion.client import (
    AsyncClient,
    Client,
    ConflictError,
    CorruptImageError,
    ImageGoneError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    KubeDiffusionError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UnreachableError,
    WaitTimeoutError,
)
from kubediffusion.local.testing import eventually, wait_for
from kubediffusion.resources.generation_job import GenerationJobSpec


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url) as client:
        yield client


@pytest.fixture
async def async_client(api: Api) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(api.url) as client:
        yield client


def named(api: Api, prompt: str) -> list[dict[str, Any]]:
    """Jobs of a prompt."""
    jobs: list[dict[str, Any]] = api.http.get("/v1/jobs", params={"limit": 500}).json()["jobs"]
    return [job for job in jobs if job["prompt"] == prompt]


def test_a_prompt_gives_pictures(client: Client, tmp_path: Path) -> None:
    seen: list[str] = []
    one, two = client.generate(
        "a fox", count=2, seed=7, steps=9, guidance=3, size="64x128", negative="dogs", priority=3,
        on_change=lambda job: seen.append(job.phase),
    )  # fmt: skip
    assert (one.data, two.data) == (png(size=16), png(size=24))
    assert [one.seed, two.seed] == [7, 8]
    assert two.pillow().size == (24, 24)
    assert one.save(tmp_path / "fox.png").read_bytes() == one.data
    with Image.open(one.save(tmp_path / "fox.jpg")) as saved:
        assert saved.format == "JPEG"
    assert seen[-1] == "Succeeded"
    request = client.jobs.get(one.job).view.request
    asked = request.model_dump(exclude_none=True, exclude={"ttl_seconds_after_finished"})
    assert asked == {
        "prompt": "a fox", "num_images": 2, "seed": 7, "num_inference_steps": 9, "guidance_scale": 3, "width": 64,
        "height": 128, "negative_prompt": "dogs", "priority": 3,
    }  # fmt: skip


async def test_the_same_without_blocking(async_client: AsyncClient) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(async_client.generate(f"a fox {number}")) for number in range(3)]
    assert {task.result()[0].data for task in tasks} == {png()}


def test_the_synchronous_client_works_within_an_event_loop(client: Client) -> None:
    async def notebook() -> int:
        return len(client.generate("a fox in a notebook"))

    assert asyncio.run(notebook()) == 1


def test_a_handle_shows_waits_and_cancels(client: Client, client_stage: Stage) -> None:
    job = client.submit(GenerationJobSpec(prompt=f"{UNDRAWN} at once", seed=5), steps=4)
    assert (job.view.request.seed, job.view.request.num_inference_steps) == (5, 4)
    client_stage.waits(job.name, "WorkersBusy", "all at capacity")
    wait_for("the reason", lambda: job.refresh().waiting)
    waiting = job.view.waiting
    assert waiting is not None
    assert (waiting.reason, job.view.queue_position is not None) == ("WorkersBusy", True)
    with pytest.raises(WaitTimeoutError) as late:
        job.wait(timeout=0.2)
    assert late.value.job.phase == "Pending"
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.wait(timeout=30)
    job.delete()
    with pytest.raises(NotFoundError):
        client.jobs.get(job.name)


def test_what_has_finished_is_not_cancelled(client: Client) -> None:
    job = client.submit("done")
    job.wait()
    with pytest.raises(ConflictError, match="finished"):
        job.cancel()


def test_a_job_is_drawn_again_with_its_seed_or_another(client: Client) -> None:
    job = client.submit("again", steps=3)
    job.wait()
    ran = job.view.parameters
    assert ran is not None
    assert job.again().view.request.seed == ran.seed
    another = job.again(seed=99, steps=4).view.request
    assert (another.prompt, another.seed, another.num_inference_steps) == ("again", 99, 4)


def test_lists_go_on_over_pages(client: Client) -> None:
    names = {client.submit(f"page {number}").name for number in range(5)}
    listed = [job.name for job in client.jobs.list(page_size=2)]
    assert names <= set(listed)
    assert len(listed) == len(set(listed))
    assert {job.phase for job in client.jobs.list(phase=["Succeeded", "Failed"], page_size=3)} <= {
        "Succeeded",
        "Failed",
    }


def test_models_say_what_they_take(client: Client) -> None:
    model = client.models.get("tiny")
    assert (model.default, model.limits.num_images) == (True, 4)
    assert model.defaults["num_inference_steps"] == 50
    with pytest.raises(NotFoundError):
        client.models.get("none")


@pytest.mark.parametrize(
    ("fields", "field", "word"),
    [
        ({"steps": 100_000}, "num_inference_steps", "1000"),
        ({"stepz": 3}, "stepz", "Unknown field"),
        ({"size": "wide"}, "size", "512x768"),
        ({"model": "none"}, "model", "none"),
        ({"acceleration": {"feature_caching": {"interval": 0}}}, "acceleration.feature_caching.interval", "1"),
    ],
)
def test_a_field_is_refused_by_name(client: Client, fields: dict[str, Any], field: str, word: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        client.submit("a fox", **fields)
    assert refused.value.field == field
    assert word in refused.value.reason
    assert refused.value.remedy


def test_a_failed_job_says_why(client: Client) -> None:
    with pytest.raises(JobFailedError, match="take another") as failed:
        client.generate(REFUSED)
    assert failed.value.code == "InvalidJob"


def test_what_storage_lost_or_changed_is_no_image(client: Client, client_stage: Stage, client_site: Site) -> None:
    job = client.submit("stored")
    image = job.wait().images[0]
    client_stage.overwrite(image.uri, png("tan"))
    with pytest.raises(CorruptImageError):
        job.images()
    client_stage.remove(image.uri)
    uncached = client_site.start(RATE_LIMIT="", IMAGE_CACHE_BYTES="0")
    with Client(uncached.url, retry_seconds=0) as other, pytest.raises(ImageGoneError):
        other.jobs.get(job.name).images()


def test_keys_are_sent_and_asked_for(client_site: Site, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "alice").write_text("secret")
    url = client_site.start(API_KEYS_FILE=str(keys)).url
    for key in (None, "wrong"):
        with Client(url, key) as client, pytest.raises(PermissionDeniedError) as refused:
            client.submit("a fox")
        assert "KUBEDIFFUSION_API_KEY" in refused.value.remedy
    with Client(url, "secret") as client:
        assert client.submit("a fox").view.phase == "Pending"


def test_nobody_there(tmp_path: Path) -> None:
    with Client(f"127.0.0.1:{free_port()}", retry_seconds=0) as client, pytest.raises(UnreachableError):
        client.models.list()


def test_somebody_else_there(client_site: Site, api: Api) -> None:
    with Client(f"{api.url}/docs/", retry_seconds=0) as client, pytest.raises(KubeDiffusionError):
        client.models.list()


@pytest.fixture
async def proxy(api: Api) -> AsyncIterator[Proxy]:
    proxy = Proxy(api.url, free_port(), seed=1)
    async with proxy.serving():
        yield proxy


async def test_a_lost_answer_makes_no_second_job(api: Api, proxy: Proxy) -> None:
    prompt = f"lost {uuid.uuid4()}"
    tries: list[str] = []
    async with AsyncClient(proxy.url, on_retry=lambda error, _: tries.append(error.reason)) as client:
        with proxy.disturbed(Disturbance(path="/v1/jobs", lose=True)):
            submitting = asyncio.create_task(client.submit(prompt))

            async def created_and_lost() -> bool:
                return bool(tries) and bool(await asyncio.to_thread(named, api, prompt))

            await eventually("the job is created and its answer lost", created_and_lost)
            assert not submitting.done()
        job = await submitting
        # A second one of that key would be this one, too.
        assert [found["name"] for found in await asyncio.to_thread(named, api, prompt)] == [job.name]


@pytest.mark.parametrize("disturbance", [Disturbance(refuse=True), Disturbance(answer=(503, b'{"detail": "away"}'))])
async def test_what_passes_is_waited_out(api: Api, proxy: Proxy, disturbance: Disturbance) -> None:
    tries: list[KubeDiffusionError] = []
    async with AsyncClient(proxy.url, on_retry=lambda error, _: tries.append(error)) as client:
        with proxy.disturbed(disturbance):
            generating = asyncio.create_task(client.generate("waited out"))

            async def tried() -> bool:
                return len(tries) >= 2

            await eventually("two tries", tried)
        assert (await generating)[0].data == png()
    async with AsyncClient(proxy.url, retry_seconds=0) as client:
        with proxy.disturbed(disturbance), pytest.raises(UnavailableError):
            await client.generate("not waited out")


async def test_whoever_is_cancelled_cancels_the_job(async_client: AsyncClient, api: Api) -> None:
    prompt = f"{UNDRAWN}: cancelled {uuid.uuid4()}"
    with anyio.move_on_after(1.0) as scope:
        await async_client.generate(prompt)
    assert scope.cancelled_caught
    [job] = await asyncio.to_thread(named, api, prompt)
    await asyncio.to_thread(api.wait_phase, job["name"], "Cancelled")


async def test_a_submission_that_is_cancelled_leaves_no_job_behind(api: Api, proxy: Proxy) -> None:
    prompt = f"{UNDRAWN}: half submitted {uuid.uuid4()}"
    async with AsyncClient(proxy.url) as client:
        with proxy.disturbed(Disturbance(path="/v1/jobs", lose=True)):
            submitting = asyncio.create_task(client.submit(prompt))

            async def created() -> bool:
                return bool(await asyncio.to_thread(named, api, prompt))

            await eventually("the job is created", created)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
    [job] = await asyncio.to_thread(named, api, prompt)
    await asyncio.to_thread(api.wait_phase, job["name"], "Cancelled")


def test_ctrl_c_cancels_what_was_started(api: Api) -> None:
    prompt = f"{UNDRAWN}: interrupted {uuid.uuid4()}"
    program = f"from kubediffusion.client import Client\nClient({api.url!r}).generate({prompt!r})"
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    [job] = wait_for("the job", lambda: named(api, prompt), 60)
    process.send_signal(signal.SIGINT)
    try:
        _, words = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        # Where its threads stand.
        _, words = process.communicate()
    assert words.strip().endswith("KeyboardInterrupt")
    api.wait_phase(job["name"], "Cancelled")
