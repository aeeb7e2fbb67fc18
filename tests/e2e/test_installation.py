"""The chart on a real node, from the first job to the uninstallation: the tests follow one installation.

They run in the order in which they are written, and leave no jobs behind.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

import documented
from e2e.e2e_cluster import CommandError, Object, is_true, wait_for
from e2e.e2e_node import NAME as NODE
from e2e.e2e_studio import LONG, MISSING_COLUMN, MODEL, NAMESPACE, RELEASE, WORKERS, Studio
from kubediffusion.resources import meta
from kubediffusion.resources.conditions import EngineReason, PodConditionType

PARTS = ("api", "operator", "worker")
CRD = "customresourcedefinition/generationjobs.kubediffusion.io"


@pytest.fixture(autouse=True)
def _no_jobs_are_left(studio: Studio) -> Iterator[None]:
    yield
    if studio.installed:
        studio.clear()


def is_running(job: Object) -> bool:
    return job["status"]["phase"] == "Running"


def columns(studio: Studio) -> list[str]:
    found = studio.cluster.get(*CRD.split("/"))["spec"]["versions"][0]["additionalPrinterColumns"]
    return [column["name"] for column in found]


def test_helm_test_sends_a_job_and_checks_the_image(studio: Studio) -> None:
    said = studio.cluster.helm("test", RELEASE, f"--namespace={NAMESPACE}", "--logs", "--timeout=10m")
    assert "as the job says" in said
    assert not studio.cluster.list("generationjobs", NAMESPACE)
    assert not studio.cluster.list("pods", NAMESPACE, f"{meta.COMPONENT_LABEL}=test")


def test_a_job_over_http_through_the_service(studio: Studio) -> None:
    task = studio.generate(seed=7)
    image = studio.image(task)
    (said,) = studio.job(task)["status"]["images"]
    assert hashlib.sha256(image).hexdigest() == said["sha256"]
    assert studio.stored(said["uri"]) == image


def test_a_job_by_kubectl(studio: Studio) -> None:
    studio.submit("by-kubectl")
    studio.kubectl("wait", "--for=condition=Complete", "generationjob/by-kubectl", "--timeout=120s")
    (job,) = studio.succeeded("by-kubectl")
    assert studio.image("by-kubectl") == studio.stored(job["status"]["images"][0]["uri"])


def test_every_pod_runs_as_the_restricted_profile_has_it(studio: Studio) -> None:
    namespace = studio.cluster.get("namespace", NAMESPACE)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    parts = {p["metadata"]["labels"][meta.COMPONENT_LABEL] for p in studio.cluster.list("pods", NAMESPACE)}
    assert set(PARTS) <= parts
    (worker, *_) = studio.ready_workers()
    assert studio.kubectl("exec", worker, "--", "id", "-u").strip() == "65532"
    with pytest.raises(CommandError, match="Read-only file system"):
        studio.kubectl("exec", worker, "--", "touch", "/opt/packages/x")


def test_kubelet_keeps_what_a_worker_says_of_its_start(studio: Studio) -> None:
    (worker, *_) = studio.ready_workers()
    pod = studio.cluster.get("pod", worker, NAMESPACE)
    # The condition Ready is kubelet's own, and written after the worker's first ones.
    assert is_true(pod, "Ready")
    assert is_true(pod, PodConditionType.ENGINE_READY)
    (said,) = (c for c in pod["status"]["conditions"] if c["type"] == PodConditionType.ENGINE_READY)
    assert said["reason"] in {EngineReason.COMPILING, EngineReason.READY}


def test_every_pod_is_under_the_network_policy_of_its_part(studio: Studio) -> None:
    """Whether traffic is stopped is up to the network plugin; the one of these tests lets all of it pass."""
    policies = {p["metadata"]["name"]: p for p in studio.cluster.list("networkpolicies", NAMESPACE)}
    assert policies.keys() == {f"{RELEASE}-{part}" for part in (*PARTS, "test")}
    for part in PARTS:
        policy = policies[f"{RELEASE}-{part}"]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert set(policy["spec"]["podSelector"]) == {"matchLabels"}
        labels = ",".join("=".join(label) for label in policy["spec"]["podSelector"]["matchLabels"].items())
        pods = [p["metadata"]["name"] for p in studio.cluster.list("pods", NAMESPACE, f"{meta.COMPONENT_LABEL}={part}")]
        assert pods
        assert pods == [p["metadata"]["name"] for p in studio.cluster.list("pods", NAMESPACE, labels)]


@pytest.mark.parametrize("part", PARTS)
def test_an_account_may_do_what_the_documentation_says_and_no_more(studio: Studio, part: str) -> None:
    account, nobody = studio.account(part), "system:serviceaccount:default:nobody"
    name = f"{RELEASE}-{part}"
    everywhere = documented.rights_everywhere(name)
    for namespace, more in {NAMESPACE: documented.rights(name) | everywhere, "default": everywhere}.items():
        assert rights(studio, account, namespace) - rights(studio, nobody, namespace) == {
            (f"{resource} [] []", verb) for resource, verb in more
        }


def rights(studio: Studio, account: str, namespace: str) -> set[tuple[str, str]]:
    """Pairs of what `kubectl auth can-i --list` prints first (a resource, addresses, names) and each of its verbs."""
    lines = studio.cluster.kubectl(
        "auth", "can-i", "--list", "--no-headers", f"--as={account}", f"--namespace={namespace}"
    ).splitlines()
    parts = [line.rstrip("]").rpartition("[") for line in lines]
    return {(" ".join(what.split()), verb) for what, _, verbs in parts for verb in verbs.split()}


def test_two_workers_on_two_gpus_and_a_third_that_says_why_it_waits(studio: Studio) -> None:
    names = [f"crowd-{n}" for n in range(8)]
    for name in names:
        studio.submit(name, **LONG)
    wait_for("two workers are ready", lambda: len(studio.ready_workers()) == 2)

    def waiting() -> Object | None:
        pods = [p for p in studio.workers() if p["status"]["phase"] == "Pending"]
        return next((p for p in pods if not is_true(p, "PodScheduled")), None)

    third = wait_for("a third worker waits", waiting)
    (scheduled,) = (c for c in third["status"]["conditions"] if c["type"] == "PodScheduled")
    assert scheduled["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in scheduled["message"]
    studio.submit("late", **LONG)

    def says_why() -> bool:
        conditions = studio.job("late")["status"].get("conditions", [])
        return any("Insufficient nvidia.com/gpu" in c["message"] for c in conditions if c["type"] == "Scheduled")

    wait_for("a job that waits says why as well", says_why)
    workers = {job["status"]["worker"] for job in studio.succeeded(*names, "late")}
    assert len(workers) == 2


def test_a_job_whose_worker_s_pod_is_deleted_is_bound_again(studio: Studio) -> None:
    studio.submit("bereft", **LONG)
    first = studio.running_on("bereft")
    studio.kubectl("delete", "pod", first, "--grace-period=0", "--force", "--wait=false")
    (job,) = studio.succeeded("bereft")
    assert job["status"]["worker"] != first
    assert job["status"]["attempt"] > 1


def test_a_job_whose_worker_runs_out_of_memory_is_bound_again(studio: Studio) -> None:
    studio.submit("starved", **LONG)
    first = studio.running_on("starved")
    # The kernel's choice falls on the worker itself, not on what fills the memory beside it.
    fill = """
