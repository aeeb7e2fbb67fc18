"""The engine's policy: what an image is, who shares a step with whom, and who is next. Pure: no torch, no clock.

The names that other parts of the worker use are here; each is defined in the module that its group is named after.
"""

from kubediffusion.worker.engine.interface import (
    BadModelError,
    ClosedBatchMonitor,
    Engine,
    EngineInfo,
    EngineLostError,
    EntryLimit,
    ImagePlan,
    Monitor,
    Parkable,
    StepStats,
    described,
    no_limit,
)
from kubediffusion.worker.engine.key import BatchKey, GuidanceKind, LockstepKey
from kubediffusion.worker.engine.request import (
    ImageId,
    ImageOutput,
    ImagePreview,
    ImageRequest,
    InputImage,
    InputImages,
    Outcome,
    SamplingParameters,
)

__all__ = [
    "BadModelError",
    "BatchKey",
    "ClosedBatchMonitor",
    "Engine",
    "EngineInfo",
    "EngineLostError",
    "EntryLimit",
    "GuidanceKind",
    "ImageId",
    "ImageOutput",
    "ImagePlan",
    "ImagePreview",
    "ImageRequest",
    "InputImage",
    "InputImages",
    "LockstepKey",
    "Monitor",
    "Outcome",
    "Parkable",
    "SamplingParameters",
    "StepStats",
    "described",
    "no_limit",
]
