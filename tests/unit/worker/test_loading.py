"""Weights go straight to the device that computes, and are the same as by way of main memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from kubediffusion.worker.loading.components import Target
from kubediffusion.worker.loading.memory_plan import MemoryPlan
from kubediffusion.worker.loading.quantization import Quantizer
from kubediffusion.worker.loading.weights import load_weights
from kubediffusion.worker.sources import LocalModel, read_index
from unit.worker.worker_builders import settings

CPU = torch.device("cpu")


def modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def load(folder: Path, dtype: torch.dtype, index: dict[str, Any] | None = None) -> Any:
    spec, index = settings(folder).spec, index or read_index(folder)
    target = Target(LocalModel(folder, ""), index, spec, dtype, CPU, Quantizer(spec, index, dtype, CPU))
    return load_weights(target, MemoryPlan())


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "flux"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_same_without_a_stop_in_main_memory(
    family: str, dtype: torch.dtype, folders: Callable[[str], Path]
) -> None:
    there = modules(load(folders(family), dtype))
    usual = modules(diffusers.DiffusionPipeline.from_pretrained(str(folders(family)), dtype=dtype).to(CPU))
    assert there.keys() == usual.keys()
    for name, module in usual.items():
        found, expected = tensors(there[name]), tensors(module)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype
            assert found[key].device == CPU
            assert torch.equal(found[key], tensor), (name, key)
        assert not there[name].training


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "flux"])
def test_nothing_hooks_into_the_modules(family: str, folders: Callable[[str], Path]) -> None:
    pipeline = load(folders(family), torch.float32)
    for module in (part for top in modules(pipeline).values() for part in top.modules()):
        # accelerate's hooks wrap forward, which no graph and no whole compilation gets through.
        assert not hasattr(module, "_hf_hook")
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks  # noqa: SLF001 - have no public name
        assert not module._forward_hooks  # noqa: SLF001
    assert pipeline.to("cpu").device == CPU


def test_a_pipeline_that_takes_no_device_map_is_loaded_all_the_same(folders: Callable[[str], Path]) -> None:
    folder = folders("stable_diffusion")
    # As of a class of the model's own, of which nobody knows whether it stands for several pipelines.
    pipeline = load(folder, torch.float32, read_index(folder) | {"_class_name": ["pipeline", "TheirPipeline"]})
    assert pipeline.hf_device_map is None
    assert pipeline.device == CPU


GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


@pytest.mark.parametrize(
    ("workers", "found"),
    [
        (GPU, "nvidia.com/gpu: 1"),
        ({"resources": {"requests": {"nvidia.com/mig-1g.10gb": "2"}}}, "nvidia.com/mig-1g.10gb: 2"),
        ({"resources": {"limits": {"amd.com/gpu": 1, "memory": "8Gi"}}}, "amd.com/gpu: 1"),
        *(
            ({"resources": {"limits": {name: "1"}}}, f"{name}: 1")
            for name in (
                "nvidia.com/gpu.shared",
                "nvidia.com/mig-3g.40gb",
                "gpu.intel.com/i915",
                "gpu.intel.com/xe",
                "habana.ai/gaudi",
                "aws.amazon.com/neuroncore",
                "google.com/tpu",
                "huawei.com/Ascend910",
                "furiosa.ai/npu",
                "cambricon.com/vmlu",
                "aliyun.com/gpu-mem",
                "tencent.com/vcuda-core",
                "volcano.sh/vgpu-number",
            )
        ),
        *(
            ({"resources": {"limits": {name: "1"}}}, None)
            for name in ("cpu", "hugepages-2Mi", "rdma/hca_shared", "example.com/input", "example.com/output-port")
        ),
        ({"resources": {"limits": {"nvidia.com/gpu": 0, "memory": "8Gi"}}}, None),
        ({}, None),
    ],
)
def test_the_pods_resources_tell_whether_a_gpu_was_asked_for(
    workers: dict[str, Any], found: str | None, tmp_path: Path
) -> None:
    assert settings(tmp_path, workers=workers).requested_gpu == found


def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_no_reason_to_take_the_cpu(
    folders: Callable[[str], Path],
) -> None:
    """In a process from which the machine's GPUs, if it has any, are hidden."""
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from unit.worker.worker_builders import settings
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.loading.device import DeviceUnavailableError

folder = pathlib.Path({str(folders("stable_diffusion"))!r})
asking = settings(folder, workers={GPU!r})
try:
    load_engine(asking)
except DeviceUnavailableError as error:
    print(error)
import torch
# As where it finds one for which this build has no code: only using it tells.
torch.cuda.is_available = lambda: True
try:
    load_engine(asking)
except DeviceUnavailableError as error:
    print(error)
print(load_engine(settings(folder)).info.device)
torch.cuda.is_available = lambda: False
print(load_engine(asking.model_copy(update={{"device": "cpu"}})).info.device)
print(load_engine(settings(folder)).info.device)
"""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=hidden, capture_output=True, text=True, check=True, timeout=200
    )
    says, says_found, found, asked_for, by_default = ended.stdout.splitlines()
    for words in (says, says_found):
        assert re.fullmatch(r"a GPU was requested \(nvidia.com/gpu: 1\) and cannot be used: .*(NVIDIA|CUDA).*", words)
    assert (found, asked_for, by_default) == ("cpu", "cpu", "cpu")
    assert "the CPU is used, as no GPU was requested and the one that is there cannot be used" in ended.stderr
