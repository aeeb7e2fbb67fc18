"""The engine's policy: what an image is, who shares a step with whom, and who is next. Pure: no torch, no clock.

The names that other parts of the worker use are here; each is defined in the module that its group is named after.
"""

from kubediffusion.worker.engine.interface import (
    Admit,
    BadModelError,
    Engine,
    EngineInfo,
    EngineLostError,
    ImagePlan,
    Monitor,
    StepStats,
    described,
    everybody,
)
from kubediffusion.worker.engine.key import BatchKey, GuidanceKind, LockstepKey
from kubediffusion.worker.engine.request import ImageId, ImageOutput, ImageRequest, Outcome, SamplingParameters

__all__ = [
    "Admit",
    "BadModelError",
    "BatchKey",
    "Engine",
    "EngineInfo",
    "EngineLostError",
    "GuidanceKind",
    "ImageId",
    "ImageOutput",
    "ImageRequest",
    "LockstepKey",
    "Monitor",
    "Outcome",
    "ImagePlan",
    "SamplingParameters",
    "StepStats",
    "described",
    "everybody",
]
