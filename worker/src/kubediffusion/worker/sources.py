"""Finds a model's folder on this machine, checks it before anything of it is loaded, and names its content.

What a restart cannot cure is a :class:`~kubediffusion.worker.engine.BadModelError`: a missing folder, weights in a
format that can run code, code of the repository without permission. Everything else raises as it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import SourceLocation
from kubediffusion.worker.cpus import usable_cpus
from kubediffusion.worker.engine import BadModelError


class ModelRefusedError(BadModelError):
    """A service refuses the model. It may be mistaken for a moment, so another worker asks again."""


INDEX = "model_index.json"
"""The file that makes a folder a diffusers pipeline."""

MODULAR_INDEX = "modular_model_index.json"
"""The file that makes a folder a modular pipeline of diffusers, whose blocks have no call of one kind."""

PICKLED = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".h5"})
"""Suffixes of weights that are no safetensors."""

WHOLE_HASH_BYTES = 8 * 2**30
"""Folders up to this size are hashed whole (a second a GiB on one processor); of larger ones, see
:func:`content_revision`."""

_PART = 16 * 2**20
_SAMPLE = 2**20

_HASHERS = 4
"""Threads that hash, at most: the imports beside them need a processor too, and storage is seldom faster."""


@dataclass(frozen=True)
class LocalComponent:
    """A component of a pipeline that comes from elsewhere, in a folder of this machine.

    Attributes:
        folder: Holds its files.
        revision: Commit of the repository, or hash of the content.
        weights: The one file of its weights; None where the folder has its configuration too.
    """

    folder: Path
    revision: str
    weights: Path | None = None


@dataclass(frozen=True)
class LocalModel:
    """A model in a folder of this machine.

    Attributes:
        folder: Holds ``model_index.json``.
        revision: Commit of the repository, or hash of the content; then the parts that come from elsewhere.
        checkpoint: The one file of its weights; None where the folder holds them.
        components: What comes from elsewhere, by name.
    """

    folder: Path
    revision: str
    checkpoint: Path | None = None
    components: Mapping[str, LocalComponent] = field(default_factory=dict)


def local_folder(source: SourceLocation, mounted: Path | None) -> Path | None:
    """Return the folder of a source that is on this machine already; None for one that must be fetched.

    Args:
        source: ``spec.source`` of the DiffusionModel, or of one of its components.
        mounted: Where a volume is mounted, the source's own path included.
    """
    if source.path is not None:
        return Path(source.path)
    return mounted if source.persistent_volume_claim is not None else None


def read_index(folder: Path) -> dict[str, Any]:
    """Return ``model_index.json`` of a folder, parsed.

    Raises:
        BadModelError: The folder is missing, or is no diffusers pipeline.
    """
    if not folder.is_dir():
        raise BadModelError(f"the model folder {folder} does not exist on the worker")
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError:
        if (folder / MODULAR_INDEX).exists():
            raise BadModelError(
                f"{folder} holds {MODULAR_INDEX} alone: it is a modular pipeline, which the worker cannot run; give a "
                f"repository of the model with {INDEX}"
            ) from None
        raise BadModelError(f"{folder} holds no {INDEX}: it is not a diffusers pipeline folder") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadModelError(f"{folder / INDEX} is not JSON: {error}") from None
    if not isinstance(index, dict) or "_class_name" not in index:
        raise BadModelError(f"{folder / INDEX} names no pipeline class (_class_name)")
    return index


def check_folder(folder: Path, spec: DiffusionModelSpec) -> dict[str, Any]:
    """Check that a folder may be loaded under the model's rules, and return its index.

    Raises:
        BadModelError: It may not; the message names the file and the remedy.
    """
    index = read_index(folder)
    if not spec.trust_remote_code:
        for code in _own_code(folder, index):
            raise BadModelError(
                f"the model brings Python code of its own ({code}); set spec.trustRemoteCode to allow it to run"
            )
    _check_names(index, {component.name for component in spec.components})
    elsewhere = {component.name for component in spec.components if component.source is not None}
    if spec.use_safetensors:
        for component in _components(index):
            # One that is not loaded may be in any format.
            if component not in elsewhere and (component != "safety_checker" or spec.safety_checker):
                _check_weights(folder / component)
    if spec.safety_checker and not is_loaded(index.get("safety_checker")):
        raise BadModelError("spec.safetyChecker is true, but the pipeline has no safety checker; set it to false")
    return index


def check_model(model: LocalModel, spec: DiffusionModelSpec) -> dict[str, Any]:
    """Check that a model may be loaded under its rules, and return its index.

    Raises:
        BadModelError: It may not; the message names the file and the remedy.
    """
    if model.checkpoint is not None and not (model.folder / INDEX).exists():
        raise BadModelError(
            f"spec.source.configFrom: {model.folder.name} holds no {INDEX}; name a diffusers folder of a model of the "
            f"same kind as {model.checkpoint.name}: its configuration is loaded from there"
        )
    index = check_folder(model.folder, spec)
    for name, component in model.components.items():
        field = f"spec.components[{name}].source"
        if not spec.trust_remote_code and (code := _code_of_component(component.folder, component.folder.name)):
            raise BadModelError(
                f"{field}: it brings Python code of its own ({code}); set spec.trustRemoteCode to allow it to run"
            )
        if component.weights is None and spec.use_safetensors:
            _check_weights(component.folder, f"{field}: ")
    return index


def _check_names(index: dict[str, Any], names: set[str]) -> None:
    """Check that a pipeline has the components that come from elsewhere."""
    known = [name for name, value in index.items() if not name.startswith("_") and isinstance(value, list)]
    if unknown := sorted(names.difference(known)):
        raise BadModelError(
            f"spec.components[{unknown[0]}]: {index['_class_name']} has no such component; it has {', '.join(known)}"
        )


def _components(index: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: value for name, value in index.items() if not name.startswith("_") and is_loaded(value)}


def is_loaded(value: object) -> bool:
    """Return whether an entry of the index names a component: ``[library, class]``, both null when it is left out."""
    return isinstance(value, list) and len(value) == 2 and None not in value


def _own_code(folder: Path, index: dict[str, Any]) -> list[str]:
    """Return the files that diffusers would import from the folder: a custom pipeline, or a component's module."""
    code = []
    if not isinstance(index["_class_name"], str):
        code.append(f"{index['_class_name'][0]}.py")
    for name, (library, _) in _components(index).items():
        if (folder / name / f"{library}.py").exists():
            code.append(f"{name}/{library}.py")
    # Transformers imports what a config's auto_map names.
    components = (config.parent for config in sorted(folder.glob("*/config.json")))
    return [*code, *(found for part in components if (found := _code_of_component(part, part.name)) is not None)]


