"""Fetches an adapter's file to this machine, with what the worker has already: no adapter brings credentials."""

from __future__ import annotations

import glob
from functools import partial
from pathlib import Path, PurePosixPath

from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.resources.lora_adapter import AdapterSource
from kubediffusion.worker import s3models
from kubediffusion.worker.early_fetch import cache_folder
from kubediffusion.worker.engine.adapters import AdapterRefusedError, check_file_size
from kubediffusion.worker.loading import hub
from kubediffusion.worker.settings import Settings

USUAL = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives an adapter's file."""

_SUFFIX = ".safetensors"

_SHOWN = 5
"""Files that a message names."""


def fetch_adapter(source: AdapterSource, settings: Settings) -> Path:
    """Return an adapter's file on this machine; it is fetched where it is not here.

    Args:
        source: Where it lies.
        settings: The worker's: tokens, caches, and where volumes are mounted.

    Raises:
        AdapterRefusedError: There is no such file, it is too large, or its source is nothing that this worker can read.
        ModelRefusedError: A service refuses it, for the moment or for good.
        Exception: It could not be fetched this time.
    """
    if source.file is not None and ".." in PurePosixPath(source.file).parts:
        raise _not_found(f"spec.source.file {source.file} leads out of the source")
    # Who may add an adapter may name any file, and the worker's disk holds the model too.
    most = settings.adapter_cache_mib * 2**20
    if source.s3 is not None:
        name = source.file or _only(s3models.list_files(source.s3.uri))
        accept = partial(check_file_size, name, most=most)
        return s3models.fetch(source.s3.uri, cache_folder(settings), (glob.escape(name),), accept) / name
    if source.hugging_face is not None:
        token = settings.hf_token.get_secret_value() or None if settings.hf_token is not None else None
        name = source.file or _only(hub.list_files(source.hugging_face, token))
        file = hub.fetch_file(source.hugging_face, name, token, partial(check_file_size, name, most=most))
    else:
        folder = _folder(source, settings)
        if not folder.is_dir():
            raise _not_found(f"the folder {folder} does not exist on the worker")
        name = source.file or _only([file.name for file in folder.iterdir()])
        file = folder / name
    if file is None or not file.is_file():
        raise _not_found(f"there is no file {name}")
    return file


def _folder(source: AdapterSource, settings: Settings) -> Path:
    """Return the folder of a source that is on this machine already."""
    if source.path is not None:
        return Path(source.path)
    claim = source.persistent_volume_claim
    if claim is None:
        raise _not_found("spec.source names no place")
    within = claim.path.strip("/")
    if ".." in PurePosixPath(within).parts:
        raise _not_found(f"spec.source.persistentVolumeClaim.path {within} leads out of the volume")
    if (mounted := settings.claim_paths.get(claim.claim_name)) is not None:
        return mounted / within
    own = settings.spec.source.persistent_volume_claim
    if own is None or own.claim_name != claim.claim_name or settings.model_path is None:
        raise _not_found(f"the model's workers do not mount the claim {claim.claim_name}")
    # The whole volume is mounted; the model's path is within it.
    depth = len(PurePosixPath(own.path.strip("/")).parts)
    return Path(*settings.model_path.parts[: len(settings.model_path.parts) - depth]) / within


def _only(files: list[str]) -> str:
    """Choose the file of a folder that is an adapter's."""
    found = sorted(name for name in files if name.endswith(_SUFFIX) and "/" not in name)
    if USUAL in found:
        return USUAL
    if len(found) != 1:
        names = ", ".join(found[:_SHOWN])
        what = f"there are {len(found)} safetensors files ({names})" if found else "there is no safetensors file"
        raise _not_found(f"{what} in the source; name one by spec.source.file")
    return found[0]


def _not_found(message: str) -> AdapterRefusedError:
    return AdapterRefusedError(AdapterReason.SOURCE_NOT_FOUND, message)
