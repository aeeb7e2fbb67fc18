"""What the loop takes in, and what it forgets; the cluster itself is asked nothing here."""

from __future__ import annotations

import datetime as dt

from prometheus_client import REGISTRY

from kubediffusion.operator.controller import Controller
from kubediffusion.operator.events import Events
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.retention import ImageRemover
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.state import Listing
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, model

DEFAULTS = WorkerDefaults(image="none", service_account="default", port=8080, s3_secret="none", log_level="INFO")


def a_controller():
    return Controller(None, Events(None, "operator-0"), ImageRemover(None, ""), Settings(), DEFAULTS)


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
            controller._take_models(Listing((), 9))
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
