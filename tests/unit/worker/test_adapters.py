"""How a job gets its adapters: found, fetched and read once for all that name them, beside the batches."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kubediffusion.resources.adapters import AdapterReport
from kubediffusion.resources.apiserver.errors import NotFoundError
from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.lora_adapter import AdapterSource, LoRAAdapter
from kubediffusion.worker.adapters import AdapterLoader
from kubediffusion.worker.assignments import Assignment, Assignments
from kubediffusion.worker.context import AdapterSettings
from kubediffusion.worker.engine.adapters import AdapterRefusedError, AdapterWeights
from kubediffusion.worker.loading.adapter_files import fetch_adapter
from kubediffusion.worker.s3models import DownloadError
from unit.worker.worker_builders import INFO, WORKER, bound_job, settings


@dataclass(frozen=True)
class Weights:
    """What the engine below reads of a file: its size as bytes, and a rank."""

    digest: str
    rank: int
    nbytes: int


class Reads:
    """The parts around a loader: an engine that counts what it reads, LoRAAdapters, and folders of files."""

    def __init__(self, folder: Path, capacity: int = 1000) -> None:
        self.info = replace(INFO, adapter_rank=8)
        self.adapters: dict[str, LoRAAdapter] = {}
        self.read: list[str] = []
        self.away = 0
        self.failures: dict[str, JobFailure] = {}
        self.reports: Mapping[str, AdapterReport] = {}
        self.woken = asyncio.Event()
        self._folder = folder
        self._threads = ThreadPoolExecutor(2)
        context: Any = SimpleNamespace(engine=self, refused_seconds=0.01, work_available=self.woken)
        told = AdapterSettings("m", self._find, self._fetch, capacity, self._report)
        progress: Any = SimpleNamespace(report_storage_trouble=lambda *_: None)
        self.loader = AdapterLoader(context, told, self._finish, progress, self._threads)

    def add(self, name: str, size: int = 10, **spec: Any) -> None:
        """Add a LoRAAdapter whose file has some bytes."""
        (self._folder / f"{name}.safetensors").write_bytes(b"x" * size)
        source = {"path": str(self._folder), "file": f"{name}.safetensors"}
        metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "generation": 1}
        self.adapters[name] = LoRAAdapter.from_wire(
            {"metadata": metadata, "spec": {"model": "m", "source": source, **spec}}
        )

    async def _find(self, name: str) -> LoRAAdapter:
        if name not in self.adapters:
            raise NotFoundError(404, "NotFound", name)
        return self.adapters[name]

    def _fetch(self, source: AdapterSource) -> Path:
        if self.away:
            self.away -= 1
            raise DownloadError("storage is away")
        return fetch_adapter(source, settings(self._folder))

    def read_adapter(self, file: Path) -> AdapterWeights:
        self.read.append(file.stem)
        if file.stem == "bad":
            raise AdapterRefusedError(AdapterReason.WRONG_BASE_MODEL, "made for another")
        if file.stem == "strange":
            raise ZeroDivisionError("by nothing")
        return Weights(hashlib.sha256(file.name.encode()).hexdigest(), 3, file.stat().st_size)

    def _report(self, reports: Mapping[str, AdapterReport]) -> None:
        self.reports = reports

    def _finish(self, assignment: Assignment, _index: int, outcome: Any) -> None:
        assignment.finishing = True
        self.failures[assignment.name] = outcome
        self.woken.set()

    async def bind(self, *jobs: tuple[str, list[dict[str, Any]]]) -> list[Assignment]:
        """Bind jobs that name adapters, and wait until each has them, or has failed."""
        known, bound = Assignments(WORKER), []
        for name, adapters in jobs:
            job = bound_job(name, adapters=adapters)
            known.observe(job, gone=False)
            assignment = known.get(job.uid)
            assert assignment is not None
            self.loader.observe(assignment)
            bound.append(assignment)
        async with asyncio.timeout(60):
            while any(one.awaits_adapters and not one.finishing for one in bound):
                self.woken.clear()
                await self.woken.wait()
        return bound


Test = Callable[[Reads], Awaitable[None]]


def run(folder: Path, test: Test, capacity: int = 1000) -> None:
    async def go() -> None:
        await test(Reads(folder, capacity))

    asyncio.run(go())


def test_one_read_serves_all_jobs_that_name_an_adapter(tmp_path: Path) -> None:
    async def test(reads: Reads) -> None:
        reads.add("pixel", scale=0.5)
        reads.add("ink")
        named: list[tuple[str, list[dict[str, Any]]]] = [
            ("a", [{"name": "pixel"}]),
            ("b", [{"name": "pixel", "scale": 2}, {"name": "ink"}]),
        ]
        first, second = await reads.bind(*named)
        assert sorted(reads.read) == ["ink", "pixel"]
        digest = reads.reports["pixel"].digest
        assert [(one.digest, one.scale) for one in first.request(0).adapters] == [(digest, 0.5)]
        assert [one.scale for one in second.request(0).adapters] == [2, 1]
        told = [(one.name, one.scale, one.digest) for one in second.parameters.adapters or ()]
        assert told == [("pixel", 2, digest), ("ink", 1, reads.reports["ink"].digest)]
        await reads.bind(("c", [{"name": "pixel"}]))
        assert len(reads.read) == 2
        assert reads.reports["pixel"].speaks_of("uid-pixel", 1)
        assert (reads.reports["pixel"].rank, reads.reports["pixel"].held) == (3, True)

    run(tmp_path, test)


def test_an_adapter_that_cannot_be_used_fails_its_job_alone(tmp_path: Path) -> None:
    async def test(reads: Reads) -> None:
        for name in ("good", "bad", "strange", "more", "most"):
            reads.add(name)
        reads.add("other", model="another")
        reads.adapters["gone"] = reads.adapters["good"].model_copy(
            update={
                "metadata": reads.adapters["good"].metadata.model_copy(update={"name": "gone", "uid": "g"}),
                "spec": reads.adapters["good"].spec.model_copy(
                    update={"source": AdapterSource(path=str(tmp_path), file="gone.safetensors")}
                ),
            }
        )
        jobs: dict[str, list[dict[str, Any]]] = {
            name: [{"name": name}] for name in ("good", "bad", "strange", "absent", "other", "gone")
        }
        jobs["many"] = [{"name": name} for name in ("good", "more", "most")]
        await reads.bind(*jobs.items())
        assert {failure.code for failure in reads.failures.values()} == {"InvalidAdapter"}
        messages = {name: failure.message for name, failure in reads.failures.items()}
        assert messages.keys() == {"bad", "strange", "absent", "other", "gone", "many"}
        assert "WrongBaseModel: made for another" in messages["bad"]
        assert "strange.safetensors cannot be read (ZeroDivisionError: by nothing)" in messages["strange"]
        assert "no such LoRAAdapter" in messages["absent"]
        assert "for model 'another'" in messages["other"]
        assert "SourceNotFound: there is no file gone.safetensors" in messages["gone"]
        assert "3 + 3 + 3, together more than the 8" in messages["many"]
        assert {name: report.reason for name, report in reads.reports.items() if not report.held} == {
            "bad": "WrongBaseModel",
            "strange": "UnknownKeys",
            "gone": "SourceNotFound",
        }

    run(tmp_path, test)


def test_storage_that_is_away_is_asked_again(tmp_path: Path) -> None:
    async def test(reads: Reads) -> None:
        reads.add("pixel")
        reads.away = 2
        (assignment,) = await reads.bind(("a", [{"name": "pixel"}]))
        assert not reads.failures
        assert assignment.adapters is not None
        assert reads.reports["pixel"].held

    run(tmp_path, test)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    async def test(reads: Reads) -> None:
        for name in ("a", "b", "c"):
            reads.add(name, size=400)
        await reads.bind(("1", [{"name": "a"}]), ("2", [{"name": "b"}]))
        (runs,) = await reads.bind(("3", [{"name": "a"}]))
        await reads.bind(("4", [{"name": "c"}]))
        assert list(reads.reports) == ["c", "a"]
        # A job keeps what it has.
        assert runs.request(0).adapters
        await reads.bind(("5", [{"name": "b"}]))
        assert reads.read.count("b") == 2
        reads.add("whole-model", size=1001)
        await reads.bind(("6", [{"name": "whole-model"}]))
        assert "KUBEDIFFUSION_ADAPTER_CACHE_MIB" in reads.failures["6"].message

    run(tmp_path, test)


def test_another_spec_of_an_adapter_is_read_anew(tmp_path: Path) -> None:
    async def test(reads: Reads) -> None:
        reads.add("pixel")
        await reads.bind(("a", [{"name": "pixel"}]))
        pixel = reads.adapters["pixel"]
        reads.adapters["pixel"] = pixel.model_copy(
            update={"metadata": pixel.metadata.model_copy(update={"generation": 2})}
        )
        await reads.bind(("b", [{"name": "pixel"}]))
        assert reads.read == ["pixel", "pixel"]
        assert list(reads.reports) == ["pixel"]

    run(tmp_path, test)


def test_a_pipeline_without_a_loader_refuses_adapters_before_they_are_fetched(tmp_path: Path) -> None:
    async def test(reads: Reads) -> None:
        reads.info = replace(INFO, adapter_rank=0)
        reads.add("pixel")
        await reads.bind(("a", [{"name": "pixel"}]))
        assert "NotSupported" in reads.failures["a"].message
        assert not reads.read

    run(tmp_path, test)


def reason(source: dict[str, Any], folder: Path) -> str:
    with pytest.raises(AdapterRefusedError) as raised:
        fetch_adapter(AdapterSource.model_validate(source), settings(folder))
    assert raised.value.reason == "SourceNotFound"
    return raised.value.message


def test_the_file_is_the_named_one_else_the_only_one_else_the_usual(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    source = {"path": str(folder)}
    assert "no safetensors file" in reason(source, tmp_path)
    (folder / "a.safetensors").touch()
    found = fetch_adapter(AdapterSource.model_validate(source), settings(tmp_path))
    assert found == folder / "a.safetensors"
    (folder / "b.safetensors").touch()
    assert "2 safetensors files (a.safetensors, b.safetensors)" in reason(source, tmp_path)
    named = AdapterSource.model_validate({**source, "file": "b.safetensors"})
    assert fetch_adapter(named, settings(tmp_path)).name == "b.safetensors"
    (folder / "pytorch_lora_weights.safetensors").touch()
    usual = fetch_adapter(AdapterSource.model_validate(source), settings(tmp_path))
    assert usual.name == "pytorch_lora_weights.safetensors"
    assert "leads out" in reason({**source, "file": "x/../../a.safetensors"}, tmp_path)
    assert "does not exist" in reason({"path": str(tmp_path / "absent")}, tmp_path)


def test_a_claim_is_one_that_the_worker_mounts(tmp_path: Path) -> None:
    (tmp_path / "volume" / "loras").mkdir(parents=True)
    (tmp_path / "volume" / "loras" / "a.safetensors").touch()
    claim = {"claimName": "models", "path": "sdxl/base"}
    worker = settings(tmp_path, source={"persistentVolumeClaim": claim}).model_copy(
        update={"model_path": tmp_path / "volume" / "sdxl" / "base", "claim_paths": {"more": tmp_path / "volume"}}
    )
    for name in ("models", "more"):
        source = AdapterSource.model_validate({"persistentVolumeClaim": {"claimName": name, "path": "/loras/"}})
        assert fetch_adapter(source, worker).parent == tmp_path / "volume" / "loras"
    elsewhere = AdapterSource.model_validate({"persistentVolumeClaim": {"claimName": "other"}})
    with pytest.raises(AdapterRefusedError, match="do not mount the claim other"):
        fetch_adapter(elsewhere, worker)
    out = AdapterSource.model_validate({"persistentVolumeClaim": {"claimName": "more", "path": "../x"}})
    with pytest.raises(AdapterRefusedError, match="leads out of the volume"):
        fetch_adapter(out, worker)
