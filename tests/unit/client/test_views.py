"""A field of a resource's status is in the client's views too, or is shown otherwise."""

from __future__ import annotations

import pytest

from kubediffusion.client.objects import job_view, model_view
from kubediffusion.client.views import ImageView, JobView, ModelView
from kubediffusion.resources.diffusion_model import DiffusionModelStatus, WorkerCounts
from kubediffusion.resources.generation_job import GenerationJobStatus, Image
from kubediffusion.resources.schema import Schema
from kubediffusion.resources.testing import job, model

NOT_IN_JOBS = {"conditions", "suspects", "start_time", "completion_time", "observed_generation"}
NOT_IN_MODELS = {"conditions", "pipeline", "selector", "template_hash", "observed_generation"}


@pytest.mark.parametrize(
    ("view", "source", "otherwise"),
    [
        (ImageView, Image, {"seed"}),
        (JobView, GenerationJobStatus, NOT_IN_JOBS),
        (ModelView, DiffusionModelStatus, NOT_IN_MODELS),
    ],
)
def test_a_view_has_every_other_field_of_the_status(
    view: type[Schema], source: type[Schema], otherwise: set[str]
) -> None:
    assert source.model_fields.keys() - view.model_fields.keys() == otherwise


def test_a_view_of_an_object_is_filled_from_its_status_by_name() -> None:
    status = GenerationJobStatus(attempt=3, retries=2, worker="w", warnings=("cut",))
    view = job_view(job(status=status))
    assert (view.attempt, view.retries, view.worker, view.warnings) == (3, 2, "w", ("cut",))
    known = model().model_copy(update={"status": DiffusionModelStatus(queued=4, workers=WorkerCounts(ready=1))})
    assert (model_view(known).queued, model_view(known).workers) == (4, WorkerCounts(ready=1))
