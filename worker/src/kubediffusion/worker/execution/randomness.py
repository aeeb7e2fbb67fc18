"""The process's random generators, which a pipeline may draw from beside the generator that it is given."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python meanwhile, and restore them afterwards.

    A prompt enhancer samples from torch's, for example: without a seed, a job that runs again shows another image.

    Args:
        seed: Seed of the image.
        device: Device of the pipeline, whose generator is seeded too.
    """
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
