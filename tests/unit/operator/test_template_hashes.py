"""Which template is in effect while another is tried, and after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kubediffusion.operator.actions import Bind, CreateWorker, DeleteWorker, TryWorker
from kubediffusion.operator.manifests import WorkerDefaults, template_hash
from kubediffusion.operator.model_status import model_status
from kubediffusion.operator.snapshots import ModelSnapshot
from kubediffusion.operator.template_hashes import TemplateHash, TemplateHashes
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelStatus
from kubediffusion.resources.testing import NOW, job, model
from kubediffusion.resources.worker_settings import WorkerTemplate
from unit.operator.builders import plan, snapshot, worker

DEFAULTS = WorkerDefaults(image="worker:1", service_account="kd", port=8080, s3_secret="s3", log_level="INFO")


def hash_of(item: DiffusionModel) -> str:
    return template_hash(item, DEFAULTS)


def templated(priority: int | None, **workers: Any) -> DiffusionModel:
    if priority is not None:
        workers["template"] = WorkerTemplate.from_wire({"spec": {"priority": priority}})
    return model(**workers)


def observed(item: DiffusionModel, before: str, generation: int = 1) -> DiffusionModel:
    """The model with the status of an operator that ran before."""
    status = DiffusionModelStatus(template_hash=before, observed_generation=generation)
    metadata = item.metadata.model_copy(update={"generation": 1})
    return item.model_copy(update={"status": status, "metadata": metadata})


class Models:
    """The templates of one model, told of its changes."""

    def __init__(self) -> None:
        self.templates = TemplateHashes(hash_of)
        self.model: DiffusionModel | None = None

    def see(self, item: DiffusionModel) -> TemplateHash:
        self.templates.keep(item.name, self.templates.look_at(item, self.model))
        self.model = item
        return self.templates.of(item.name)


def test_a_model_without_a_template_is_not_tried() -> None:
    models = Models()
    assert models.see(templated(None)) == TemplateHash(hash_of(templated(None)))
    other = templated(None, max_batch_size=9)
    assert models.see(other) == TemplateHash(hash_of(other))


def test_workers_stay_until_a_changed_template_is_accepted() -> None:
    models = Models()
    before = hash_of(templated(None))
    models.see(templated(None))
    for priority in (1, 2):
        wanted = hash_of(templated(priority))
        assert models.see(templated(priority)) == TemplateHash(before, wanted)
        # It is seen again with each change of its status.
        assert models.see(templated(priority)) == TemplateHash(before, wanted)
    assert not models.templates.accept("emoji", hash_of(templated(1)))
    assert models.templates.accept("emoji", hash_of(templated(2)))
    assert models.see(templated(2)) == TemplateHash(hash_of(templated(2)))
    assert models.see(templated(None)) == TemplateHash(hash_of(templated(2)), before)


def test_a_template_that_is_taken_back_needs_no_try() -> None:
    models = Models()
    before = models.see(templated(None))
    models.see(templated(1))
    assert models.see(templated(None)) == before


def test_workers_of_another_model_go_whatever_its_template() -> None:
    models = Models()
    models.see(templated(None))
    other = templated(1, max_batch_size=9)
    assert models.see(other) == TemplateHash(hash_of(other), hash_of(other))
    # Also where the template has changed before, and was refused.
    models = Models()
    models.see(templated(None))
    models.see(templated(1))
    assert models.see(other).in_effect == hash_of(other)


def test_a_new_model_with_a_template_is_tried_before_it_has_workers() -> None:
    wanted = hash_of(templated(1))
    assert Models().see(templated(1)) == TemplateHash(wanted, wanted)


def test_an_operator_that_begins_anew_knows_the_template_in_effect_by_the_status() -> None:
    wanted = hash_of(templated(1))
    assert Models().see(observed(templated(1), before="older")) == TemplateHash("older", wanted)
    # Its own settings have changed.
    plain = hash_of(templated(None))
    assert Models().see(observed(templated(None), before="older")) == TemplateHash("older", plain)
    # The spec has changed meanwhile, nobody knows how.
    assert Models().see(observed(templated(1), before="older", generation=0)) == TemplateHash(wanted, wanted)


def test_another_model_of_the_name_begins_anew() -> None:
    models = Models()
    models.see(templated(None))
    again = templated(1)
    again = again.model_copy(update={"metadata": again.metadata.model_copy(update={"uid": "another"})})
    assert models.see(again).in_effect == hash_of(again)


def test_models_that_are_gone_are_forgotten() -> None:
    models = Models()
    models.see(templated(1))
    models.templates.accept("emoji", hash_of(templated(1)))
    models.templates.forget_others(())
    assert not models.templates.accept("emoji", hash_of(templated(1)))


def test_while_a_template_is_tried_no_worker_is_made_and_none_goes_for_it() -> None:
    ready = snapshot([job(str(n)) for n in range(40)], [worker(0, WorkerState.READY)], max_replicas=3)
    assert any(isinstance(action, CreateWorker) for action in plan(ready))
    untried = replace(ready, untried_hash="changed")
    actions = plan(untried)
    assert [a.template_hash for a in actions if isinstance(a, TryWorker)] == ["changed"]
    assert not any(isinstance(action, CreateWorker | DeleteWorker) for action in actions)
    assert any(isinstance(action, Bind) for action in actions)


def test_a_refused_template_is_told_whatever_its_workers_do() -> None:
    def message(seen: ModelSnapshot) -> str:
        (condition,) = model_status(seen, None, NOW).conditions
        return condition.message

    refused: dict[str, Any] = {"untried_hash": "changed", "refusal": "spec.workers.template.spec.x: unknown"}
    ready = snapshot(workers=[worker(0, WorkerState.READY)])
    assert message(replace(ready, **refused)) == (
        "1 worker ready; they stay as they are, as what changed is refused: spec.workers.template.spec.x: unknown"
    )
    was_ready = ready.model.model_copy(update={"status": model_status(ready, None, NOW)})
    assert message(replace(snapshot(), model=was_ready)).startswith("no worker is ready")
    refused_later = message(replace(snapshot(), model=was_ready, **refused))
    assert refused_later == "no worker can be created: spec.workers.template.spec.x: unknown"
