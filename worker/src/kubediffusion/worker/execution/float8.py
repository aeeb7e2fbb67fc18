"""Products of float8 by float8, for denoisers whose weights are held in float8.

torchao's weights are turned into a layer of PyTorch's own product, ``torch._scaled_mm`` with a scale for each row of
both factors. They stay the same numbers. What torchao makes for such products is a subclass of tensors, and PyTorch's
ahead-of-time compiler writes down none of functions that take those (2.11: NotImplementedError).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kubediffusion.worker.execution.compile.blocks import repeated_blocks
from kubediffusion.worker.loading.device import is_hopper

_LARGEST = torch.finfo(torch.float8_e4m3fn).max

_LEAST_FEATURES = 1024
"""Fewest inputs and outputs of a layer that gains: below, quantizing its input takes as long as the product saves."""

_MULTIPLE = 16
"""What inputs and outputs have to be multiples of for the product."""

_SMALLEST = 1e-12
"""Least scale: a row of zeros has one too."""


class Float8Linear(nn.Module):
    """A linear layer whose product is computed in float8: ``[..., inputs]`` to ``[..., outputs]``.

    Each row of the input is scaled to float8's range by its own largest value when it comes; each row of the weights
    was, when they were quantized. The sum is in float32, the result in the input's numbers.

    Args:
        held: Weights, ``[outputs, inputs]``, float8.
        scale: What their rows are multiplied by, ``[outputs, 1]``, float32.
        bias: ``[outputs]``; None for none.

    Attributes:
        weight: The weights as they are held.
        scale: As rows of a product: ``[1, outputs]``.
        bias: The bias.
        in_features: Inputs.
        out_features: Outputs.
    """

    def __init__(self, held: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = held.shape
        self.weight = nn.Parameter(held, requires_grad=False)
        self.scale = nn.Parameter(scale.float().t().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def extra_repr(self) -> str:
        """Describe it as PyTorch's layers describe themselves."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return the layer's output."""
        rows = given.reshape(-1, self.in_features)
        scale = rows.abs().amax(1, keepdim=True).float().clamp(min=_SMALLEST) / _LARGEST
        held = (rows.float() / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        product: torch.Tensor = torch._scaled_mm(  # noqa: SLF001 - PyTorch's name for it
            held,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=given.dtype,
            use_fast_accum=True,
        )
        return product.reshape(*given.shape[:-1], self.out_features)


def computes_in_float8(pipeline: Any) -> bool:
    """Have a pipeline's denoiser computed in float8 where its weights are held so and the device can.

    Returns:
        Whether it is. Elsewhere torchao multiplies each weight out to the denoiser's numbers before its product.
    """
    if not is_hopper(pipeline.device):
        return False
    denoiser: Any = getattr(pipeline, "transformer", None)
    if getattr(denoiser, "hf_quantizer", None) is None:
        return False
    return use_float8_products(denoiser, repeated_blocks(denoiser)) > 0


def use_float8_products(denoiser: nn.Module, blocks: dict[str, nn.Module]) -> int:
    """Have the layers of blocks computed in float8 whose weights torchao holds so, and return how many they are.

    What else torchao holds in the blocks becomes plain again: layers that are small, and those of a normalization,
    which make of a time step how much of everything there is.

    Args:
        denoiser: The model, on its device.
        blocks: Its blocks, by name: see :func:`.repeated_blocks`.
    """
    made = 0
    for prefix, block in blocks.items():
        for name, layer in list(block.named_modules()):
            if not isinstance(layer, nn.Linear) or (held := _held(layer.weight)) is None:
                continue
            parent, _, last = f"{prefix}.{name}".rpartition(".")
            if _gains(name, layer):
                setattr(denoiser.get_submodule(parent), last, Float8Linear(*held, layer.bias))
                made += 1
            else:
                weight: Any = layer.weight
                layer.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
    return made


def _held(weight: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a weight's float8 numbers and the scale of each row; None where torchao holds none so."""
    held, scale = getattr(weight, "qdata", None), getattr(weight, "scale", None)
    if held is None or scale is None or held.dtype != torch.float8_e4m3fn or scale.shape != (len(held), 1):
        return None
    return held, scale


def _gains(name: str, layer: nn.Linear) -> bool:
    sizes = layer.in_features, layer.out_features
    small = min(sizes) < _LEAST_FEATURES or any(size % _MULTIPLE for size in sizes)
    return not small and not any("norm" in part.lower() or "adaln" in part.lower() for part in name.split("."))
