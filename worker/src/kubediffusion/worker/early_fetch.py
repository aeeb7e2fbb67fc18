"""Fetches a model from S3 or a folder while PyTorch is being imported; `loading.fetch` adds the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kubediffusion.resources.model_source import ComponentSource, HuggingFaceSource, ModelSource, SourceLocation
from kubediffusion.worker import s3models
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalComponent, LocalModel, content_revision, local_folder

logger = logging.getLogger(__name__)

CONFIGURATION = ("*.json", "*.txt", "*.model")
"""Files of a diffusers folder that are no weights: configurations, and what tokenizers consist of."""

_STORED = "config.json"
"""Says how a component is stored."""

_WEIGHTS = ("*.safetensors",)

_SHOWN = 12
"""Characters of a part's revision that the model's shows."""

_LONG = 128
"""Characters of all parts' revisions from which on they are one hash."""


def fetch_from_s3_or_disk(settings: Settings) -> LocalModel:
    """Fetch the model to this machine, if it is not there, and return where it lies with its revision.

    Raises:
        BadModelError: There is no such model.
        DownloadError: It could not be fetched this time.
    """
    return fetch_model(settings, Locations(settings))


CONFIGURATION_SECONDS = 5.0
"""How long storage may be silent while configurations are fetched: nothing else of the start goes on meanwhile."""


def fetch_configurations(settings: Settings, scratch: Path) -> list[Path]:
    """Return folders with the configurations of a model's components, where they come from S3 or the Hub.

    They say how weights are stored, which decides the libraries that are imported before the weights come. What cannot
    be fetched is left out: the model cannot be fetched either then, and that says why.

    Args:
        settings: The model.
        scratch: Folder for those that come from S3.
    """
    spec = settings.spec
    wanted: list[tuple[SourceLocation, str, str]] = [
        (part.source, (part.source.subfolder or "").strip("/"), _STORED)
        for part in spec.components
        if part.source is not None and part.source.single_file is None
    ]
    if spec.source.single_file is None:
        wanted.append((spec.source, "", f"*/{_STORED}"))
    found = []
    for location, within, name in wanted:
        pattern = f"{glob.escape(within)}/{name}" if within else name
        try:
            if location.s3 is not None:
                fetched = s3models.fetch(
                    location.s3.uri, scratch, (pattern,), read_timeout=CONFIGURATION_SECONDS, attempts=1
                )
                found.append(fetched / within)
            elif location.hugging_face is not None:
                found.append(_of_hub(location.hugging_face, pattern, settings) / within)
        except Exception as error:  # noqa: BLE001 - the model's fetch meets the same, and says so
            logger.info("configurations could not be fetched: %s", type(error).__name__)
            # Storage that does not answer would keep each of them waiting.
            break
    return found


def _of_hub(source: HuggingFaceSource, pattern: str, settings: Settings) -> Path:
    # Late: most models come from elsewhere.
    from huggingface_hub import snapshot_download

    token = settings.hf_token.get_secret_value() or None if settings.hf_token is not None else None
    return Path(snapshot_download(source.repository, revision=source.revision, allow_patterns=pattern, token=token))


def needs_hub(settings: Settings) -> bool:
    """Return whether anything of the model comes from the Hugging Face Hub."""
    source = settings.spec.source
    locations = (source, source.config_from, *(component.source for component in settings.spec.components))
    return any(location is not None and location.hugging_face is not None for location in locations)


