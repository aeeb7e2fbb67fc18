"""What is kept of models and workers."""

from __future__ import annotations

from kubediffusion.operator.object_cache import KEPT_ANNOTATIONS, ObjectCache
from kubediffusion.resources import meta
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.testing import model


def test_annotations_of_others_are_not_kept() -> None:
    """As many as the API server takes, of each of a tenant's models, would fill the operator's memory."""
    read = {meta.DEFAULT_MODEL_ANNOTATION: "true", meta.RESTARTED_AT_ANNOTATION: "now"}
    found = model("m")
    annotated = found.metadata.model_copy(update={"annotations": {**read, "example.com/ballast": "x" * 250_000}})
    cache = ObjectCache[DiffusionModel]()
    assert cache.update(found.model_copy(update={"metadata": annotated}))
    assert cache.items["m"].metadata.annotations == read
    assert cache.items["m"].is_default
    assert read.keys() == KEPT_ANNOTATIONS


def test_an_object_without_any_is_kept_as_it_is() -> None:
    found, cache = model("m"), ObjectCache[DiffusionModel]()
    cache.update(found)
    assert cache.items["m"] is found
