"""What the loop takes in, and what it forgets; the cluster itself is asked nothing here."""

from __future__ import annotations

import datetime as dt

import pytest
from prometheus_client import REGISTRY

from kubediffusion.operator.controller import Controller
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.job_writes import _Told
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.retention import ImageRemover
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.state import ObjectList
from kubediffusion.resources.generation_job import GenerationJobStatus, Phase
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, job, model

DEFAULTS = WorkerDefaults(image="none", service_account="default", port=8080, s3_secret="none", log_level="INFO")


def a_controller():
    return Controller(None, EventRecorder(None, "operator-0"), ImageRemover(None, ""), Settings(), DEFAULTS)


def queued():
    """The gauge of the model's queue; None while there is none."""
    return REGISTRY.get_sample_value("kubediffusion_jobs_queued", {"namespace": NAMESPACE, "model": "emoji"})


def test_a_model_that_is_gone_leaves_no_gauge_however_that_was_learned():
    for told in (True, False):
        controller = a_controller()
        controller.observe_model(model(), gone=False)
        state = controller._namespaces[NAMESPACE]
        (view,) = state.views(NOW)
        controller._reports.next_report(view, None, NOW + dt.timedelta(hours=1))
        assert queued() == 0
        if told:
            controller.observe_model(model(), gone=True)
        else:
            controller._take_models(ObjectList((), 9))
        assert queued() is None
        assert state.models == {}


def newer(item, version):
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"resource_version": str(version)})})


def test_a_job_that_was_deleted_while_it_was_read_does_not_come_back():
    held = bound_job("held", worker="pod")
    controller = a_controller()
    controller.observe_job(held, gone=False)
    state = controller._namespaces[NAMESPACE]
    controller._correct(held, newer(held, 2))
    assert state.jobs == {held.uid: newer(held, 2)}
    controller.observe_job(newer(held, 3), gone=True)
    controller._correct(newer(held, 2), newer(held, 2))
    assert state.jobs == {}


def test_a_job_that_is_not_found_is_gone():
    held = bound_job("held", worker="pod")
    controller = a_controller()
    controller.observe_job(held, gone=False)
    controller._correct(held, None)
    assert controller._namespaces[NAMESPACE].jobs == {}


def test_a_held_job_that_cannot_be_taken_in_keeps_no_other_from_being_checked(monkeypatch, caplog):
    controller, held = a_controller(), bound_job("held", worker="pod")
    controller.observe_job(held, gone=False)
    monkeypatch.setattr(controller, "_take", lambda *_: 1 / 0)
    controller._correct(held, newer(held, 2))
    assert [record.job for record in caplog.records] == ["held"]
    assert "a defect" in caplog.text


ENDED = newer(job("a", status=GenerationJobStatus(phase=Phase.CANCELLED, completion_time=NOW)), 5)


@pytest.fixture
def ending():
    """A controller whose write has just ended a job; with what the watch had told of it until the answer came."""

    def settle(told):
        controller = a_controller()
        controller.observe_job(job("a"), gone=False)
        controller._job_writes._assumed["uid-a"] = _Told(None)
        if told is not None:
            controller.observe_job(told, gone=False)
        controller._job_writes._settle(job("a"), ENDED)
        return controller, controller._namespaces[NAMESPACE].jobs

    return settle


@pytest.mark.parametrize("told", [None, newer(job("a"), 4)], ids=["nothing", "older"])
@pytest.mark.parametrize(
    "end", [(ENDED, False), (newer(ENDED, 6), False), (job("a"), True)], ids=["it", "later", "gone"]
)
def test_a_list_that_is_older_than_the_end_of_a_job_does_not_bring_it_back(ending, told, end):
    controller, jobs = ending(told)
    for version in (1, 4):
        controller.observe_job(newer(job("a"), version), gone=False)
        assert jobs == {}
    controller.observe_job(*end)
    assert (jobs, controller._job_writes._ended) == ({}, {})


def test_nothing_is_kept_of_an_end_that_the_watch_told_before_the_writes_answer(ending):
    controller, jobs = ending(ENDED)
    assert (jobs, controller._job_writes._ended) == ({}, {})


def test_the_jobs_of_one_namespace_or_of_all_are_given():
    controller, here = a_controller(), job("here")
    there = job("there").model_copy(update={"metadata": job("there").metadata.model_copy(update={"namespace": "b"})})
    controller.observe_job(here, gone=False)
    controller.observe_job(there, gone=False)
    given = {namespace: controller.jobs_in(namespace) for namespace in (None, NAMESPACE, "b", "c")}
    assert given == {None: [here, there], NAMESPACE: [here], "b": [there], "c": []}
