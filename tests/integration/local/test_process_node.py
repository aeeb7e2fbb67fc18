"""The process node keeps kubelet's promises, as seen through a real API server."""

from __future__ import annotations

import signal
from typing import Any

from kubediffusion.local.testing import Namespace, wait_for

SLEEP = ["sleep", "1000"]


def pod(name: str, *command: str, **changes: Any) -> dict[str, Any]:
    """Build a pod of one container; changes go to the container, or to the pod under ``spec``."""
    spec = changes.pop("spec", {})
    container = {"name": "main", "image": "none", "command": list(command), **changes}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **spec.pop("metadata", {})},
        "spec": {"restartPolicy": "Never", "containers": [container], **spec},
    }


def shell(name: str, script: str, **changes: Any) -> dict[str, Any]:
    return pod(name, "sh", "-c", script, **changes)


def test_a_job_ends(namespace: Namespace) -> None:
    template = {"spec": shell("unused", "echo done")["spec"]}
    namespace.apply(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hello"}, "spec": {"template": template}}
    )
    namespace.kubectl("wait", "--for=condition=Complete", "job/hello", "--timeout=60s")
    assert namespace.kubectl("logs", "job/hello") == "done\n"


def test_an_exit_code_is_reported(namespace: Namespace) -> None:
    namespace.apply(shell("fails", "exit 3"))
    status = namespace.wait_phase("fails", "Failed")
    end = status["containerStatuses"][0]["state"]["terminated"]
    assert (end["exitCode"], end["reason"]) == (3, "Error")


def test_a_kill_from_outside_is_a_crash_with_137(namespace: Namespace) -> None:
    namespace.apply(pod("victim", *SLEEP))
    namespace.wait_ready("victim")
    namespace.signal("victim", signal.SIGKILL)
    status = namespace.wait_phase("victim", "Failed")
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_a_crashed_container_starts_again_and_remembers_its_end(namespace: Namespace) -> None:
    namespace.apply(pod("phoenix", *SLEEP, spec={"restartPolicy": "Always"}))
    namespace.wait_ready("phoenix")
    namespace.signal("phoenix", signal.SIGKILL)
    restarted = wait_for("a restart", lambda: running_again(namespace, "phoenix"))
    assert restarted["lastState"]["terminated"]["exitCode"] == 137


def running_again(namespace: Namespace, name: str) -> dict[str, Any] | None:
    container = namespace.container(name)
    return container if container["restartCount"] == 1 and "running" in container["state"] else None
