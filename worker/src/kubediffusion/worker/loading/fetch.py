"""Fetches the model that a DiffusionModel names to this machine."""

from __future__ import annotations

from kubediffusion.worker.early_fetch import fetch_from_s3_or_disk
from kubediffusion.worker.loading import hub
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel


def fetch_from_any_source(settings: Settings) -> LocalModel:
    """Fetch the model to this machine, if it is not there, and return where it lies with its revision.

    Raises:
        BadModelError: There is no such model.
    """
    source = settings.spec.source
    if source.hugging_face is not None:
        token = settings.hf_token.get_secret_value() if settings.hf_token is not None else ""
        folder, commit = hub.fetch(source.hugging_face, settings.spec, token or None)
        return LocalModel(folder, commit)
    return fetch_from_s3_or_disk(settings)
