"""What is for CUDA devices: its counterparts on the CPU, and the compile cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kubediffusion.worker.pipeline import accelerator
from kubediffusion.worker.pipeline.accelerator import Beside, Pace
from kubediffusion.worker.pipeline.batch import first_row
from kubediffusion.worker.pipeline.compiling import compile_cache, load_compiled, save_compiled

CPU = torch.device("cpu")
VERSIONS = {"torch": "2.15.0+cu130", "kubediffusion-worker": "0.1.0"}


def test_on_the_cpu_everything_is_done_when_a_call_returns() -> None:
    accelerator.prepare(SimpleNamespace(device=CPU))
    Pace(CPU).step()
    row = first_row(torch.ones(1, 4, 2, 2), {})
    assert Beside(CPU).run(lambda: row) is row
    assert accelerator.reserved_memory(CPU) is None
    with accelerator.repeatable(CPU):
        assert not torch.backends.cudnn.deterministic


def test_what_was_compiled_is_kept_by_all_that_it_depends_on(tmp_path: Path) -> None:
    file = compile_cache(tmp_path, "sha256:0a/b", "NVIDIA H200", VERSIONS)
    assert file == tmp_path / "compiled" / "sha256-0a-b_NVIDIA-H200_kubediffusion-worker-0.1.0_torch-2.15.0-cu130.bin"
    others = [
        compile_cache(tmp_path, "sha256:1", "NVIDIA H200", VERSIONS),
        compile_cache(tmp_path, "sha256:0a/b", "NVIDIA A100", VERSIONS),
        compile_cache(tmp_path, "sha256:0a/b", "NVIDIA H200", VERSIONS | {"torch": "2.16.0"}),
    ]
    assert len({file, *others}) == 4


def test_a_compile_cache_is_written_whole_and_a_broken_one_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "compiled" / "x.bin"
    load_compiled(file)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    save_compiled(file)
    assert not file.parent.exists()
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"not a cache", None))
    save_compiled(file)
    assert [path.name for path in file.parent.iterdir()] == ["x.bin"]
    load_compiled(file)
