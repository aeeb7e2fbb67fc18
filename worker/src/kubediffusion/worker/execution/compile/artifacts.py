"""What PyTorch compiles by itself in a pipeline's own call, taken from one process and given to the next."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path

import torch

from kubediffusion.worker.compile_cache import CompiledCodeCache
from kubediffusion.worker.engine import Engine, EngineInfo, ImagePlan, ImageRequest, Monitor, described
from kubediffusion.worker.engine.adapters import AdapterWeights

logger = logging.getLogger(__name__)

NAME = "artifacts.zip"
"""Name of the cache entry that holds all artifacts."""

_PARTS = 4
"""Sets of artifacts of earlier processes that are handed on; more are seldom of use, and each costs its megabytes."""

Keys = frozenset[tuple[str, str]]
"""Kinds and keys of artifacts."""


class Artifacts:
    """Loads what earlier processes compiled, and keeps it together with what this one adds.

    PyTorch saves what a process compiled or found in the cache, not what it loaded and had no use for yet: that is
    handed on as it came, or the next worker would compile it once more.

    Args:
        cache: Has what the last process kept, and keeps it for the next.
    """

    def __init__(self, cache: CompiledCodeCache) -> None:
        self._cache = cache
        self._parts: list[tuple[Keys, bytes]] = []
        self._known: Keys = frozenset()

    def load(self) -> None:
        """Load the cached artifacts into PyTorch. One that cannot be used is logged, and its code is compiled anew."""
        parts = self._cache.get(NAME)
        began = time.monotonic()
        for part in parts:
            try:
                keys = _load(part)
            except Exception as error:  # noqa: BLE001 - compiled anew instead
                logger.warning("the compile cache cannot be used", extra=described(error))
                continue
            if keys:
                self._parts.append((keys, part))
        self._known = frozenset().union(*(keys for keys, _ in self._parts))
        if parts:
            seconds = round(time.monotonic() - began, 3)
            logger.info("compile cache loaded", extra={"artifacts": len(self._known), "seconds": seconds})

    def save(self) -> None:
        """Keep what this process compiled, if it is anything new; not while anything is compiled."""
        try:
            saved = torch.compiler.save_cache_artifacts()
        except Exception as error:  # noqa: BLE001 - the next worker compiles it anew
            logger.warning("what was compiled cannot be kept", extra=described(error))
            return
        if saved is None:
            return
        own = _keys(saved[1].artifacts)
        if own <= self._known:
            return
        self._known |= own
        self._parts = [part for part in self._parts if not part[0] <= own][-_PARTS:]
        self._cache.put(NAME, [*(data for _, data in self._parts), saved[0]])


class Saving:
    """An engine that compiles while a batch runs; what the first batch of a kind compiled is kept when it has ended.

    Args:
        engine: The engine.
        artifacts: Keeps it.
    """

    def __init__(self, engine: Engine, artifacts: Artifacts) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._seen: set[Hashable] = set()

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        return self._engine.info

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return how an image runs: see :meth:`kubediffusion.worker.engine.Engine.plan`."""
        return self._engine.plan(request)

    def read_adapter(self, file: Path) -> AdapterWeights:
        """Read an adapter's file: see :meth:`kubediffusion.worker.engine.Engine.read_adapter`."""
        return self._engine.read_adapter(file)

    def prepare_while_idle(self, wake: Callable[[], None]) -> bool:
        """Let the engine prepare what it can: see :meth:`kubediffusion.worker.engine.Engine.prepare_while_idle`."""
        return self._engine.prepare_while_idle(wake)

    def run(self, requests: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Make the images of one batch: see :meth:`kubediffusion.worker.engine.Engine.run`."""
        self._engine.run(requests, monitor)
        sampling = requests[0].sampling
        # What compiled code depends on.
        kind = (sampling.width, sampling.height, sampling.guidance > 1, len(requests))
        if kind not in self._seen:
            self._seen.add(kind)
            self._artifacts.save()


def _load(data: bytes) -> Keys:
    """Load all artifacts that a process saved into PyTorch, and return their keys.

    It saves a list of each kind of artifact for each time that it was asked to, one after the other, and its own
    loading (2.11 to 2.15) takes the last list of a kind for the only one: what a worker saved after its first batch
    would be lost because it saved again after another.

    Raises:
        Exception: It cannot be read.
    """
    try:
        from torch.compiler._cache import CacheArtifact, CacheArtifactManager, _deserialize_single_cache
        from torch.utils._appending_byte_serializer import AppendingByteSerializer

        register = CacheArtifactManager._ensure_cache_artifacts_registered  # noqa: SLF001 - as its own loading does
    except (ImportError, AttributeError):
        # A version that is made otherwise: what it does not load is compiled anew.
        info = torch.compiler.load_cache_artifacts(data)
        return frozenset() if info is None else _keys(info.artifacts)
    register()
    whole: defaultdict[str, list[CacheArtifact]] = defaultdict(list)
    for kind, artifacts in AppendingByteSerializer.to_list(data, deserialize_fn=_deserialize_single_cache):
        whole[kind] += artifacts
    return _keys(CacheArtifactManager.populate_caches(whole).artifacts)


def _keys(artifacts: dict[str, list[str]]) -> Keys:
    return frozenset((kind, key) for kind, keys in artifacts.items() for key in keys)
