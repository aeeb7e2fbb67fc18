"""What the API server takes as a DiffusionModel."""

from __future__ import annotations

from typing import Any

import pytest

from integration.resources.identities import Room, refusal
from kubediffusion.resources.apiserver.errors import InvalidError
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.worker_settings import MAX_ENTRIES

SOURCES: dict[str, Any] = {
    "huggingFace": {"repository": "stabilityai/sd-turbo", "tokenSecretRef": {"name": "hub", "key": "token"}},
    "persistentVolumeClaim": {"claimName": "weights", "path": "sd"},
    "s3": {"uri": "s3://models/sd"},
    "path": "/models/sd",
}


def a_model(name: str = "emoji", source: Any = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kubediffusion.io/v1alpha1",
        "kind": "DiffusionModel",
        "metadata": {"name": name},
        "spec": {"source": source or {"path": "/models/sd"}, **spec},
    }


async def answer(room: Room, body: dict[str, Any]) -> str:
    """Return why a model is refused; an empty text when it is accepted."""
    error = await refusal(room.try_create(body, "diffusionmodels"))
    assert error is None or isinstance(error, InvalidError)
    return error.message if error is not None else ""


@pytest.mark.parametrize("kind", SOURCES)
async def test_each_source_is_enough(room: Room, kind: str) -> None:
    created = await room.try_create(a_model(source={kind: SOURCES[kind]}), "diffusionmodels")
    model = DiffusionModel.from_wire(created)
    assert set(model.spec.source.to_wire()) == {kind}


@pytest.mark.parametrize("kinds", [(), ("path", "s3"), ("huggingFace", "persistentVolumeClaim"), tuple(SOURCES)])
async def test_no_source_and_two_sources_are_refused(room: Room, kinds: tuple[str, ...]) -> None:
    body = a_model()
    body["spec"]["source"] = {kind: SOURCES[kind] for kind in kinds}
    assert "exactly one of huggingFace, persistentVolumeClaim, s3 and path" in await answer(room, body)


async def test_a_model_may_be_put_together(room: Room) -> None:
    spec: dict[str, Any] = {
        "source": {"path": "/models", "singleFile": "a/b.safetensors", "configFrom": SOURCES_OF_CONFIG},
        "components": [
            {"name": "vae", "source": {"path": "/models/vae", "variant": "fp16"}},
            {"name": "transformer", "source": {"s3": {"uri": "s3://a/b"}, "singleFile": "q4.gguf"}},
        ],
    }
    created = await room.try_create(a_model(**spec), "diffusionmodels")
    model = DiffusionModel.from_wire(created)
    assert [component.name for component in model.spec.components] == ["vae", "transformer"]


VAE = {"name": "vae", "source": {"path": "/models/vae"}}
SOURCES_OF_CONFIG = {"huggingFace": {"repository": "a/b"}}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"source": {"path": "/m", "configFrom": SOURCES_OF_CONFIG}}, "configFrom is for a singleFile"),
        ({"source": {"path": "/m", "singleFile": "a.ckpt"}}, "spec.source.singleFile"),
        ({"source": {"path": "/m", "singleFile": "a.safetensors", "variant": "fp16"}}, "variant is set once"),
        ({"source": {"huggingFace": {"repository": "a/b", "variant": "x"}, "variant": "x"}}, "variant is set once"),
        ({"source": {"path": "/m", "singleFile": "a.safetensors", "configFrom": {}}}, "exactly one of huggingFace"),
        ({"components": [{"name": "vae", "source": {"path": "/m", "s3": {"uri": "s3://a/b"}}}]}, "exactly one of"),
        ({"components": [VAE, VAE]}, "Duplicate value"),
        ({"components": [{"name": "vae"}]}, "a component says where it comes from (source), how it is held"),
        ({"memory": {"vaeTiling": "always"}}, "spec.memory.vaeTiling"),
        ({"quantization": "float4"}, "spec.quantization"),
        ({"components": [VAE | {"name": "Vae"}]}, "spec.components[0].name"),
    ],
)
async def test_parts_that_do_not_go_together_are_refused(room: Room, spec: dict[str, Any], words: str) -> None:
    assert words in await answer(room, a_model(**spec))


@pytest.mark.parametrize("name", ["a" * 40, "sd-1-5", "2fast"])
async def test_a_name_that_workers_names_can_begin_with_is_taken(room: Room, name: str) -> None:
    assert await answer(room, a_model(name)) == ""


@pytest.mark.parametrize("name", ["a" * 41, "sd.1"])
async def test_a_name_that_is_too_long_or_has_a_dot_is_refused(room: Room, name: str) -> None:
    assert "at most 40 characters and no dot" in await answer(room, a_model(name))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("source.huggingFace.repository", "sd-turbo"),
        ("source.huggingFace.repository", "a/b; rm -rf"),
        ("source.s3.uri", "https://models/sd"),
        ("source.s3.uri", "s3://models"),
        ("torchDtype", "float64"),
        ("limits.numInferenceSteps", 1001),
        ("limits.numImages", 0),
        ("defaults.guidanceScale", -1),
        ("defaults.scheduler", "Fast"),
        ("defaults.acceleration.guidanceInterval.stop", 2),
        ("defaults.acceleration.featureCaching.interval", 0),
        ("workers.maxReplicas", 0),
        ("workers.minReplicas", -1),
        ("workers.maxBatchSize", 65),
        ("workers.idleSeconds", -1),
    ],
)
async def test_a_value_out_of_range_is_refused_by_name(room: Room, path: str, value: Any) -> None:
    inner: Any = value
    for part in reversed(path.split(".")):
        inner = {part: inner}
    source = inner.pop("source", None)
    assert f"spec.{path}" in await answer(room, a_model(source=source, **inner))


