"""Finds a model's folder on this machine, checks it before anything of it is loaded, and names its content.

What a restart cannot cure is a :class:`~kubediffusion.worker.engine.BadModelError`: a missing folder, weights in a
format that can run code, code of the repository without permission. Everything else raises as it comes.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubediffusion.resources.diffusion_model import DiffusionModelSpec, ModelSource
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
class LocalModel:
    """A model in a folder of this machine.

    Attributes:
        folder: Holds ``model_index.json``.
        revision: Commit of the repository, or hash of the content.
    """

    folder: Path
    revision: str


def local_folder(source: ModelSource, mounted: Path | None) -> Path | None:
    """Return the folder of a source that is on this machine already; None for one that must be fetched.

    Args:
        source: ``spec.source`` of the DiffusionModel.
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
    if spec.use_safetensors:
        for component in _components(index):
            # One that is not loaded may be in any format.
            if component != "safety_checker" or spec.safety_checker:
                _check_weights(folder / component)
    if spec.safety_checker and not _is_loaded(index.get("safety_checker")):
        raise BadModelError("spec.safetyChecker is true, but the pipeline has no safety checker; set it to false")
    return index


def _components(index: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: value for name, value in index.items() if not name.startswith("_") and _is_loaded(value)}


def _is_loaded(value: object) -> bool:
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
    for config in sorted(folder.glob("*/config.json")):
        try:
            names_code = "auto_map" in json.loads(config.read_text())
        except (ValueError, OSError):
            continue  # the loader gives a better message
        if names_code and any(config.parent.glob("*.py")):
            code.append(f"{config.parent.name}/config.json (auto_map)")
    return code


def _check_weights(component: Path) -> None:
    if not component.is_dir():
        return
    files = [file for file in sorted(component.iterdir()) if file.is_file()]
    pickled = [file.name for file in files if file.suffix in PICKLED]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise BadModelError(
            f"{component.name}/ has weights only as {pickled[0]}, which can run code when loaded; convert the model to "
            "safetensors, or set spec.useSafetensors to false"
        )


def content_revision(folder: Path) -> str:
    """Return a name of a folder's content: ``sha256:`` and a hash over names, sizes and hashes of the pipeline's files.

    These are the files in the components' folders and those that loading reads at the top; a README changes no pixel.
    Each file is hashed in parts of 16 MiB, side by side. Of a folder beyond ``WHOLE_HASH_BYTES`` each file gives its
    size, its first and its last MiB: a safetensors header and any retraining change these, and a start is not delayed
    by minutes.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _is_content(file.relative_to(folder)))
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
