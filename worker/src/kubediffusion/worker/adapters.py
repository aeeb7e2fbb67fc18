"""Loads the adapters that jobs name, while the engine computes other jobs.

An adapter's file is fetched and read once for all jobs that name it, and kept while there is room. A job whose adapters
are not here yet waits beside its worker's batches, and delays none; one whose adapter is refused fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from kubediffusion.resources.adapters import AdapterReport, AppliedAdapter, JobAdapter
from kubediffusion.resources.apiserver.errors import ForbiddenError, NotFoundError
from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.lora_adapter import AdapterSource, LoRAAdapter
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.context import AdapterSettings, WorkerContext
from kubediffusion.worker.engine import BadModelError, Engine, described
from kubediffusion.worker.engine.adapters import AdapterRefusedError, AdapterWeights, ImageAdapter, check_file_size
from kubediffusion.worker.fetches import FailedTry, Fetcher, FetchLog, FinishImage
from kubediffusion.worker.progress_reporter import ProgressReporter
from kubediffusion.worker.sources import ModelRefusedError

logger = logging.getLogger(__name__)

_LOG = FetchLog(logger, "adapters", "loaded", "an adapter is not loaded yet, trying again")


@dataclass(frozen=True)
class AdapterVersion:
    """One LoRAAdapter as its spec was at one time.

    Attributes:
        name: Its name.
        uid: Of the resource.
        generation: Of its spec.
    """

    name: str
    uid: str
    generation: int

    @classmethod
    def of(cls, adapter: LoRAAdapter) -> AdapterVersion:
        """Return the version of an adapter as it is."""
        return cls(adapter.name, adapter.uid, adapter.metadata.generation or 0)


class HeldAdapters:
    """Adapters in main memory, of which those that were used longest ago make room for others.

    Belongs to the event loop.

    Args:
        capacity: Bytes of adapters at most; the last one is kept even where it is larger.
        reported: Called with what is held and what is refused, by name, whenever it changes; what was used last first.
    """

    def __init__(self, capacity: int, reported: Callable[[Mapping[str, AdapterReport]], None]) -> None:
        self._capacity = capacity
        self._reported = reported
        # Least recently used first.
        self._held: OrderedDict[AdapterVersion, AdapterWeights] = OrderedDict()
        self._refused: OrderedDict[AdapterVersion, AdapterReport] = OrderedDict()

    def get(self, version: AdapterVersion) -> AdapterWeights | None:
        """Return an adapter, which counts as a use; None where it is not held."""
        weights = self._held.get(version)
        if weights is not None:
            self._held.move_to_end(version)
        return weights

    def hold(self, version: AdapterVersion, weights: AdapterWeights) -> None:
        """Hold an adapter, and let others go where there is no room for all."""
        self._forget(version.name)
        self._held[version] = weights
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > self._capacity:
            gone, _ = self._held.popitem(last=False)
            logger.info("an adapter makes room for another", extra={"adapter": gone.name})
        self._tell()

    def refuse(self, version: AdapterVersion, reason: AdapterReason, message: str) -> None:
        """Tell why an adapter is not held."""
        self._forget(version.name)
        self._refused[version] = _report(version, reason=reason, message=message)
        while len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)
        self._tell()

    def _forget(self, name: str) -> None:
        """Forget what was of a name: of an earlier version of it, the file may be another."""
        for known in (self._held, self._refused):
            for version in [version for version in known if version.name == name]:
                del known[version]

    def _tell(self) -> None:
        reports = {
            version.name: _report(version, digest=weights.digest, rank=weights.rank)
            for version, weights in reversed(self._held.items())
        }
        self._reported(reports | {version.name: report for version, report in reversed(self._refused.items())})


_MOST_REFUSED = 64
"""Adapters that were refused last and are told of."""


def _report(version: AdapterVersion, **told: object) -> AdapterReport:
    return AdapterReport.model_validate({"uid": version.uid, "generation": version.generation, **told})


class AdapterLoader:
    """Loads the adapters of jobs, and gives them to their assignments. Belongs to the event loop.

    Args:
        context: What the parts of the worker share.
        settings: How adapters are found and fetched.
        finish_image: Takes in failures.
        progress: Writes that storage makes a job wait.
        threads: Fetch and read.
    """

    def __init__(
        self,
        context: WorkerContext,
        settings: AdapterSettings,
        finish_image: FinishImage,
        progress: ProgressReporter,
        threads: Executor,
    ) -> None:
        self._engine: Engine = context.engine
        self._settings = settings
        self._threads = threads
        self._fetcher = Fetcher(context, finish_image, progress, _LOG)
        self._held = HeldAdapters(settings.capacity, settings.reported)
        self._reading: dict[AdapterVersion, asyncio.Task[AdapterWeights]] = {}

    def observe(self, assignment: Assignment) -> None:
        """Begin to load the adapters of a job that has just been bound."""
        if not assignment.awaits_adapters or assignment.loads_adapters or assignment.finishing:
            return
        assignment.loads_adapters = True
        self._fetcher.start(assignment, self._load_all(assignment))

    async def _load_all(self, assignment: Assignment) -> None:
        loaded = [await self._load(assignment, given) for given in assignment.job.spec.adapters or ()]
        self._check_rank(loaded)
        assignment.set_adapters(
            tuple(ImageAdapter(weights.digest, applied.scale, weights) for applied, weights in loaded),
            tuple(applied for applied, _ in loaded),
        )

    def _check_rank(self, loaded: list[tuple[AppliedAdapter, AdapterWeights]]) -> None:
        ranks, most = [weights.rank for _, weights in loaded], self._engine.info.adapter_rank
        if sum(ranks) > most:
            raise JobFailure(
                ErrorCode.INVALID_ADAPTER,
                f"adapters: their ranks are {' + '.join(map(str, ranks))}, together more than the {most} that an image "
                "may have here (KUBEDIFFUSION_ADAPTER_RANK); name fewer of them",
            )

    async def _load(self, assignment: Assignment, given: JobAdapter) -> tuple[AppliedAdapter, AdapterWeights]:
        adapter, weights = await self._fetcher.until_fetched(
            assignment, lambda: self._find(given.name), lambda error: _judge(error, given.name), adapter=given.name
        )
        scale = assignment.adapter_scale(given.name)
        told = adapter.spec.scale if scale is None else scale
        return AppliedAdapter(name=given.name, scale=told, digest=weights.digest), weights

    async def _find(self, name: str) -> tuple[LoRAAdapter, AdapterWeights]:
        """Return the LoRAAdapter of a name, and its weights.

        Raises:
            JobFailure: It cannot be used.
            ForbiddenError, ModelRefusedError: It is refused, for the moment or for good.
            Exception: It could not be found or fetched this time.
        """
        try:
            adapter = await self._settings.find(name)
        except NotFoundError:
            raise _unusable(name, "there is no such LoRAAdapter") from None
        if adapter.spec.model != self._settings.model:
            raise _unusable(name, f"it is for model {adapter.spec.model!r}")
        try:
            return adapter, await self._weights(adapter)
        except AdapterRefusedError as error:
            raise _unusable(name, f"{error.reason}: {error.message}") from error

    async def _weights(self, adapter: LoRAAdapter) -> AdapterWeights:
        """Return an adapter's weights: those that are held, or those of one read for all jobs that wait for it.

        Raises:
            AdapterRefusedError: It cannot be used with this model.
            ModelRefusedError: Its source refuses it.
            Exception: It could not be fetched this time.
        """
        version = AdapterVersion.of(adapter)
        if (weights := self._held.get(version)) is not None:
            return weights
        if version not in self._reading:
            reading = asyncio.get_running_loop().create_task(self._read(version, adapter.spec.source))
            self._reading[version] = reading
            reading.add_done_callback(lambda task: self._done(version, task))
        # A job that is taken away ends no read that others wait for.
        return await asyncio.shield(self._reading[version])

    def _done(self, version: AdapterVersion, task: asyncio.Task[AdapterWeights]) -> None:
        del self._reading[version]
        if not task.cancelled():
            # Asked for here, as everybody who waited may be gone.
            task.exception()

    async def _read(self, version: AdapterVersion, source: AdapterSource) -> AdapterWeights:
        began, loop = time.monotonic(), asyncio.get_running_loop()
        try:
            if not self._engine.info.adapter_rank:
                pipeline = self._engine.info.pipeline
                raise AdapterRefusedError(AdapterReason.NOT_SUPPORTED, f"{pipeline} takes no adapters")  # noqa: TRY301
            weights = await loop.run_in_executor(self._threads, self._fetch_and_read, source)
        except AdapterRefusedError as error:
            logger.warning("an adapter is refused: %s", error.reason, extra={"adapter": version.name})
            self._held.refuse(version, error.reason, error.message)
            raise
        except Exception as error:
            logger.warning("an adapter cannot be fetched", extra={"adapter": version.name, **described(error)})
            self._held.refuse(version, AdapterReason.FETCH_FAILED, str(error))
            raise
        about = {"adapter": version.name, "rank": weights.rank, "bytes": weights.nbytes}
        logger.info("adapter loaded", extra={**about, "seconds": round(time.monotonic() - began, 3)})
        self._held.hold(version, weights)
        return weights

    def _fetch_and_read(self, source: AdapterSource) -> AdapterWeights:
        try:
            file = self._settings.fetch(source)
        except ModelRefusedError:
            raise
        except BadModelError as error:
            raise AdapterRefusedError(AdapterReason.SOURCE_NOT_FOUND, str(error)) from error
        check_file_size(file.name, file.stat().st_size, self._settings.capacity)
        try:
            return self._engine.read_adapter(file)
        except (AdapterRefusedError, OSError, MemoryError):
            raise
        except Exception as error:
            # What nobody foresaw of a file, the next attempt would find again: its jobs would wait for ever.
            logger.exception("a defect: an adapter's file is neither read nor refused", extra={"file": file.name})
            raise AdapterRefusedError(
                AdapterReason.UNKNOWN_KEYS,
                f"{file.name} cannot be read ({type(error).__name__}: {error}): the worker's log says where; save it "
                "anew with diffusers or PEFT, or report a defect",
            ) from error


def _judge(error: Exception, name: str) -> FailedTry:
    """Tell what a failed try to find or fetch an adapter means."""
    if isinstance(error, ForbiddenError | ModelRefusedError):
        failure = _unusable(name, f"{AdapterReason.SOURCE_NOT_FOUND}: {error}")
        return FailedTry(f"adapter {name!r} is refused: {error}", failure)
    # Storage and the Hub are away in many ways.
    return FailedTry(f"adapter {name!r} is not here yet: {error}")


def _unusable(name: str, why: str) -> JobFailure:
    return JobFailure(ErrorCode.INVALID_ADAPTER, f"adapter {name!r} cannot be used: {why}")
