"""What clients send and get of the speed that a job takes for quality."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from kubediffusion.api.derived import RequestModel, ResponseModel, described, request_of, view_of
from kubediffusion.resources import generation_job


@request_of(
    generation_job.GuidanceInterval,
    documented={
        "start": described("Fraction of the steps before the first with guidance."),
        "stop": described("Fraction of the steps before the first without guidance again; above ``start``.", 0.8),
    },
)
class GuidanceInterval(RequestModel):
    """Guidance at some of the steps only (https://arxiv.org/abs/2404.07724); the others take half the time."""

    start: float
    stop: float

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"start, {self.start:g}, must be below stop, {self.stop:g}")
        return self


@request_of(
    generation_job.FeatureCaching,
    documented={
        "interval": described(
            "At every step of so many the whole UNet is computed, in between its outermost layers; 1 is none.", 3
        )
    },
)
class FeatureCaching(RequestModel):
    """The UNet's deep layers at some of the steps only (DeepCache, https://arxiv.org/abs/2312.00858)."""


@request_of(
    generation_job.Acceleration,
    parts={generation_job.GuidanceInterval: GuidanceInterval, generation_job.FeatureCaching: FeatureCaching},
)
class Acceleration(RequestModel):
    """Speed for quality. What is absent is not done."""


@view_of(generation_job.GuidanceInterval)
class GuidanceIntervalView(ResponseModel):
    """Guidance at some of the steps only."""


@view_of(generation_job.FeatureCaching)
class FeatureCachingView(ResponseModel):
    """The UNet's deep layers at some of the steps only."""


@view_of(
    generation_job.Acceleration,
    parts={generation_job.GuidanceInterval: GuidanceIntervalView, generation_job.FeatureCaching: FeatureCachingView},
)
class AccelerationView(ResponseModel):
    """Speed for quality."""