class Locations:
    """Fetches files from S3, and finds those that are on this machine.

    Args:
        settings: The model, and where volumes are mounted.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def fetch_pipeline(self, source: ModelSource) -> tuple[Path, str | None]:
        """Return the diffusers folder of a source, with its commit; None where its content names it."""
        return self.fetch_files(source, ())

    def fetch_files(self, location: SourceLocation, patterns: tuple[str, ...]) -> tuple[Path, str | None]:
        """Return the local folder of a location, with its commit; None where its content names it.

        Args:
            location: The location.
            patterns: Of the files that are wanted, as ``fnmatch`` has them; all where there are none.
        """
        if location.s3 is not None:
            return s3models.fetch(location.s3.uri, cache_folder(self._settings), patterns), None
        if location is self._settings.spec.source:
            local = local_folder(location, self._settings.model_path)
        else:
            local = local_folder(location, self._claimed(location))
        if local is None:
            raise BadModelError("spec.source names no place to load the model from")
        return local, None

    def _claimed(self, location: SourceLocation) -> Path | None:
        claim = location.persistent_volume_claim
        mounted = None if claim is None else self._settings.claim_paths.get(claim.claim_name)
        return None if claim is None or mounted is None else mounted / claim.path.strip("/")


def fetch_model(settings: Settings, locations: Locations) -> LocalModel:
    """Fetch everything that a model consists of to this machine.

    Args:
        settings: The model.
        locations: Fetches files from wherever they lie.

    Raises:
        BadModelError: A part of it does not exist.
        Exception: It could not be fetched this time.
    """
    source = settings.spec.source
    if source.single_file is None:
        folder, commit = locations.fetch_pipeline(source)
        model = LocalModel(folder, commit or content_revision(folder))
    else:
        model = _checkpoint(source, source.single_file, locations)
    components = {
        part.name: _component(part.name, part.source, settings.spec.use_safetensors, locations)
        for part in settings.spec.components
        if part.source is not None
    }
    parts = "".join(f"+{name}@{_short(part.revision)}" for name, part in components.items())
    if len(parts) > _LONG:
        # The revision is part of a file's name in the cache of compiled code.
        parts = f"+components@{hashlib.sha256(parts.encode()).hexdigest()[:_SHOWN]}"
    return LocalModel(model.folder, model.revision + parts, model.checkpoint, components)


def _checkpoint(source: ModelSource, name: str, locations: Locations) -> LocalModel:
    """Fetch a checkpoint in one file, and the folder of its configuration."""
    own = source.config_from is None
    root, commit = locations.fetch_files(source, (glob.escape(name), *(CONFIGURATION if own else ())))
    file = root / name
    if not file.is_file():
        raise BadModelError(f"spec.source.singleFile: {_missing(root, name)}")
    if source.config_from is None:
        configuration = [path for pattern in CONFIGURATION for path in root.rglob(pattern)]
        return LocalModel(root, commit or content_revision(root, [file, *configuration]), file)
    with _named("spec.source.configFrom"):
        folder, config_commit = locations.fetch_files(source.config_from, CONFIGURATION)
    config = config_commit or content_revision(folder)
    return LocalModel(folder, f"{commit or content_revision(root, [file])}+config@{_short(config)}", file)


def _component(name: str, source: ComponentSource, only_safetensors: bool, locations: Locations) -> LocalComponent:
    """Fetch a component that comes from elsewhere."""
    field = f"spec.components[{name}].source"
    within = (source.subfolder or "").strip("/")
    with _named(field):
        root, commit = locations.fetch_files(source, _component_patterns(source, within, only_safetensors))
    folder = root / within
    if not folder.is_dir():
        raise BadModelError(f"{field}: the folder {within or root} does not exist there")
    if source.single_file is None:
        return LocalComponent(folder, commit or content_revision(folder))
    file = folder / source.single_file
    if not file.is_file():
        raise BadModelError(f"{field}.singleFile: {_missing(folder, source.single_file)}")
    return LocalComponent(folder, commit or content_revision(folder, [file]), file)


def _component_patterns(source: ComponentSource, within: str, only_safetensors: bool) -> tuple[str, ...]:
    inside = f"{glob.escape(within)}/" if within else ""
    if source.single_file is not None:
        return (f"{inside}{glob.escape(source.single_file)}",)
    return tuple(inside + name for name in (*CONFIGURATION, *(_WEIGHTS if only_safetensors else ("*",))))


def _missing(folder: Path, name: str) -> str:
    """Say that a folder does not hold a file, and which it holds."""
    suffix = Path(name).suffix
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(f"*{suffix}"))[:5]
    return f"there is no file {name}" + (f"; there are {', '.join(found)}" if found else "")


def _short(revision: str) -> str:
    return revision.removeprefix("sha256:")[:_SHOWN]


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """Have a model's defect name the field that it is of."""
    try:
        yield
    except BadModelError as error:
        raise type(error)(f"{field}: {error}") from error


def cache_folder(settings: Settings) -> Path:
    """Return the folder that keeps models between workers of this machine."""
    return settings.cache_dir or Path(tempfile.gettempdir()) / "kubediffusion-models"
