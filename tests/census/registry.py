"""The rows of the census: which models there are, and the folder of each, made once and kept by content."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import pkgutil
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from census import builders
from census.weights import randomised

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """One tiny model.

    Attributes:
        name: Names the row, as people name what it stands for.
        pipeline: diffusers class.
        build: Makes the pipeline; its weights are filled afterwards.
        sizes: Widths and heights that tests ask for, all on the pipeline's grid.
        steps: Denoising steps that people use with the published model; None where there is none.
        guidance: Its guidance scale.
        precision: Numbers that it was published to run in.
        gigabytes: Memory that its weights take in that precision, text encoders included.
        refused: Why the worker must not load it; words of the message.
    """

    name: str
    pipeline: str
    build: Callable[[], Any]
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (96, 64))
    steps: int | None = None
    guidance: float | None = None
    precision: str = "bfloat16"
    gigabytes: float | None = None
    refused: str | None = None


MODELS: dict[str, Model] = {}
"""Every row by its name."""


def model(name: str, pipeline: str, **more: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register the function that makes a tiny model; several names may share one."""

    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in MODELS, name
        MODELS[name] = Model(name, pipeline, build, **more)
        return build

    return register


def folder(name: str) -> Path:
    """Return the diffusers folder of a row, made if it is not there; processes may call it at the same time."""
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    place = root / name
    with _locked(root / f"{name}.lock"):
        if not place.exists():
            partial = root / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            save(MODELS[name], partial)
            partial.rename(place)
    return place


def save(row: Model, place: Path) -> None:
    """Make a row's model and write it to a folder."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipeline = row.build()
        for name, component in pipeline.components.items():
            if isinstance(component, torch.nn.Module):
                randomised(component, name)
        pipeline.save_pretrained(place, safe_serialization=True)


def _root() -> Path:
    """Where folders are kept: another place for other builders or other libraries."""
    digest = hashlib.sha256(f"{diffusers.__version__} {transformers.__version__} {torch.__version__}".encode())
    for source in sorted([*_HERE.glob("*.py"), *_HERE.glob("builders/*.py")]):
        if source.name not in {"__main__.py", "census.py", "probe.py", "page.py"}:  # they make nothing
            digest.update(source.read_bytes())
    return Path(tempfile.gettempdir()) / f"kubediffusion-models-{os.getuid()}" / digest.hexdigest()[:16]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


for _module in pkgutil.iter_modules(builders.__path__):
    importlib.import_module(f"census.builders.{_module.name}")