async def test_an_unknown_field_is_refused_by_name(room: Room) -> None:
    assert 'unknown field "spec.workers.replicas"' in await answer(room, a_model(workers={"replicas": 2}))


async def test_fewer_workers_at_most_than_at_least_are_refused(room: Room) -> None:
    message = await answer(room, a_model(workers={"minReplicas": 3, "maxReplicas": 2}))
    assert "minReplicas must not exceed maxReplicas" in message


@pytest.mark.parametrize(
    ("parallelism", "resources", "words"),
    [
        ({"mode": "context", "size": 2}, {"limits": {"nvidia.com/gpu": 2}}, ""),
        ({"mode": "context", "size": 8}, {"limits": {"nvidia.com/gpu": "8"}, "requests": {"nvidia.com/gpu": 8}}, ""),
        ({"mode": "cfg", "size": 2}, {"limits": {"memory": "4Gi"}}, ""),
        ({"mode": "cfg", "size": 2}, {}, ""),
        ({"mode": "context", "size": 1}, {"limits": {"nvidia.com/gpu": 1}}, ""),
        ({"mode": "cfg", "size": 4}, {}, "mode cfg shares two rows among two GPUs"),
        ({"mode": "context", "size": 3}, {}, "spec.workers.parallelism.size"),
        ({"mode": "tensor", "size": 2}, {}, "spec.workers.parallelism.mode"),
        ({"size": 2}, {}, "spec.workers.parallelism.mode"),
    ],
)
async def test_gpus_that_share_an_image_are_as_many_as_the_pod_asks_for(
    room: Room, parallelism: dict[str, Any], resources: dict[str, Any], words: str
) -> None:
    message = await answer(room, a_model(workers={"parallelism": parallelism, "resources": resources}))
    assert words in message if words else message == ""


async def test_more_workers_kept_warm_than_the_ordinary_most_are_refused(room: Room) -> None:
    """``maxReplicas`` is 1 where it is not given."""
    assert "minReplicas must not exceed maxReplicas" in await answer(room, a_model(workers={"minReplicas": 2}))


@pytest.mark.parametrize("field", ["numInferenceSteps", "width", "height"])
async def test_a_default_that_the_models_own_limits_refuse_is_refused(room: Room, field: str) -> None:
    fits = a_model(defaults={field: 128}, limits={field: 128})
    assert await answer(room, fits) == ""
    too_much = a_model(defaults={field: 192}, limits={field: 128})
    assert f"defaults.{field} must not exceed limits.{field}" in await answer(room, too_much)
    beyond_the_ordinary = a_model(defaults={field: 1000 if field == "numInferenceSteps" else 2048})
    assert f"defaults.{field} must not exceed limits.{field}" in await answer(room, beyond_the_ordinary)


CACHES: dict[str, Any] = {
    "s3": {"uri": "s3://cache/compiled"},
    "persistentVolumeClaim": {"claimName": "compiled", "path": "sd"},
}


@pytest.mark.parametrize("kind", CACHES)
async def test_compiled_code_may_be_kept_in_one_place(room: Room, kind: str) -> None:
    created = await room.try_create(a_model(compile=True, compileCache={kind: CACHES[kind]}), "diffusionmodels")
    cache = DiffusionModel.from_wire(created).spec.compile_cache
    assert cache is not None
    assert cache.to_wire() == {kind: CACHES[kind]}


@pytest.mark.parametrize("cache", [{}, CACHES])
async def test_no_place_and_two_places_for_compiled_code_are_refused(room: Room, cache: dict[str, Any]) -> None:
    message = await answer(room, a_model(compile=True, compileCache=cache))
    assert "spec.compileCache" in message
    assert "exactly one of s3 and persistentVolumeClaim" in message


@pytest.mark.parametrize("spec", [{}, {"compile": False}])
async def test_a_place_for_compiled_code_while_nothing_is_compiled_is_refused(room: Room, spec: dict[str, Any]) -> None:
    message = await answer(room, a_model(compileCache={"s3": CACHES["s3"]}, **spec))
    assert "set compile to true, or remove compileCache" in message


async def test_compiled_code_is_kept_in_a_folder_of_a_bucket(room: Room) -> None:
    message = await answer(room, a_model(compile=True, compileCache={"s3": {"uri": "s3://cache"}}))
    assert "spec.compileCache.s3.uri" in message


@pytest.mark.parametrize("field", ["tolerations", "imagePullSecrets", "env", "nodeSelector", "limits", "requests"])
async def test_a_list_that_would_cost_the_api_server_seconds_is_refused_by_name(room: Room, field: str) -> None:
    lists = field in {"tolerations", "imagePullSecrets", "env"}

    def with_entries(count: int) -> dict[str, Any]:
        names = [f"name-{n}" for n in range(count)]
        entries = [{"name": name} for name in names] if lists else dict.fromkeys(names, "1")
        resources = field in {"limits", "requests"}
        return a_model(workers={"resources": {field: entries}} if resources else {field: entries})

    assert await answer(room, with_entries(MAX_ENTRIES)) == ""
    refused = await answer(room, with_entries(MAX_ENTRIES + 1))
    assert f"{field}: Too many: " in refused
    # One that was stored before there was a bound is read as ever.
    assert DiffusionModel.from_wire(with_entries(3000)).name == "emoji"


async def test_parts_of_the_pod_api_are_passed_through_as_they_are(room: Room) -> None:
    workers = {
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "imagePullSecrets": [{"name": "registry"}],
    }
    created = await room.try_create(a_model(workers=workers), "diffusionmodels")
    assert created["spec"]["workers"] == workers | {"minReplicas": 0}
    assert set(workers) <= set(DiffusionModel.from_wire(created).spec.workers.to_wire())
