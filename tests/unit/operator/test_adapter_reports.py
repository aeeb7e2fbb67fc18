"""What an adapter's status says by what workers tell of it, how often it is written, and which jobs fail by it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from kubediffusion.operator.actions import Bind, Finish, ReportAdapter
from kubediffusion.operator.adapter_reports import LONGEST_MESSAGE, adapter_status, observed_of
from kubediffusion.operator.events import events_of_adapter_report
from kubediffusion.operator.job_status import next_status
from kubediffusion.operator.rate import AdapterReportRate
from kubediffusion.operator.snapshots import ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, PlatformCondition, WorkerState
from kubediffusion.resources.adapters import AdapterReport
from kubediffusion.resources.conditions import REFUSED_ADAPTER, AdapterReason, Condition, PodConditionType
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.lora_adapter import MAX_HOLDERS, LoRAAdapter
from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.resources.testing import NOW, adapter, job, present
from unit.operator.builders import HASH, OLD_HASH, holding, plan, pod_name, pod_of, snapshot, telling, worker

DIGEST, OTHER_DIGEST = "ab" * 32, "cd" * 32
HELD = AdapterReport(uid="uid-crayon", generation=1, digest=DIGEST, rank=8)
REFUSED = AdapterReport(uid="uid-crayon", generation=1, reason="RankTooLarge", message="rank 512; 64 at most")
READY = WorkerState.READY


def ready_with(*reports: AdapterReport) -> ModelSnapshot:
    return snapshot(workers=[holding(worker(n, READY), {"crayon": report}) for n, report in enumerate(reports)])


def said(item: LoRAAdapter, seen: ModelSnapshot | None) -> Condition:
    return present(item.model_copy(update={"status": adapter_status(item, seen, NOW)}).readiness)


def told(item: LoRAAdapter, seen: ModelSnapshot | None) -> LoRAAdapter:
    """The adapter once its status has been written."""
    return item.model_copy(update={"status": adapter_status(item, seen, NOW)})


def test_an_adapter_that_nobody_has_loaded_says_that_the_next_job_does_so() -> None:
    condition = said(adapter(), snapshot(workers=[worker(0, READY)]))
    assert (condition.status, condition.reason) == ("False", "NotLoaded")
    assert "the next job that names it has one load it" in condition.message


def test_an_adapter_without_its_model_says_so() -> None:
    condition = said(adapter(of="gone"), None)
    assert (condition.status, condition.reason) == ("False", "ModelNotFound")
    assert "'gone'" in condition.message


def test_an_adapter_that_workers_hold_names_them_its_digest_and_its_rank() -> None:
    status = adapter_status(adapter(), ready_with(HELD, HELD), NOW)
    assert (status.digest, status.short_digest, status.rank) == (DIGEST, DIGEST[:12], 8)
    assert status.workers == (pod_name(0), pod_name(1))
    assert (status.template_hash, status.observed_generation) == (HASH, 1)
    assert [(c.status, c.reason) for c in status.conditions] == [("True", "Loaded")]


def test_of_many_holders_the_first_are_named() -> None:
    status = adapter_status(adapter(), ready_with(*[HELD] * (MAX_HOLDERS + 3)), NOW)
    assert len(status.workers) == MAX_HOLDERS


def test_workers_that_hold_different_weights_are_pointed_out() -> None:
    other = HELD.model_copy(update={"digest": OTHER_DIGEST})
    assert "not all the same weights" in said(adapter(), ready_with(HELD, other)).message


def test_one_that_holds_it_outweighs_one_that_refuses_it() -> None:
    assert said(adapter(), ready_with(REFUSED, HELD)).reason == "Loaded"


def test_digest_and_rank_stay_while_no_worker_is_there_and_go_with_the_spec() -> None:
    loaded = told(adapter(), ready_with(HELD))
    cold = adapter_status(loaded, snapshot(), NOW)
    assert (cold.digest, cold.rank, cold.workers) == (DIGEST, 8, ())
    changed = loaded.model_copy(update={"metadata": loaded.metadata.model_copy(update={"generation": 2})})
    assert adapter_status(changed, snapshot(), NOW).digest is None


@pytest.mark.parametrize("reason", sorted(REFUSED_ADAPTER))
def test_a_refusal_is_told_in_the_workers_words_and_outlives_its_worker(reason: AdapterReason) -> None:
    refused = told(adapter(), ready_with(AdapterReport(reason=reason, message="because")))
    assert (present(refused.refusal).reason, present(refused.refusal).message) == (reason, "because")
    assert told(refused, snapshot()).refusal == refused.refusal
    assert told(refused, replace(snapshot(), template_hash="other")).refusal is None
    edited = refused.model_copy(update={"metadata": refused.metadata.model_copy(update={"generation": 2})})
    assert told(edited, snapshot()).refusal is None


@pytest.mark.parametrize("reason", ["FetchFailed", "SourceNotFound"])
def test_what_may_pass_is_told_and_forgotten_with_its_worker(reason: str) -> None:
    failed = told(adapter(), ready_with(AdapterReport(reason=reason, message="404")))
    assert present(failed.readiness).reason == reason
    assert failed.refusal is None
    assert present(told(failed, snapshot()).readiness).reason == "NotLoaded"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        '{"crayon": 1}',
        '{"crayon": {"reason": "Loaded"}}',
        '{"crayon": {"reason": "Whatever", "message": "x"}}',
    ],
)
def test_what_is_no_word_of_ours_says_nothing(message: str) -> None:
    seen = snapshot(workers=[telling(worker(0, READY), message)])
    assert said(adapter(), seen).reason == "NotLoaded"


@pytest.mark.parametrize(
    "report",
    [HELD.model_copy(update={"uid": "uid-other"}), HELD.model_copy(update={"generation": 2})],
)
def test_a_report_on_another_adapter_or_another_spec_says_nothing(report: AdapterReport) -> None:
    assert said(adapter(), ready_with(report)).reason == "NotLoaded"


def test_workers_of_another_template_and_those_that_have_ended_say_nothing() -> None:
    for built in (worker(0, READY, template=OLD_HASH), worker(0, WorkerState.FAILED), worker(0, WorkerState.GOING)):
        assert said(adapter(), snapshot(workers=[holding(built, {"crayon": HELD})])).reason == "NotLoaded"


def test_words_of_a_worker_are_cut() -> None:
    seen = ready_with(AdapterReport(reason="UnknownKeys", message="x" * 1000))
    assert len(said(adapter(), seen).message) == LONGEST_MESSAGE


def with_facts(built: ObservedWorker, *, adapters: bool | None) -> ObservedWorker:
    facts = PipelineFacts(name="OddPipeline", adapters=adapters)
    condition = PlatformCondition(type=PodConditionType.PIPELINE_KNOWN, status="True", message=facts.to_json())
    pod = pod_of(built)
    status = pod.status.model_copy(update={"conditions": (*pod.status.conditions, condition)})
    return replace(built, pod=pod.model_copy(update={"status": status}))


@pytest.mark.parametrize(("takes", "reason"), [(False, "NotSupported"), (True, "NotLoaded"), (None, "NotLoaded")])
def test_a_pipeline_that_takes_no_adapters_refuses_them_all(takes: bool | None, reason: str) -> None:
    seen = snapshot([job(adapters=[{"name": "crayon"}])], [with_facts(worker(0, READY), adapters=takes)])
    assert said(adapter(), seen).reason == reason
    (action,) = plan(replace(seen, adapters={"crayon": adapter()}))
    if takes is False:
        assert isinstance(action, Finish)
        assert action.message == "spec.adapters: model 'emoji' takes none: OddPipeline cannot; leave them out"
    else:
        assert isinstance(action, Bind)


def test_a_job_whose_adapter_is_refused_fails_with_the_reason() -> None:
    refused = told(adapter(), ready_with(REFUSED))
    seen = replace(snapshot([job(adapters=[{"name": "crayon"}])], [worker(0, READY)]), adapters={"crayon": refused})
    (action,) = plan(seen)
    assert isinstance(action, Finish)
    assert action.code is ErrorCode.INVALID_ADAPTER
    assert action.message == "spec.adapters: 'crayon' cannot be used (RankTooLarge): rank 512; 64 at most"
    # The workers of another spec of the model may take it.
    (action,) = plan(replace(seen, template_hash="other", workers=(worker(0, READY, template="other"),)))
    assert isinstance(action, Bind)


@pytest.mark.parametrize(("asked", "scale"), [({}, 0.5), ({"scale": 0}, 0), ({"scale": -2}, -2)])
def test_a_jobs_recipe_has_the_scale_that_it_asks_for_or_the_adapters_own(asked: Any, scale: float) -> None:
    waiting = job(adapters=[{"name": "crayon", **asked}])
    seen = replace(snapshot([waiting], [worker(0, READY)]), adapters={"crayon": adapter(scale=0.5)})
    (bind,) = plan(seen)
    assert isinstance(bind, Bind)
    (applied,) = present(present(next_status(bind, NOW, 7).parameters).adapters)
    assert (applied.name, applied.scale, applied.digest) == ("crayon", scale, None)


def test_an_event_tells_of_a_refusal_once() -> None:
    new = adapter()
    refused = ReportAdapter(new, adapter_status(new, ready_with(REFUSED), NOW))
    (event,) = events_of_adapter_report(refused)
    assert (event.kind, event.reason, event.message) == ("Warning", "RankTooLarge", "rank 512; 64 at most")
    again = told(new, ready_with(REFUSED))
    assert (
        events_of_adapter_report(ReportAdapter(again, adapter_status(again, ready_with(REFUSED, REFUSED), NOW))) == []
    )
    assert events_of_adapter_report(ReportAdapter(new, adapter_status(new, ready_with(HELD), NOW))) == []


def test_a_status_is_written_once_a_second_at_most_and_so_many_a_second_in_all() -> None:
    rate = AdapterReportRate(rate=2, clock=lambda: 0.0)
    items = [adapter(name) for name in ("a", "b", "c")]
    reports = [rate.next_report(item, adapter_status(item, snapshot(), NOW), NOW) for item in items]
    assert [isinstance(report, ReportAdapter) for report in reports] == [True, True, False]
    assert reports[2] == NOW + dt.timedelta(seconds=1)
    changed = adapter_status(items[0], ready_with(HELD), NOW)
    assert rate.next_report(items[0], changed, NOW + dt.timedelta(seconds=0.4)) == NOW + dt.timedelta(seconds=1)
    written = told(items[0], snapshot())
    assert rate.next_report(written, adapter_status(written, snapshot(), NOW), NOW) is None


def test_an_adapter_is_looked_at_again_when_it_or_its_workers_have_changed() -> None:
    rate, item, seen = AdapterReportRate(), adapter(), ready_with(HELD)
    assert not rate.is_settled(item, observed_of(seen))
    rate.settle(item, observed_of(seen))
    assert rate.is_settled(item, observed_of(ready_with(HELD)))
    for other in (ready_with(REFUSED), ready_with(HELD, HELD), replace(seen, template_hash="other"), None):
        assert not rate.is_settled(item, observed_of(other))
    assert not rate.is_settled(told(item, seen), observed_of(seen))
    rate.forget(item)
    assert not rate.is_settled(item, observed_of(seen))
