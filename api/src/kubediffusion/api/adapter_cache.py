"""The LoRAAdapters of the namespace as the watch shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from kubediffusion.api.errors import InvalidRequestError, UnavailableError, problem
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJobSpec
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.parameters import check_adapters


class AdapterCache:
    """Every LoRAAdapter of the namespace, by name.

    Attributes:
        synced: Set once all of them are known.
    """

    def __init__(self) -> None:
        self._adapters: dict[str, LoRAAdapter] = {}
        self.synced = asyncio.Event()

    def on_change(self, adapter: LoRAAdapter, gone: bool) -> None:
        """Apply one change that the watch shows; ``gone`` says that the adapter was deleted."""
        if gone:
            self._adapters.pop(adapter.name, None)
        else:
            self._adapters[adapter.name] = adapter

    def all(self) -> list[LoRAAdapter]:
        """List the adapters, sorted by name."""
        return [self._adapters[name] for name in sorted(self._adapters)]

    def of(self, model: str) -> Iterator[LoRAAdapter]:
        """Yield the adapters of a model, sorted by name."""
        return (adapter for adapter in self.all() if adapter.spec.model == model)

    def check(self, spec: GenerationJobSpec, model: DiffusionModel) -> None:
        """Check the adapters that a new job names.

        Raises:
            InvalidRequestError: One does not exist, is of another model, or is refused by the model's workers.
            UnavailableError: The adapters of the namespace are not known yet.
        """
        if not spec.adapters:
            return
        if not self.synced.is_set():
            raise UnavailableError("The server has not seen its adapters yet.", 1)
        found = check_adapters(spec, model, self._adapters, model.status.template_hash)
        if problems := [problem(error.field, error.message) for error in found]:
            raise InvalidRequestError(problems)
