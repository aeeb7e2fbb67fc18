"""What a worker knows of its pipeline reaches the model's status, the recipe and the door."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kubediffusion.operator.actions import Bind, Finish
from kubediffusion.operator.job_status import next_status
from kubediffusion.operator.model_status import model_status
from kubediffusion.operator.scheduling import schedule_model
from kubediffusion.operator.snapshots import ModelSnapshot, SchedulerOptions
from kubediffusion.operator.workers import ObservedWorker, PlatformCondition, WorkerState
from kubediffusion.resources.conditions import PodConditionType
from kubediffusion.resources.pipeline_facts import PipelineDefaults, PipelineFacts
from kubediffusion.resources.testing import NOW, job, present
from unit.operator.builders import OLD_HASH, pod_of, snapshot, worker

FACTS = PipelineFacts(
    name="FluxPipeline", defaults=PipelineDefaults(num_inference_steps=28, guidance_scale=3.5), size_multiple=16
)


def knowing(built: ObservedWorker, message: str = FACTS.to_json()) -> ObservedWorker:
    """The same worker, whose Pod tells of its pipeline."""
    told = PlatformCondition(
        type=PodConditionType.PIPELINE_KNOWN, status="True", reason="FluxPipeline", message=message
    )
    pod = pod_of(built)
    status = pod.status.model_copy(update={"conditions": (*pod.status.conditions, told)})
    return replace(built, pod=pod.model_copy(update={"status": status}))


def actions(seen: ModelSnapshot) -> list[Any]:
    return list(schedule_model(seen, NOW, SchedulerOptions(), 0).actions)


def test_a_status_says_what_a_worker_of_todays_template_told() -> None:
    ready = worker(0, WorkerState.READY)
    assert model_status(snapshot(workers=[ready]), None, NOW).pipeline is None
    assert model_status(snapshot(workers=[knowing(ready)]), None, NOW).pipeline == FACTS
    assert model_status(snapshot(workers=[knowing(ready, "anything")]), None, NOW).pipeline is None
    old = worker(0, WorkerState.READY, template=OLD_HASH)
    assert model_status(snapshot(workers=[knowing(old)]), None, NOW).pipeline is None


def test_it_stays_while_no_worker_is_there_and_goes_with_the_template() -> None:
    seen = snapshot(workers=[knowing(worker(0, WorkerState.READY))])
    known = seen.model.model_copy(update={"status": model_status(seen, None, NOW)})
    cold = replace(seen, model=known, workers=())
    assert model_status(cold, None, NOW).pipeline == FACTS
    assert model_status(replace(cold, template_hash="other"), None, NOW).pipeline is None


def test_a_job_is_bound_with_the_pipelines_own_before_the_status_says_so() -> None:
    (bind,) = actions(snapshot(waiting=[job()], workers=[knowing(worker(0, WorkerState.READY))]))
    assert isinstance(bind, Bind)
    parameters = present(next_status(bind, NOW, 7).parameters)
    assert (parameters.num_inference_steps, parameters.guidance_scale) == (28, 3.5)


def test_a_job_off_the_grid_fails_before_it_is_bound() -> None:
    off = job(width=520, height=512)
    (finish,) = actions(snapshot(waiting=[off], workers=[knowing(worker(0, WorkerState.READY))]))
    assert isinstance(finish, Finish)
    assert finish.message == "spec.width: 520 is no multiple of 16, as model 'emoji' needs; ask for 512 or 528"
    (bind,) = actions(snapshot(waiting=[off], workers=[worker(0, WorkerState.READY)]))
    assert isinstance(bind, Bind)


def test_a_negative_prompt_that_the_model_cannot_heed_fails_the_job_before_it_is_bound() -> None:
    asking, unguided = job(negative_prompt="rain"), FACTS.model_copy(update={"negative_prompt": False})
    knows = knowing(worker(0, WorkerState.READY), unguided.to_json())
    (finish,) = actions(snapshot(waiting=[asking], workers=[knows]))
    assert isinstance(finish, Finish)
    assert finish.message.startswith("spec.negativePrompt: model 'emoji' takes none: FluxPipeline")
    for waiting, ready in ((job(negative_prompt=""), knows), (asking, knowing(worker(0, WorkerState.READY)))):
        (bind,) = actions(snapshot(waiting=[waiting], workers=[ready]))
        assert isinstance(bind, Bind)
