"""Switches a pipeline between noise schedulers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from kubediffusion.resources.failures import ErrorCode, JobFailure


class Schedulers:
    """The schedulers that one pipeline can run with, each made once from the pipeline's own configuration.

    Args:
        own: The scheduler that the pipeline was loaded with.
    """

    def __init__(self, own: Any) -> None:
        self._own = own
        self._made: dict[str, Any] = {type(own).__name__: own}

    @property
    def names(self) -> list[str]:
        """Names of the classes that fit."""
        if self._own is None:
            return []
        others = [cls for cls in getattr(self._own, "compatibles", ()) if self._runs(cls)]
        return sorted({type(self._own).__name__} | {cls.__name__ for cls in others})

    def _runs(self, other: type[Any]) -> bool:
        """Return whether a class that diffusers calls compatible knows what the model predicts.

        A model of flow matching predicts a velocity, which the schedulers of noise predictions would take for noise.
        """
        flows = self._own.config.get("prediction_type") == "flow_prediction"
        return not flows or "use_flow_sigmas" in inspect.signature(other.__init__).parameters

    def get(self, name: str | None) -> Any:
        """Return the scheduler of a class; the pipeline's own for None.

        Raises:
            JobFailure: It does not fit the pipeline.
        """
        if name is None or self._own is None:
            if name is not None:
                raise JobFailure(ErrorCode.PIPELINE_FAILED, f"scheduler {name}: this pipeline has no scheduler to set")
            return self._own
        if name not in self._made:
            if name not in self.names:
                raise JobFailure(
                    ErrorCode.PIPELINE_FAILED,
                    f"scheduler {name} does not fit this model, whose own is {type(self._own).__name__}; "
                    f"it takes {', '.join(self.names)}",
                )
            try:
                self._made[name] = getattr(diffusers, name).from_config(self._own.config)
            except Exception as error:
                raise JobFailure(
                    ErrorCode.PIPELINE_FAILED, f"scheduler {name} cannot be made from this model's: {error}"
                ) from error
        return self._made[name]
