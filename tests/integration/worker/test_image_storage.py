"""Storage fences attempts as status does, on a real S3 server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kubediffusion.local import binaries, installation
from kubediffusion.local.certificates import Authority
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.reservations import Reservations
from kubediffusion.local.s3 import ObjectStore
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.storage import ImageStorage, StorageError, SupersededError
from kubediffusion.worker.uploads import Uploader


@pytest.fixture(scope="module")
def with_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server of its own, whose certificate is of an authority that no machine knows."""
    folder = tmp_path_factory.mktemp("s3")
    with Reservations() as reservations:
        store = ObjectStore(
            folder, folder / "log", binaries.provide(), reservations, authority=Authority("company", folder)
        )
        try:
            store.process.start()
            store.process.wait_ready()
            store.create_bucket(installation.BUCKET)
            yield store
        finally:
            store.process.stop()


@pytest.fixture(params=["http", "https"])
def store(request: pytest.FixtureRequest, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 server that this process's settings name."""
    found: ObjectStore = cluster.store if request.param == "http" else request.getfixturevalue("with_tls")
    for name, value in found.settings.items():
        monkeypatch.setenv(name, value)
    assert found.endpoint.startswith(f"{request.param}://")
    return found


@pytest.fixture
def storage(store: ObjectStore) -> Iterator[ImageStorage]:
    images = ImageStorage(installation.BUCKET)
    yield images
    images.close()


def test_a_retry_overwrites_and_a_zombie_does_not(storage: ImageStorage) -> None:
    uri = storage.put("fence.png", b"first", 1)
    assert storage.put("fence.png", b"third", 3) == uri
    with pytest.raises(SupersededError):
        storage.put("fence.png", b"second", 2)
    assert storage.get(uri) == b"third"
    # The same attempt, whose first confirmation was lost.
    storage.put("fence.png", b"third again", 3)
    assert storage.get(uri) == b"third again"
    # An image that is gone can be written by anybody.
    storage.delete(uri)
    storage.put("fence.png", b"late", 1)
    assert storage.get(uri) == b"late"
    storage.delete(uri)


def test_of_many_writers_the_latest_attempt_stays(storage: ImageStorage) -> None:
    def put(attempt: int) -> None:
        try:
            storage.put("race.png", str(attempt).encode(), attempt)
        except (SupersededError, StorageError):
            assert attempt < last

    last = 8
    with ThreadPoolExecutor(last) as writers:
        list(writers.map(put, range(1, last)))
    put(last)
    assert storage.get(storage.uri("race.png")) == str(last).encode()
    storage.delete(storage.uri("race.png"))


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_both_kinds_of_checksums_are_taken(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, checksums: str) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", checksums)
    images = ImageStorage(installation.BUCKET)
    uri = images.put("sums.png", b"image", 1)
    assert images.get(uri) == b"image"
    images.delete(uri)
    images.close()


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_may_name_networks(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "10.0.0.0/8")
    proxied = ImageStorage(installation.BUCKET)
    with pytest.raises(StorageError):
        proxied.put("proxied.png", b"image", 1)
    proxied.close()
    monkeypatch.setenv(variable, "example.com, 10.0.0.0/8, 127.0.0.0/8")
    direct = ImageStorage(installation.BUCKET)
    uri = direct.put("direct.png", b"image", 1)
    assert direct.get(uri) == b"image"
    direct.delete(uri)
    direct.close()


def test_an_authority_that_nobody_named_is_not_trusted(with_tls: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in with_tls.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    images = ImageStorage(installation.BUCKET)
    with pytest.raises(StorageError, match="certificate verify failed") as refusal:
        images.put("untrusted.png", b"image", 1)
    assert not refusal.value.permanent
    images.close()


async def test_a_bucket_that_does_not_exist_fails_the_job(store: ObjectStore) -> None:
    nowhere = ImageStorage("no-such-bucket")
    with ThreadPoolExecutor(1) as threads, pytest.raises(JobFailure) as failure:
        await Uploader(nowhere, threads, 60.0).put("x.png", b"x", 1, lambda _: None)
    nowhere.close()
    assert failure.value.code == "StorageFailed"


async def test_storage_that_denies_access_fails_the_job_after_its_time(
    storage: ImageStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get through meanwhile, which is no reason to ask again at once."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-one")
    tries: list[float] = []

    class Denied(ImageStorage):
        def put(self, key: str, data: bytes, attempt: int) -> str:
            if key.startswith("others"):
                return storage.put(key, data, attempt)
            tries.append(time.monotonic())
            return super().put(key, data, attempt)

    denied = Denied(installation.BUCKET)
    problems: list[str] = []
    with ThreadPoolExecutor(2) as threads:
        uploader = Uploader(denied, threads, 4.0)
        waiting = asyncio.create_task(uploader.put("denied.png", b"x", 1, problems.append))
        for number in range(200):
            await uploader.put(f"others-{number % 4}.png", b"x", number, problems.append)
        with pytest.raises(JobFailure) as failure:
            await waiting
        # What cannot be deleted is left there.
        await asyncio.wait_for(Uploader(denied, threads, 0.5).delete("denied.png"), 20)
    denied.close()
    for number in range(4):
        storage.delete(storage.uri(f"others-{number}.png"))
    assert failure.value.code == "StorageFailed"
    assert failure.value.message.startswith("storage has refused the image for 4 s: cannot store s3://")
    assert "SignatureDoesNotMatch" in failure.value.message
    assert 4.0 <= tries[-1] - tries[0] < 20
    assert len(tries) <= 10
    assert problems
