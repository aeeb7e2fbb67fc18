"""Muon takes steps of AdamW's length in orthogonal directions, whatever the gradient's scale."""

from __future__ import annotations

import pytest
import torch
from models.training.optimizer import optimizers, orthogonalize


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_orthogonal_matrices_have_singular_values_near_one(shape: tuple[int, int], scale: float) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(scale * torch.randn(3, *shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_convolution_moves_as_far_as_with_adamw() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(8, 16, 3)
    model = torch.nn.Sequential(convolution, torch.nn.GroupNorm(2, 16))
    inner, outer = optimizers([model], rate=1e-2)
    before = convolution.weight.clone()
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    inner.step()
    outer.step()
    length = (convolution.weight - before).square().mean().sqrt() / 1e-2
    assert 0.15 < length < 0.25


def test_norms_biases_and_the_edges_are_left_to_adamw() -> None:
    model = torch.nn.ModuleDict(
        {"conv_in": torch.nn.Conv2d(1, 2, 3), "norm": torch.nn.LayerNorm(2), "linear": torch.nn.Linear(2, 2)}
    )
    inner, _ = optimizers([model], rate=1e-2)
    assert [p.shape for group in inner.param_groups for p in group["params"]] == [(2, 2)]