def _code_of_component(folder: Path, name: str) -> str | None:
    """Return what transformers would import from a component's folder: the modules that its ``auto_map`` names."""
    try:
        names_code = "auto_map" in json.loads((folder / "config.json").read_text())
    except (ValueError, OSError):
        return None  # the loader gives a better message
    return f"{name}/config.json (auto_map)" if names_code and any(folder.glob("*.py")) else None


def _check_weights(component: Path, where: str = "") -> None:
    if not component.is_dir():
        return
    files = [file for file in sorted(component.iterdir()) if file.is_file()]
    pickled = [file.name for file in files if file.suffix in PICKLED]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise BadModelError(
            f"{where}{component.name}/ has weights only as {pickled[0]}, which can run code when loaded; convert the "
            "model to safetensors, or set spec.useSafetensors to false"
        )


def content_revision(folder: Path, only: Iterable[Path] | None = None) -> str:
    """Return a name of a folder's content: ``sha256:`` and a hash over names, sizes and hashes of the pipeline's files.

    These are the given ones, or the files in the components' folders and those that loading reads at the top; a README
    changes no pixel. Each file is hashed in parts of 16 MiB, side by side. Of a folder beyond ``WHOLE_HASH_BYTES`` each
    file gives its size, its first and its last MiB: a safetensors header and any retraining change these, and a start
    is not delayed by minutes.
    """
    if only is None:
        only = (file for file in folder.rglob("*") if file.is_file() and _is_content(file.relative_to(folder)))
    files = sorted(set(only))
    sizes = [file.stat().st_size for file in files]
    split = _in_parts if sum(sizes) <= WHOLE_HASH_BYTES else _at_the_edges
    parts = [(file, *part) for file, size in zip(files, sizes, strict=True) for part in split(size)]
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
    with ThreadPoolExecutor(min(usable_cpus(), _HASHERS), thread_name_prefix="hash") as hashers:
        for part in hashers.map(lambda part: _hashed(*part), parts):
            digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _in_parts(size: int) -> list[tuple[int, int]]:
    return [(begin, min(_PART, size - begin)) for begin in range(0, size, _PART)]


def _at_the_edges(size: int) -> list[tuple[int, int]]:
    return _in_parts(size) if size <= 2 * _SAMPLE else [(0, _SAMPLE), (size - _SAMPLE, _SAMPLE)]


def _hashed(file: Path, begin: int, size: int) -> bytes:
    """Return the SHA-256 of a part of a file, read and hashed in long calls that do not hold Python's lock.

    Not mapped: a file that shrinks meanwhile would end the process by a signal.

    Raises:
        OSError: It cannot be read, or has become shorter.
    """
    buffer = memoryview(bytearray(size))
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        read = 0
        while read < size:
            if not (count := stream.readinto(buffer[read:])):
                raise OSError(f"{file} became shorter while it was read")
            read += count
    return hashlib.sha256(buffer).digest()


def _is_content(file: Path) -> bool:
    if any(part.startswith(".") for part in file.parts):
        return False
    return (
        len(file.parts) > 1 or file.name in {INDEX, "config.json"} or file.suffix in {".safetensors", ".py", *PICKLED}
    )
