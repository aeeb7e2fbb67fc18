"""Stable Diffusion 1 and 2, and XL."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers

from kubediffusion.worker import testing
from unit.worker.families.parity import FamilyRow

SCHEDULERS = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")


def loaded(save: Callable[[Path], Path]) -> Any:
    """Save a pipeline, and load it again."""
    with tempfile.TemporaryDirectory() as folder:
        return diffusers.DiffusionPipeline.from_pretrained(save(Path(folder)), local_files_only=True)


ROWS = [
    FamilyRow("stable-diffusion", lambda: loaded(testing.save_stable_diffusion), schedulers=SCHEDULERS),
    FamilyRow("stable-diffusion-xl", lambda: loaded(testing.save_stable_diffusion_xl), schedulers=SCHEDULERS),
]
