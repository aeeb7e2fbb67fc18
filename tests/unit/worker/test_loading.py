"""Weights go straight to the device that computes, and are the same as by way of main memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from worker_builders import settings

from kubediffusion.worker.loading.weights import load_weights
from kubediffusion.worker.sources import read_index

CPU = torch.device("cpu")


def modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def load(folder: Path, dtype: torch.dtype, index: dict[str, Any] | None = None) -> Any:
    return load_weights(folder, index or read_index(folder), settings(folder).spec, dtype, CPU)


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
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert pipeline.to("cpu").device == CPU


def test_a_pipeline_that_takes_no_device_map_is_loaded_all_the_same(folders: Callable[[str], Path]) -> None:
    folder = folders("stable_diffusion")
    # As of a class of the model's own, of which nobody knows whether it stands for several pipelines.
    pipeline = load(folder, torch.float32, read_index(folder) | {"_class_name": ["pipeline", "TheirPipeline"]})
    assert pipeline.hf_device_map is None
    assert pipeline.device == CPU
