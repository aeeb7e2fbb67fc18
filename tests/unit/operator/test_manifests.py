"""The batch/v1 Job of a worker. That the API server takes it is tests/integration/operator's to show."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kubediffusion.local.node.environment import expand
from kubediffusion.operator.manifests import WorkerDefaults, template_hash, worker_job
from kubediffusion.operator.worker_template import TemplateError
from kubediffusion.resources import meta
from kubediffusion.resources.diffusion_model import (
    CompileCache,
    CompileCacheBucket,
    DiffusionModel,
    JobDefaults,
    JobLimits,
    TorchDtype,
)
from kubediffusion.resources.failures import BAD_MODEL_EXIT_CODE
from kubediffusion.resources.model_source import ModelComponent, ModelSource
from kubediffusion.resources.testing import NAMESPACE, model

DEFAULTS = WorkerDefaults(
    image="registry/worker:1",
    service_account="kubediffusion-worker",
    port=8080,
    s3_secret="kubediffusion-s3",
    log_level="INFO",
)


def with_source(**source: Any) -> DiffusionModel:
    base = model()
    return base.model_copy(update={"spec": base.spec.model_copy(update={"source": ModelSource(**source)})})


def manifest(item: DiffusionModel | None = None, ordinal: int = 0) -> dict[str, Any]:
    item = item or model()
    return worker_job(item, template_hash(item, DEFAULTS), ordinal, DEFAULTS)


def pod_spec(item: DiffusionModel | None = None) -> Any:
    return manifest(item)["spec"]["template"]["spec"]


def container(item: DiffusionModel | None = None) -> Any:
    (only,) = pod_spec(item)["containers"]
    return only


def environment(item: DiffusionModel | None = None) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(item)["env"]}


def test_the_same_worker_has_the_same_name_and_another_another() -> None:
    assert manifest()["metadata"]["name"] == manifest()["metadata"]["name"]
    assert manifest(ordinal=0)["metadata"]["name"] != manifest(ordinal=1)["metadata"]["name"]


def test_the_worker_belongs_to_its_model_and_goes_with_it() -> None:
    metadata = manifest()["metadata"]
    assert metadata["namespace"] == NAMESPACE
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
        "DiffusionModel",
        "emoji",
        "uid-emoji",
        True,
    )


def test_job_and_pod_carry_the_labels_that_the_operator_finds_them_by() -> None:
    job = manifest()
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        selected = dict(term.split("=") for term in meta.WORKER_SELECTOR.split(","))
        assert selected.items() <= labels.items()
        assert labels[meta.MODEL_LABEL] == "emoji"
        assert labels[meta.TEMPLATE_HASH_LABEL] == template_hash(model(), DEFAULTS)


def test_the_pod_meets_the_restricted_security_standard() -> None:
    pod, own = pod_spec(), container()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        "emptyDir",
        "persistentVolumeClaim",
    }


def test_a_crash_ends_the_job_a_disruption_does_not_and_a_bad_model_is_told_apart() -> None:
    spec = manifest()["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["enableServiceLinks"] is False
    disrupted, bad_model = spec["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert bad_model["action"] == "FailJob"
    assert bad_model["onExitCodes"]["values"] == [BAD_MODEL_EXIT_CODE]
    assert bad_model["onExitCodes"]["containerName"] == container()["name"]


def test_kueue_starts_a_worker_that_is_for_a_queue() -> None:
    queued = manifest(model(queue_name="gpus"))
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"][meta.KUEUE_QUEUE_LABEL] == "gpus"
    plain = manifest()
    assert plain["spec"]["suspend"] is False
    assert meta.KUEUE_QUEUE_LABEL not in plain["metadata"]["labels"]


def test_a_worker_always_says_what_it_needs() -> None:
    assert container()["resources"] == {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {}}


def test_a_gpu_is_asked_for_as_the_model_says() -> None:
    resources = container(model(resources={"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}}))["resources"]
    assert resources["limits"] == {"nvidia.com/gpu": 1, "memory": "24Gi"}
    # A request above its limit would be refused; left out, it is its limit.
    assert resources["requests"] == {"cpu": "1"}


def test_gpus_that_share_an_image_have_shared_memory() -> None:
    shared: dict[str, Any] = {"parallelism": {"mode": "context", "size": 2}}
    item = model(**shared, resources={"limits": {"nvidia.com/gpu": 2}})
    memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    assert memory in pod_spec(item)["volumes"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container(item)["volumeMounts"]  # noqa: S108
    assert container(item)["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert json.loads(environment(item)["KUBEDIFFUSION_MODEL_SPEC"])["workers"]["parallelism"] == shared["parallelism"]
    # Without GPUs the ranks are processes on the CPU, which pass tensors otherwise.
    assert memory in pod_spec(model(**shared))["volumes"]
    alone = model(parallelism={"mode": "context", "size": 1}, resources={"limits": {"nvidia.com/gpu": 1}})
    assert memory not in pod_spec(alone)["volumes"]


@pytest.mark.parametrize("asked", [1, "4"])
def test_a_template_that_asks_for_another_number_of_gpus_is_refused(asked: Any) -> None:
    resources = {"limits": {"nvidia.com/gpu": asked}}
    template = {"spec": {"containers": [{"name": "worker", "resources": resources}]}}
    item = model(parallelism={"mode": "context", "size": 2}, template=template)
    with pytest.raises(TemplateError, match="2 GPUs are to share an image, and the Pod asks for"):
        manifest(item)
    with pytest.raises(TemplateError, match=r"parallelism\.size"):
        worker_job(model(parallelism={"mode": "context", "size": 2}), "x", 0, replace(DEFAULTS, template=template))


def test_the_models_own_requests_win() -> None:
    resources = container(model(resources={"requests": {"cpu": "4", "memory": "16Gi"}}))["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": "16Gi"}


def test_the_models_own_placement_is_passed_on() -> None:
    placed = model(
        node_selector={"gpu": "a100"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        affinity={"podAntiAffinity": {}},
        runtime_class_name="nvidia",
        priority_class_name="batch",
        image_pull_secrets=[{"name": "registry"}],
        service_account_name="special",
        termination_grace_period_seconds=600,
        image="own/worker:2",
    )
    pod = pod_spec(placed)
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["affinity"] == {"podAntiAffinity": {}}
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "batch")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert (pod["serviceAccountName"], pod["terminationGracePeriodSeconds"]) == ("special", 600)
    assert container(placed)["image"] == "own/worker:2"


def test_what_the_model_leaves_open_is_the_operators_or_absent() -> None:
    pod = pod_spec()
    assert (pod["serviceAccountName"], container()["image"]) == ("kubediffusion-worker", "registry/worker:1")
    assert not {"nodeSelector", "tolerations", "affinity", "runtimeClassName", "imagePullSecrets"} & pod.keys()


def test_the_worker_is_told_what_to_load_and_who_it_is() -> None:
    told = environment()
    spec = json.loads(told["KUBEDIFFUSION_MODEL_SPEC"])
    assert told["KUBEDIFFUSION_MODEL"] == "emoji"
    assert spec["source"] == {"path": "/models/emoji"}
    assert spec["useSafetensors"] is True
    assert spec["trustRemoteCode"] is False
    assert told["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert told["KUBEDIFFUSION_BIND_ADDRESS"] == "$(POD_IP)"


def test_an_address_is_named_before_it_is_used() -> None:
    names = [entry["name"] for entry in container()["env"]]
    assert names.index("POD_IP") < names.index("KUBEDIFFUSION_BIND_ADDRESS")


@pytest.mark.parametrize("name", ["$(HOME)", "a$$b", "$$(POD_NAME)", "$HOME", "$"])
def test_a_name_with_dollar_signs_reaches_the_worker_as_it_is(name: str) -> None:
    """Kubernetes puts the value of an earlier variable in the place of $(NAME), and $ in that of $$."""
    item = with_source(persistentVolumeClaim={"claimName": "models", "path": name})
    known = {"HOME": "/elsewhere", "POD_NAME": "a-pod"}
    told = {name: expand(value, known) for name, value in environment(item).items() if isinstance(value, str)}
    assert told["KUBEDIFFUSION_MODEL_PATH"] == f"/models/{name}"
    assert json.loads(told["KUBEDIFFUSION_MODEL_SPEC"])["source"]["persistentVolumeClaim"]["path"] == name
    assert environment()["KUBEDIFFUSION_BIND_ADDRESS"] == "$(POD_IP)"


def test_storage_comes_from_its_secret_and_no_secret_is_in_the_manifest() -> None:
    assert container()["envFrom"] == [{"secretRef": {"name": "kubediffusion-s3"}}]


def test_a_token_of_the_hub_is_a_reference() -> None:
    item = with_source(hugging_face={"repository": "a/b", "token_secret_ref": {"name": "hub", "key": "t"}})
    assert environment(item)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "t"}}
    assert "HF_TOKEN" not in environment()


@pytest.mark.parametrize(("path", "there"), [("", "/models"), ("sd/turbo", "/models/sd/turbo"), ("/sd/", "/models/sd")])
def test_a_volume_is_mounted_read_only(path: str, there: str) -> None:
    item = with_source(persistent_volume_claim={"claim_name": "weights", "path": path})
    (volume,) = [v for v in pod_spec(item)["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    (mount,) = [m for m in container(item)["volumeMounts"] if m["name"] == volume["name"]]
    assert (mount["mountPath"], mount["readOnly"]) == ("/models", True)
    assert environment(item)["KUBEDIFFUSION_MODEL_PATH"] == there


def test_further_volumes_are_mounted_once_a_claim() -> None:
    item = with_source(
        persistent_volume_claim={"claim_name": "weights", "path": "sd"},
        single_file="a.safetensors",
        config_from={"persistent_volume_claim": {"claim_name": "weights", "path": "config"}},
    )
    part = ModelComponent.model_validate(
        {"name": "vae", "source": {"persistentVolumeClaim": {"claimName": "vaes", "path": "a"}}}
    )
    item = item.model_copy(update={"spec": item.spec.model_copy(update={"components": (part,)})})
    claims = {v["persistentVolumeClaim"]["claimName"]: v["name"] for v in pod_spec(item)["volumes"][1:]}
    assert list(claims) == ["weights", "vaes"]
    mounts = {m["mountPath"]: m["name"] for m in container(item)["volumeMounts"] if m.get("readOnly")}
    assert mounts == {
        "/models": claims["weights"],
        "/claims/weights": claims["weights"],
        "/claims/vaes": claims["vaes"],
    }
    told = environment(item)
    assert told["KUBEDIFFUSION_MODEL_PATH"] == "/models/sd"
    assert json.loads(told["KUBEDIFFUSION_CLAIM_PATHS"]) == {"weights": "/claims/weights", "vaes": "/claims/vaes"}


def test_a_token_that_a_component_names_is_the_workers() -> None:
    part = ModelComponent.model_validate(
        {"name": "vae", "source": {"huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "hub"}}}}
    )
    item = model()
    item = item.model_copy(update={"spec": item.spec.model_copy(update={"components": (part,)})})
    assert environment(item)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert json.loads(environment(item)["KUBEDIFFUSION_MODEL_SPEC"])["components"][0]["name"] == "vae"
    assert "components" not in json.loads(environment()["KUBEDIFFUSION_MODEL_SPEC"])


def with_compile_cache(**cache: Any) -> DiffusionModel:
    base = model()
    spec = base.spec.model_copy(update={"compile": True, "compile_cache": CompileCache.model_validate(cache)})
    return base.model_copy(update={"spec": spec})


@pytest.mark.parametrize(("path", "there"), [("", ""), ("sd", "/sd"), ("/sd/", "/sd")])
def test_the_volume_of_compiled_code_is_mounted_to_be_written_to(path: str, there: str) -> None:
    item = with_compile_cache(persistentVolumeClaim={"claimName": "compiled", "path": path})
    (volume,) = [v for v in pod_spec(item)["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"] == {"claimName": "compiled"}
    (mount,) = [m for m in container(item)["volumeMounts"] if m["name"] == volume["name"]]
    assert "readOnly" not in mount
    assert environment(item)["KUBEDIFFUSION_COMPILE_CACHE_PATH"] == mount["mountPath"] + there


def test_compiled_code_on_the_models_own_volume_is_one_volume() -> None:
    base = with_compile_cache(persistentVolumeClaim={"claimName": "models", "path": "compiled"})
    source = ModelSource.model_validate({"persistentVolumeClaim": {"claimName": "models", "path": "sd"}})
    item = base.model_copy(update={"spec": base.spec.model_copy(update={"source": source})})
    pod = pod_spec(item)
    claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert [volume["persistentVolumeClaim"] for volume in claims] == [{"claimName": "models"}]
    mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == claims[0]["name"]]
    assert [mount.get("readOnly", False) for mount in mounts] == [True, False]


def test_compiled_code_in_storage_is_the_workers_business() -> None:
    item = with_compile_cache(s3={"uri": "s3://cache/compiled"})
    assert json.loads(environment(item)["KUBEDIFFUSION_MODEL_SPEC"])["compileCache"] == {
        "s3": {"uri": "s3://cache/compiled"}
    }
    assert [volume["name"] for volume in pod_spec(item)["volumes"]] == ["cache"]
    assert "KUBEDIFFUSION_COMPILE_CACHE_PATH" not in environment(item)
    assert "compileCache" not in json.loads(environment()["KUBEDIFFUSION_MODEL_SPEC"])


def test_what_libraries_write_goes_to_the_one_writable_folder() -> None:
    (cache,) = [m for m in container()["volumeMounts"] if not m.get("readOnly")]
    told = environment()
    assert all(told[name].startswith(cache["mountPath"]) for name in ("HOME", "TMPDIR", "HF_HOME"))


def test_the_models_own_environment_comes_last_and_so_wins() -> None:
    own = {"name": "KUBEDIFFUSION_LOG_LEVEL", "value": "DEBUG"}
    assert container(model(env=[own]))["env"][-1] == own


SAME_WORKERS: dict[str, dict[str, Any]] = {
    "limits": {"limits": JobLimits(num_inference_steps=10)},
    "defaults": {"defaults": JobDefaults(guidance_scale=1.0)},
    "more workers": {"max_replicas": 8},
    "warm workers": {"min_replicas": 1},
    "idle time": {"idle_seconds": 5},
}
OTHER_WORKERS: dict[str, dict[str, Any]] = {
    "image": {"image": "own/worker:2"},
    "resources": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    "batch size": {"max_batch_size": 1},
    "shared images": {"parallelism": {"mode": "cfg", "size": 2}},
    "environment": {"env": [{"name": "A", "value": "b"}]},
    "placement": {"node_selector": {"gpu": "a100"}},
    "queue": {"queue_name": "gpus"},
    "grace": {"termination_grace_period_seconds": 5},
}


@pytest.mark.parametrize("change", SAME_WORKERS)
def test_what_only_jobs_or_the_operator_read_replaces_no_worker(change: Any) -> None:
    assert template_hash(model(**SAME_WORKERS[change]), DEFAULTS) == template_hash(model(), DEFAULTS)


@pytest.mark.parametrize("change", OTHER_WORKERS)
def test_what_the_worker_is_made_from_replaces_it(change: Any) -> None:
    assert template_hash(model(**OTHER_WORKERS[change]), DEFAULTS) != template_hash(model(), DEFAULTS)


@pytest.mark.parametrize(
    "change",
    [
        {"source": ModelSource(path="/models/other")},
        {"torch_dtype": TorchDtype.FLOAT32},
        {"compile": True},
        {"compile_cache": CompileCache(s3=CompileCacheBucket(uri="s3://cache/compiled"))},
        {"safety_checker": True},
    ],
    ids=str,
)
def test_another_way_to_load_the_model_replaces_its_workers(change: Any) -> None:
    base = model()
    changed = base.model_copy(update={"spec": base.spec.model_copy(update=change)})
    assert template_hash(changed, DEFAULTS) != template_hash(base, DEFAULTS)


def test_a_restart_can_be_asked_for() -> None:
    base = model()
    annotations = base.metadata.annotations | {meta.RESTARTED_AT_ANNOTATION: "now"}
    restarted = base.model_copy(update={"metadata": base.metadata.model_copy(update={"annotations": annotations})})
    assert template_hash(restarted, DEFAULTS) != template_hash(base, DEFAULTS)


def test_the_hash_is_of_the_model_as_it_is_written_and_not_of_the_order_of_its_words() -> None:
    one, two = model(node_selector={"a": "1", "b": "2"}), model(node_selector={"b": "2", "a": "1"})
    assert template_hash(one, DEFAULTS) == template_hash(two, DEFAULTS)


def test_the_platform_may_choose_the_user() -> None:
    spec = template(replace(DEFAULTS, run_as_user=None))
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & spec["securityContext"].keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    chosen = template(replace(DEFAULTS, run_as_user=1000))["securityContext"]
    assert (chosen["runAsUser"], chosen["fsGroup"]) == (1000, 1000)


def test_storage_is_trusted_by_the_authorities_of_a_config_map() -> None:
    trusted = {"AWS_CA_BUNDLE": "/etc/kubediffusion/s3-ca/ca.crt"}
    spec = template(replace(DEFAULTS, ca_config_map="company-ca", environment=trusted))
    (container,) = spec["containers"]
    assert {"name": "s3-ca", "configMap": {"name": "company-ca"}} in spec["volumes"]
    assert {"name": "s3-ca", "mountPath": "/etc/kubediffusion/s3-ca", "readOnly": True} in container["volumeMounts"]
    assert {"name": "AWS_CA_BUNDLE", "value": "/etc/kubediffusion/s3-ca/ca.crt"} in container["env"]


def template(defaults: WorkerDefaults) -> dict[str, Any]:
    """The Pod's spec of a worker of the plainest model."""
    return dict(worker_job(model(), "0a1b2c3d", 0, defaults)["spec"]["template"]["spec"])