import os, signal
open('/proc/1/oom_score_adj', 'w').write('1000')
for _ in range(48):
    if os.fork() == 0:
        held = bytearray(128 << 20)
        held[::4096] = b'1' * len(held[::4096])
        signal.pause()
os.wait()
"""
    with suppress(CommandError):  # it dies with the worker, or sees its children die and ends
        studio.kubectl("exec", first, "--", "python3", "-c", fill)

    def killed() -> bool:
        pods = studio.cluster.list("pods", NAMESPACE, WORKERS)
        ends = [s["state"].get("terminated", {}) for p in pods for s in p["status"].get("containerStatuses", [])]
        return any(end.get("reason") == "OOMKilled" for end in ends)

    wait_for("the worker was killed for want of memory", killed)
    (job,) = studio.succeeded("starved")
    assert job["status"]["worker"] != first
    assert job["status"]["retries"] == 1


def test_a_drained_node_s_jobs_are_bound_again(studio: Studio) -> None:
    names = [f"drained-{n}" for n in range(4)]
    for name in names:
        studio.submit(name, **LONG)
    first = {studio.running_on(names[0])}
    try:
        studio.cluster.kubectl(
            "drain", NODE, "--force", "--delete-emptydir-data", f"--pod-selector={WORKERS}", "--timeout=180s"
        )
        assert not first & set(studio.ready_workers())
    finally:
        studio.cluster.kubectl("uncordon", NODE)
    assert max(job["status"]["attempt"] for job in studio.succeeded(*names)) > 1


def test_operator_and_api_pods_may_be_killed(studio: Studio) -> None:
    tasks = [studio.generate(num_inference_steps=100) for _ in range(4)]
    for part in ("operator", "api"):
        labels = f"{meta.COMPONENT_LABEL}={part}"
        studio.kubectl("delete", "pods", f"--selector={labels}", "--grace-period=0", "--force", "--wait=false")
    studio.submit("meanwhile")
    for part in ("operator", "api"):
        studio.kubectl("rollout", "status", f"deployment/{RELEASE}-{part}", "--timeout=120s")
    studio.succeeded("meanwhile", *tasks)
    for task in tasks:
        assert studio.image(task)


def test_a_worker_s_token_opens_nothing_but_its_own_jobs(studio: Studio) -> None:
    names = [f"mine-{n}" for n in range(6)]
    for name in names:
        studio.submit(name, **LONG)

    def on_two_workers() -> dict[str, str] | None:
        running = {j["status"]["worker"]: j["metadata"]["name"] for j in map(studio.job, names) if is_running(j)}
        return running if len(running) == 2 else None

    patch = json.dumps({"status": {"warnings": ["written by another"]}})

    def write(worker: str, job: str) -> None:
        studio.as_worker(
            worker, "patch", "generationjob", job, "--subresource=status", "--type=merge", f"--patch={patch}"
        )

    def written_while_both_ran() -> tuple[str, str] | None:
        # A job may end before it is written to, which is refused for another reason: then the next ones are looked at.
        if (running := on_two_workers()) is None:
            return None
        (worker, mine), (_, other) = running.items()
        write(worker, mine)
        with pytest.raises(CommandError) as refusal:
            write(worker, other)
        if "the job has finished" in str(refusal.value):
            return None
        assert "only the worker that status.worker names" in str(refusal.value)
        return worker, other

    worker, other = wait_for("two workers run jobs, and one writes to both", written_while_both_ran)
    for refused in (
        ["get", "secrets"],
        ["get", "secret", "kubediffusion-s3"],
        ["create", "job", "more", "--image=none"],
        ["delete", "generationjob", other],
        ["get", "generationjobs", "--all-namespaces"],
    ):
        with pytest.raises(CommandError, match="forbidden"):
            studio.as_worker(worker, *refused)
    manifest = {
        "apiVersion": meta.API_VERSION,
        "kind": "GenerationJob",
        "metadata": {"name": "no"},
        "spec": {"prompt": "x"},
    }
    with pytest.raises(CommandError, match="forbidden"):
        studio.as_worker(worker, "create", "--filename=-", stdin=json.dumps(manifest))


def test_an_upgrade_under_load_loses_no_job_and_brings_the_crds_up_to_date(studio: Studio) -> None:
    assert MISSING_COLUMN not in columns(studio)
    tasks: list[str] = []
    refusals: list[BaseException] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                tasks.append(studio.generate(num_inference_steps=20))
            except Exception as error:  # noqa: BLE001 - whatever a client would have seen
                refusals.append(error)
            done.wait(0.5)

    client = threading.Thread(target=load)
    client.start()
    try:
        studio.submit("running", **LONG)
        first = studio.running_on("running")
        studio.upgrade()
    finally:
        done.set()
        client.join()
    assert not refusals
    assert MISSING_COLUMN in columns(studio)
    running, *_ = studio.succeeded("running", *tasks)
    # Its worker, of the old release, was let finish.
    assert (running["status"]["worker"], running["status"]["attempt"]) == (first, 1)
    # Workers are of the new release by now, or will be as soon as they are idle.
    studio.submit("afterwards")
    worker = studio.succeeded("afterwards")[0]["status"]["worker"]
    (container,) = studio.cluster.get("pod", worker, NAMESPACE)["spec"]["containers"]
    assert container["image"].endswith(f":{studio.next_tag}")


def test_an_uninstallation_keeps_jobs_and_images_and_says_so(studio: Studio) -> None:
    studio.submit("kept")
    (job,) = studio.succeeded("kept")
    notes = studio.cluster.helm("get", "notes", RELEASE, f"--namespace={NAMESPACE}")
    assert "keeps the CRDs" in notes
    studio.cluster.helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", "--timeout=5m")
    assert studio.job("kept")["status"]["phase"] == "Succeeded"
    assert studio.stored(job["status"]["images"][0]["uri"])
    wait_for("the workers are gone", lambda: not studio.workers())
    left = [
        o["metadata"]["name"]
        for kind in ("deployments", "services", "roles", "serviceaccounts", "networkpolicies")
        for o in studio.cluster.list(kind, NAMESPACE)
    ]
    assert left == ["default"]
    assert MODEL not in [m["metadata"]["name"] for m in studio.cluster.list("diffusionmodels", NAMESPACE)]
    cluster_wide = [
        o["metadata"]["name"]
        for kind in ("clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "crds")
        for o in studio.cluster.list(kind)
        if RELEASE in o["metadata"]["name"]
    ]
    kinds = ("diffusionmodels", "generationjobs", "loraadapters")
    assert cluster_wide == [f"{kind}.kubediffusion.io" for kind in kinds]
    studio.installed = False


def test_a_reinstallation_finds_the_jobs_that_were_kept(studio: Studio) -> None:
    studio.reinstall()
    (image,) = studio.job("kept")["status"]["images"]
    assert hashlib.sha256(studio.image("kept")).hexdigest() == image["sha256"]
    studio.submit("after-all")
    studio.succeeded("after-all")
