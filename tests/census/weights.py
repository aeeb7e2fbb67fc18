"""Random weights of which every one counts: a last layer that begins at zero would hide what the text changes."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch


def randomised(module: Any, name: str) -> Any:
    """Fill a module's weights, decided by its name alone, so that values keep their scale from layer to layer.

    Those of text encoders are larger: a few letters must count beside the hundreds of a template.
    """
    gain = 2.0 if name.startswith("text_encoder") else 1.0
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(gain * noise / math.sqrt(max(parameter.numel() // max(parameter.shape[0], 1), 1)))
            elif key.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.1 * noise)
    return module.eval()
