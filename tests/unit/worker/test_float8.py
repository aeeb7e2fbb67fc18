"""Products in float8: what they are made of, what stays as it is, and how near they come."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, quantize_

from kubediffusion.worker.execution.compile.blocks import repeated_blocks
from kubediffusion.worker.execution.compile.functions import compiled_for
from kubediffusion.worker.execution.float8 import Float8Linear, use_float8_products

pytestmark = pytest.mark.usefixtures("without_gradients")


def apart(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far a result is from another, by its length."""
    return float((made - expected).float().norm() / expected.float().norm())


def quantized(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what torchao holds of a layer: its numbers, and the scale of each row."""
    holder = nn.Sequential(layer)
    quantize_(holder, Float8WeightOnlyConfig())
    weight: Any = layer.weight
    return weight.qdata, weight.scale


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_float8_comes_near_that_of_the_weights(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1536, bias=bias, dtype=torch.bfloat16)
    given = torch.randn(2, 7, 1024, dtype=torch.bfloat16)
    expected = layer(given)
    held = quantized(layer)
    by_weights_alone = layer(given)
    made = Float8Linear(*held, layer.bias)(given)
    assert made.shape == expected.shape
    assert made.dtype == torch.bfloat16
    # Three bits of mantissa, rounded: a relative error of a thirtieth a number, evened out by the sum. Both factors.
    assert apart(by_weights_alone, expected) < 0.03
    assert apart(made, expected) < 0.045


def test_rows_do_not_depend_on_each_other_and_a_row_of_zeros_gives_the_bias() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1024, dtype=torch.bfloat16)
    product = Float8Linear(*quantized(layer), layer.bias)
    given = torch.randn(4, 1024, dtype=torch.bfloat16)
    given[1] *= 10_000
    given[2] = 0
    together = product(given)
    for row in (0, 1, 3):
        assert apart(together[row], product(given[row : row + 1])[0]) < 0.005
    assert product.bias is not None
    assert torch.equal(together[2], product.bias)


def test_what_gains_nothing_and_what_lies_outside_of_the_blocks_stays() -> None:
    torch.manual_seed(0)
    make: Any = diffusers.FluxTransformer2DModel
    model = make(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,
        num_attention_heads=8,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(16, 56, 56),
    ).to(torch.bfloat16)
    given = {
        "hidden_states": torch.randn(1, 4, 64, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, 8, 64, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, 32, dtype=torch.bfloat16),
        "timestep": torch.tensor([0.5], dtype=torch.bfloat16),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    expected = model(**given)[0]
    quantize_(model, Float8WeightOnlyConfig())
    made = use_float8_products(model, repeated_blocks(model))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Float8Linear)}
    products = {name for name, layer in layers.items() if isinstance(layer, Float8Linear)}
    assert made == len(products)
    # Of a double block: queries, keys, values and output of each of both, and both feed-forwards; of a single one four.
    assert {name.partition(".")[0] for name in products} == {"transformer_blocks", "single_transformer_blocks"}
    assert len(products) == 12 + 5
    for name in layers.keys() - products:
        inside = "blocks." in name
        assert not inside or "norm" in name
        assert (type(layers[name].weight.data) is torch.Tensor) == inside, name
    assert apart(model(**given)[0], expected) < 0.2
    block, arguments = model.single_transformer_blocks[0], (torch.randn(1, 4, 1024, dtype=torch.bfloat16),)
    attention = block.attn

    def project(attention: Any, given: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = attention.to_q(given)
        return projected

    compiled = compiled_for(project, (attention, *arguments), "eager")
    assert torch.equal(compiled(attention, *arguments), project(attention, *arguments))
