"""Where compiled code is kept, and under which name."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from kubediffusion.worker.compile_cache import (
    CacheStore,
    CompiledCodeCache,
    FolderStore,
    S3Store,
    cache_key,
    pack,
    store_factory,
    unpack,
)
from kubediffusion.worker.execution.compile import artifacts
from kubediffusion.worker.execution.compile.artifacts import Artifacts, Saving
from kubediffusion.worker.settings import Settings
from unit.worker.worker_builders import INFO, image_request, settings

VERSIONS = {"torch": "2.15.0+cu132", "triton": "3.9.0"}
REVISION = "sha256:0a/b"


def test_what_was_compiled_is_kept_by_all_that_it_depends_on() -> None:
    name = cache_key(REVISION, "NVIDIA H200", "float16", VERSIONS)
    assert name == "sha256-0a-b/NVIDIA-H200_float16/torch-2.15.0-cu132_triton-3.9.0"
    others = {
        cache_key("sha256:1", "NVIDIA H200", "float16", VERSIONS),
        cache_key(REVISION, "NVIDIA A100", "float16", VERSIONS),
        cache_key(REVISION, "NVIDIA H200", "bfloat16", VERSIONS),
        cache_key(REVISION, "NVIDIA H200", "float16", VERSIONS | {"triton": "3.10.0"}),
    }
    assert len({name, *others}) == 5


def place(given: Settings) -> CacheStore:
    make = store_factory(given)
    assert make is not None
    return make()


def test_a_place_is_the_models_choice(tmp_path: Path) -> None:
    bucket = settings(tmp_path, compile=True, compileCache={"s3": {"uri": "s3://cache/compiled"}})
    assert isinstance(place(bucket), S3Store)
    volume = settings(tmp_path, compile=True, compileCache={"persistentVolumeClaim": {"claimName": "compiled"}})
    place(volume.model_copy(update={"compile_cache_path": tmp_path / "mounted"})).put("a/b.zip", b"x")
    assert (tmp_path / "mounted" / "a" / "b.zip").read_bytes() == b"x"
    # Nobody would read what lies beside a worker: it is gone with its Pod.
    assert store_factory(settings(tmp_path, compile=True)) is None


def test_a_file_is_there_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = FolderStore(tmp_path)
    assert folder.get("a.zip") is None
    folder.put("a.zip", b"one")
    folder.put("a.zip", b"two")
    assert folder.get("a.zip") == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_place_that_cannot_be_read_is_an_empty_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "made" / "a.zip").mkdir(parents=True)
    (tmp_path / "made" / "b.zip").write_bytes(b"no archive")
    cache = CompiledCodeCache(lambda: FolderStore(tmp_path), "made")
    assert [cache.get(name) for name in ("b.zip", "c.zip")] == [[], []]
    assert caplog.text.count("an entry of the compile cache is broken") == 1
    assert cache.get("a.zip") == []
    assert caplog.text.count("the compile cache cannot be read") == 1
    # It is not asked again and again: each time might take as long as storage lets it wait.
    cache.put("d.zip", [b"one"])
    assert cache.flush(10)
    assert cache.get("d.zip") == []
    assert caplog.text.count("the compile cache cannot be read") == 1


def test_what_cannot_be_written_is_tried_again_and_of_one_name_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "folder"
    in_the_way.write_text("a file where the folder should be")
    failed = threading.Event()

    class Watched(FolderStore):
        def put(self, name: str, data: bytes) -> None:
            try:
                super().put(name, data)
            except OSError:
                failed.set()
                raise

    cache = CompiledCodeCache(lambda: Watched(in_the_way), "made", first_pause=0.01)
    cache.put("a.zip", [b"one"])
    cache.put("b.zip", [b"another", b"in two parts"])
    assert failed.wait(10)
    cache.put("a.zip", [b"two"])
    assert not cache.flush(0)
    in_the_way.unlink()
    assert cache.flush(10)
    assert cache.get("a.zip") == [b"two"]
    assert cache.get("b.zip") == [b"another", b"in two parts"]
    assert caplog.text.count("the compile cache cannot be written") == 1
    assert "let workers write to the claim or folder that spec.compileCache of the DiffusionModel names" in caplog.text


def test_several_parts_are_one_file_and_a_broken_one_holds_nothing(tmp_path: Path) -> None:
    parts = [b"one" * 20, b"two"]
    packed = pack(parts)
    assert unpack(packed) == parts
    cache, file = CompiledCodeCache(lambda: FolderStore(tmp_path), "made"), tmp_path / "made" / "a.zip"
    file.parent.mkdir()
    for length in range(len(packed)):
        file.write_bytes(packed[:length])
        assert cache.get("a.zip") == []
    for bit in range(8 * len(packed)):
        broken = bytearray(packed)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        assert cache.get("a.zip") == []


class Given:
    """In the place of storage: what is there, and who writes to it fails."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    def get(self, _name: str) -> list[bytes]:
        return self._parts

    def put(self, *_: Any) -> None:
        pytest.fail("there was nothing to keep")


def test_a_cache_that_is_of_no_use_costs_nothing_else() -> None:
    for given in (Given(), Given(b"no artifacts")):
        cache: Any = given
        Artifacts(cache).load()


def test_nothing_is_kept_when_nothing_was_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache: Any = Given()
    made, asked = Artifacts(cache), []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: asked.append(True))
    made.save()
    assert asked == [True]
    assert caplog.text == ""

    def fails() -> None:
        raise RuntimeError

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", fails)
    made.save()
    assert caplog.text.count("what was compiled cannot be kept") == 1


def test_what_the_first_batch_of_a_kind_compiled_is_kept() -> None:
    class Batches:
        info = INFO
        ran = 0

        def plan(self, request: Any) -> Any:
            return type("ImagePlan", (), {"key": request.steps})

        def read_adapter(self, _file: Path) -> Any:
            raise AssertionError

        def prepare_while_idle(self, _wake: Any) -> bool:
            return False

        def run(self, tasks: Any, _monitor: Any) -> None:
            self.ran += len(tasks)

    class Counted(artifacts.Artifacts):
        saved = 0

        def save(self) -> None:
            self.saved += 1

    cache: Any = Given()
    unasked: Any = None
    engine, counted = Batches(), Counted(cache)
    saving = Saving(engine, counted)
    for tasks in (
        (image_request(),),
        (image_request(),),
        (image_request(), image_request(1)),
        (image_request(steps=9),),
        (image_request(guidance=1.0),),
    ):
        saving.run(tasks, unasked)
    # Steps change nothing of the code; guidance or none, and how many images, do.
    assert (engine.ran, counted.saved) == (6, 3)
    assert saving.info == INFO
