"""A worker shows how far its start has come, in a condition of its Pod that its node keeps."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import yaml

from integration.worker.bench_of_workers import START_SECONDS, Bench, start, start_obedient
from kubediffusion.local.layout import CHART
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.conditions import EngineReason, PodConditionType
from kubediffusion.resources.pipeline_facts import facts_from_json
from kubediffusion.resources.testing import present

ORDER = list(EngineReason)


def engine_ready(pod: dict[str, Any]) -> dict[str, Any] | None:
    conditions = pod["status"].get("conditions", [])
    return next((each for each in conditions if each["type"] == PodConditionType.ENGINE_READY), None)


async def told(client: KubernetesClient, namespace: Namespace, name: str) -> AsyncGenerator[dict[str, Any]]:
    """Yield each new state of a Pod's condition."""
    before = None
    query: dict[str, str | int] = {"watch": 1, "fieldSelector": f"metadata.name={name}"}
    async with aclosing(client.stream(f"/api/v1/namespaces/{namespace.name}/pods", query, START_SECONDS)) as events:
        async for event in events:
            condition = engine_ready(event["object"])
            if condition is not None and condition != before:
                before = condition
                yield condition


async def test_the_stages_of_a_start_are_seen_in_their_order(bench: Bench, client: KubernetesClient) -> None:
    start(bench.namespace, "telling", bench.model)
    seen = []
    async with aclosing(told(client, bench.namespace, "telling")) as states:
        async for state in states:
            seen.append(state)
            if state["status"] == "True":
                break
    reasons = [state["reason"] for state in seen]
    assert reasons[0] == EngineReason.IMPORTING
    assert reasons[-1] == EngineReason.READY
    assert reasons == sorted(reasons, key=ORDER.index)
    # A handful of writes: what comes within a second is one.
    assert len(seen) <= len(ORDER)
    assert {state["status"] for state in seen[:-1]} == {"False"}
    assert len({state["lastTransitionTime"] for state in seen[:-1]}) == 1
    # With the last of them comes what is known of the pipeline.
    conditions = bench.namespace.get("pod", "telling")["status"]["conditions"]
    (known,) = (each for each in conditions if each["type"] == PodConditionType.PIPELINE_KNOWN)
    facts = present(facts_from_json(known["message"]))
    assert (known["status"], known["reason"], facts.name) == ("True", "StableDiffusionPipeline", known["reason"])
    assert (facts.defaults.num_inference_steps, facts.defaults.guidance_scale) == (50, 7.5)


async def test_its_node_keeps_the_condition_to_the_end(bench: Bench) -> None:
    worker = start_obedient(bench.namespace, "kept")
    # Its node says that it is ready, and the worker that it is: in either order.
    wait_for("the condition", lambda: engine_ready(bench.namespace.get("pod", worker)))
    bench.namespace.signal(worker, signal.SIGKILL)
    status = bench.namespace.wait_phase(worker, "Failed")
    condition = engine_ready({"status": status})
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("True", "Ready")
    assert {each["type"]: each["status"] for each in status["conditions"]}["Ready"] == "False"


async def test_a_worker_that_may_not_tell_starts_all_the_same(bench: Bench) -> None:
    """With the role of an earlier release."""
    rules = yaml.safe_load((CHART / "files" / "rbac" / "worker.yaml").read_text())
    older = [rule for rule in rules if "pods/status" not in rule["resources"]]
    assert len(older) == len(rules) - 1
    name, rbac = "older", "rbac.authorization.k8s.io"
    bench.namespace.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": name}, "rules": older},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": bench.namespace.name}],
        },
    )
    start(bench.namespace, "silent", bench.model, account=name)
    bench.namespace.wait_ready("silent", START_SECONDS)
    assert engine_ready({"status": bench.namespace.pod_status("silent")}) is None
    lines = bench.log("silent")
    warnings = [line for line in lines if "does not show how far the start has come" in line["message"]]
    assert len(warnings) == 1
    stages = [line["stage"] for line in lines if "stage" in line]
    assert stages == ["Importing", "FetchingModel", "LoadingWeights", "WarmingUp", "Ready"]
