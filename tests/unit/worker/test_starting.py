"""The start of a worker: what runs beside the imports."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.model_source import ModelSource
from kubediffusion.resources.runtime import garbage
from kubediffusion.worker.early_fetch import fetch_from_s3_or_disk
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.device import open_device
from kubediffusion.worker.sources import content_revision
from kubediffusion.worker.starting import run_in_thread, start_engine
from unit.worker.worker_builders import settings


def test_a_model_is_loaded_in_the_order_that_takes_least_time(folders: Callable[[str], Path]) -> None:
    stages: list[EngineReason] = []
    folder = folders("stable_diffusion")
    engine = start_engine(settings(folder), lambda stage, _message: stages.append(stage))
    assert engine.info.revision == content_revision(folder)
    assert stages[:3] == [EngineReason.IMPORTING, EngineReason.FETCHING_MODEL, EngineReason.LOADING_WEIGHTS]


def test_a_folder_that_may_not_be_loaded_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    def told(_stage: EngineReason, _message: str) -> None:
        raise AssertionError

    with pytest.raises(BadModelError, match="does not exist"):
        start_engine(settings(tmp_path / "nowhere"), told)


def test_a_source_that_is_nowhere_is_a_bad_model(tmp_path: Path) -> None:
    volume = ModelSource.model_validate({"persistentVolumeClaim": {"claimName": "weights"}})
    item = settings(tmp_path)
    unmounted = item.model_copy(update={"spec": item.spec.model_copy(update={"source": volume})})
    with pytest.raises(BadModelError, match=r"spec\.source"):
        fetch_from_s3_or_disk(unmounted)


def test_what_runs_beside_gives_its_result_or_its_error() -> None:
    threads: list[str] = []

    def name() -> int:
        threads.append(threading.current_thread().name)
        return 7

    def fails() -> int:
        raise BadModelError("no")

    assert run_in_thread(name, "seven").result() == 7
    assert threads == ["seven"]
    with pytest.raises(BadModelError):
        run_in_thread(fails, "fails").result()


def test_opening_the_device_is_nothing_where_there_is_none() -> None:
    open_device()


def test_pytorch_is_imported_when_the_model_is_loaded_and_not_before() -> None:
    code = "import sys, kubediffusion.worker.main as _; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cycles_are_looked_for_again_after_a_pause_but_not_in_what_was_there() -> None:
    before = gc.get_freeze_count()
    try:
        with garbage.collection_paused():
            assert not gc.isenabled()
            kept = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()
