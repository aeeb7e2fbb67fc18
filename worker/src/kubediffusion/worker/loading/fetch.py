"""Fetches the model that a DiffusionModel names to this machine."""

from __future__ import annotations

from pathlib import Path

from kubediffusion.resources.model_source import ModelSource, SourceLocation
from kubediffusion.worker.early_fetch import Locations, fetch_model
from kubediffusion.worker.loading import hub
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel


def fetch_from_any_source(settings: Settings) -> LocalModel:
    """Fetch the model to this machine, if it is not there, and return where it lies with its revision.

    Raises:
        BadModelError: There is no such model.
    """
    return fetch_model(settings, _LocationsAndHub(settings))


class _LocationsAndHub(Locations):
    """Fetches files from the Hugging Face Hub too."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._spec = settings.spec
        self._token = settings.hf_token.get_secret_value() or None if settings.hf_token is not None else None

    def fetch_pipeline(self, source: ModelSource) -> tuple[Path, str | None]:
        if source.hugging_face is None:
            return super().fetch_pipeline(source)
        return hub.fetch(source.hugging_face, self._spec, self._token)

    def fetch_files(self, location: SourceLocation, patterns: tuple[str, ...]) -> tuple[Path, str | None]:
        if location.hugging_face is None:
            return super().fetch_files(location, patterns)
        return hub.fetch_files(location.hugging_face, patterns, self._token)
