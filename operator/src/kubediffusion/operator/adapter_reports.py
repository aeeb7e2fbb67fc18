"""What workers say of their adapters, and what an adapter's status says by that. Pure.

A worker tells it in a condition of its Pod (docs/adr/0012, 0027). It may run anybody's code: what it says is parsed
within bounds, is about adapters that exist and their spec of today, and has a reason that is known, or is nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping

from kubediffusion.operator.snapshots import LIVE, ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, Pod
from kubediffusion.resources.adapters import AdapterReport, reports_from_json
from kubediffusion.resources.conditions import (
    AdapterConditionType,
    AdapterReason,
    ConditionStatus,
    PodConditionType,
    with_condition,
)
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import (
    MAX_HOLDERS,
    SHORT_DIGEST,
    LoRAAdapter,
    LoRAAdapterStatus,
)
from kubediffusion.resources.texts import shorten

LONGEST_MESSAGE = 500
"""Characters of a worker's message that go into an adapter's status."""

_OPERATORS_OWN = frozenset({AdapterReason.LOADED, AdapterReason.NOT_LOADED, AdapterReason.MODEL_NOT_FOUND})
"""Reasons that are no worker's to give."""
_WORKERS = frozenset(AdapterReason) - _OPERATORS_OWN


def told_adapters(pod: Pod) -> str:
    """Return what a Pod's worker says of its adapters, unread; empty where it says nothing."""
    told = (c.message for c in pod.status.conditions if c.type == PodConditionType.ADAPTERS_KNOWN)
    return next(told, "")


def report_on(adapter: LoRAAdapter, worker: ObservedWorker) -> AdapterReport | None:
    """Return what a worker says of an adapter as its spec is now; None where it says nothing of it."""
    told = told_adapters(worker.pod) if worker.pod is not None else ""
    report = reports_from_json(told).get(adapter.name) if told else None
    if report is None or not report.speaks_of(adapter.uid, adapter.metadata.generation):
        return None
    return report if report.held or report.reason in _WORKERS else None


def adapters_at(worker: ObservedWorker, jobs: Iterable[GenerationJob], adapters: Mapping[str, LoRAAdapter]) -> set[str]:
    """Return the names of the adapters that a worker holds, or loads for a job that it has.

    Args:
        worker: The worker.
        jobs: Its jobs.
        adapters: LoRAAdapters of the namespace by name.
    """
    told = reports_from_json(told_adapters(worker.pod)) if worker.pod is not None else {}
    held = {name for name in told.keys() & adapters.keys() if (r := report_on(adapters[name], worker)) and r.held}
    return held.union(asked.name for job in jobs for asked in job.spec.adapters or ())


def adapter_status(adapter: LoRAAdapter, snapshot: ModelSnapshot | None, now: dt.datetime) -> LoRAAdapterStatus:
    """Return the status that an adapter should have.

    Args:
        adapter: The adapter.
        snapshot: What is observed of its model; None where that does not exist.
        now: The time, for a condition that changes.
    """
    generation, template = adapter.metadata.generation, snapshot.template_hash if snapshot is not None else None
    old = adapter.status
    same = old.observed_generation == generation and old.template_hash == template
    told = list(_told(adapter, snapshot)) if snapshot is not None else []
    held = sorted((pod, report) for pod, report in told if report.held)
    digest, rank = (old.digest, old.rank) if old.observed_generation == generation else (None, None)
    if held:
        digest, rank = held[0][1].digest, held[0][1].rank
    ready, reason, message = _readiness(adapter, snapshot, [report for _, report in told], same=same)
    message = shorten(message, LONGEST_MESSAGE)
    return LoRAAdapterStatus(
        conditions=with_condition(old.conditions, AdapterConditionType.READY, ready, reason, message, now, generation),
        digest=digest,
        short_digest=digest[:SHORT_DIGEST] if digest is not None else None,
        rank=rank,
        workers=tuple(pod for pod, _ in held[:MAX_HOLDERS]),
        template_hash=template,
        observed_generation=generation,
    )


def observed_of(snapshot: ModelSnapshot | None) -> object:
    """Return all that the status of an adapter of a model depends on, beside the adapter; equal while it is the same.

    Args:
        snapshot: What is observed of the model; None where that does not exist.
    """
    if snapshot is None:
        return None
    told = tuple((w.pod.metadata.name, told_adapters(w.pod)) for w in snapshot.current(*LIVE) if w.pod is not None)
    return snapshot.template_hash, told, snapshot.pipeline is not None and snapshot.pipeline.adapters


def _told(adapter: LoRAAdapter, snapshot: ModelSnapshot) -> Iterator[tuple[str, AdapterReport]]:
    """Yield what live workers of today's template say of an adapter, with the names of their Pods."""
    for worker in snapshot.current(*LIVE):
        if worker.pod is not None and (report := report_on(adapter, worker)) is not None:
            yield worker.pod.metadata.name, report


def _readiness(
    adapter: LoRAAdapter, snapshot: ModelSnapshot | None, told: list[AdapterReport], *, same: bool
) -> tuple[ConditionStatus, AdapterReason, str]:
    if snapshot is None:
        missing = f"no DiffusionModel {adapter.spec.model!r} exists in this namespace"
        return ConditionStatus.FALSE, AdapterReason.MODEL_NOT_FOUND, missing
    if held := [report for report in told if report.held]:
        message = f"workers of model {snapshot.model.name!r} that hold it: {len(held)}"
        if len({report.digest for report in held}) > 1:
            message += ", not all the same weights: its source has changed; pin a revision, or replace the workers"
        return ConditionStatus.TRUE, AdapterReason.LOADED, message
    if told:
        return ConditionStatus.FALSE, AdapterReason(told[0].reason or ""), told[0].message
    if snapshot.pipeline is not None and snapshot.pipeline.adapters is False:
        message = f"model {snapshot.model.name!r} takes no adapters: {snapshot.pipeline.name} cannot"
        return ConditionStatus.FALSE, AdapterReason.NOT_SUPPORTED, message
    refusal = adapter.refusal
    if same and refusal is not None:
        # Its worker is gone, and the next would find the same.
        return ConditionStatus.FALSE, AdapterReason(refusal.reason), refusal.message
    message = "no worker holds it now; the next job that names it has one load it"
    return ConditionStatus.FALSE, AdapterReason.NOT_LOADED, message
