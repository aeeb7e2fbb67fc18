"""The DiffusionModels of the namespace as the watch shows them."""

from __future__ import annotations

import asyncio

from kubediffusion.api.adapter_cache import AdapterCache
from kubediffusion.api.errors import InvalidRequestError, UnavailableError, problem
from kubediffusion.resources.diffusion_model import DiffusionModel, choose_model


class ModelCache:
    """Every DiffusionModel of the namespace, by name.

    Attributes:
        synced: Set once all of them are known.
        adapters: Their adapters.
    """

    def __init__(self) -> None:
        self.adapters = AdapterCache()
        self._models: dict[str, DiffusionModel] = {}
        self.synced = asyncio.Event()

    def on_change(self, model: DiffusionModel, gone: bool) -> None:
        """Apply one change that the watch shows; ``gone`` says that the model was deleted."""
        if gone:
            self._models.pop(model.name, None)
        else:
            self._models[model.name] = model

    def all(self) -> list[DiffusionModel]:
        """List the models, sorted by name."""
        return [self._models[name] for name in sorted(self._models)]

    @property
    def default(self) -> DiffusionModel | None:
        """The model of jobs that name none."""
        return choose_model(self._models, None)

    @property
    def default_name(self) -> str | None:
        """The name of the default model."""
        return self.default.name if self.default else None

    @property
    def available(self) -> bool:
        """Whether a job that names no model can be taken."""
        return self.default is not None and self.default.unavailable is None

    def find(self, name: str | None) -> DiffusionModel | None:
        """Return the model of that name, or the default one for None; None where there is none."""
        return choose_model(self._models, name)

    def usable(self, name: str | None) -> DiffusionModel:
        """Return the model that a new job asks for.

        Raises:
            InvalidRequestError: There is no model of that name.
            UnavailableError: The model cannot be used now, or there is no default one.
        """
        if not self.synced.is_set():
            raise UnavailableError("The server is starting and has not seen its models yet.", 1)
        model = self.find(name)
        if model is None and name is not None:
            known = ", ".join(sorted(self._models)) or "none"
            raise InvalidRequestError([problem("model", f"There is no model {name!r}; known models: {known}")])
        if model is None:
            raise UnavailableError(
                "Model not available: there is no default model in this namespace."
                if not self._models
                else f"Model not available: none is the default; name one of {', '.join(sorted(self._models))}."
            )
        if (condition := model.unavailable) is not None:
            raise UnavailableError(f"Model not available: {model.name}: {condition.message or condition.reason}")
        return model
