"""A UNet in two parts, the deep one of which a call can leave out: both together are the UNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from kubediffusion.worker.families import features


def unets() -> list[Any]:
    """UNets of the families' kinds: attention in the last block as in Stable Diffusion, and none there as in XL."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "layers_per_block": 2,
        "sample_size": 16,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    }
    cross, plain = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
    kinds = [(cross, cross, plain), (plain, cross, cross)]
    unet: Any = UNet2DConditionModel
    return [
        unet(
            down_block_types=tuple(down for down, _ in blocks),
            up_block_types=tuple(up for _, up in reversed(blocks)),
            **common,
        ).eval()
        for blocks in kinds
    ]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("size", [(16, 16), (18, 15)])
def test_both_parts_together_are_the_unet(kind: int, size: tuple[int, int]) -> None:
    unet = unets()[kind]
    given = (torch.randn(2, 4, *size), torch.tensor([5.0, 900.0]), torch.randn(2, 7, 32))
    with torch.inference_mode():
        expected = unet(*given, return_dict=False)[0]
        output, kept = features.whole(unet, *given, None)
        assert torch.equal(output, expected)
        assert tuple(kept.shape[1:]) == features.features_shape(unet, given[0].shape)
        assert torch.equal(features.shallow(unet, *given, None, kept), expected)
        unet.to(memory_format=torch.channels_last)
        assert torch.allclose(features.shallow(unet, *given, None, kept.contiguous()), expected, atol=1e-5)


def test_a_unet_of_other_blocks_is_not_divided() -> None:
    assert all(features.divisible(unet) for unet in unets())
    other = UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=32,
    )
    assert not features.divisible(other)
