"""Fetches a model from S3 or a folder while PyTorch is being imported; `loading.fetch` adds the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kubediffusion.worker import s3models
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel, content_revision, local_folder


def fetch_from_s3_or_disk(settings: Settings) -> LocalModel:
    """Fetch the model to this machine, if it is not there, and return where it lies with its revision.

    Raises:
        BadModelError: There is no such model.
        DownloadError: It could not be fetched this time.
    """
    source = settings.spec.source
    if source.s3 is not None:
        fetched = s3models.fetch(source.s3.uri, cache_folder(settings))
        return LocalModel(fetched, content_revision(fetched))
    if (local := local_folder(source, settings.model_path)) is None:
        raise BadModelError("spec.source names no place to load the model from")
    return LocalModel(local, content_revision(local))


def cache_folder(settings: Settings) -> Path:
    """Return the folder that keeps models between workers of this machine."""
    return settings.cache_dir or Path(tempfile.gettempdir()) / "kubediffusion-models"
