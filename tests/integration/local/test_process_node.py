"""The process node keeps kubelet's promises on a pod's life, as seen through a real API server."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from integration.local.pods import SLEEP, job, pod, python, shell
from kubediffusion.local.errors import LocalError
from kubediffusion.local.testing import Namespace, wait_for


def ended(status: dict[str, Any]) -> dict[str, Any]:
    """Return the end of a pod's only container."""
    state: dict[str, Any] = status["containerStatuses"][0]["state"]["terminated"]
    return state


def gone(namespace: Namespace, name: str) -> bool:
    return not namespace.kubectl("get", "pod", name, "--ignore-not-found")


def restarted(namespace: Namespace, name: str, times: int = 1) -> dict[str, Any] | None:
    container = namespace.container(name)
    return container if container["restartCount"] >= times and "running" in container["state"] else None


def warnings(namespace: Namespace, name: str) -> set[str]:
    """Return the reasons of the events on a pod."""
    return {event["reason"] for event in namespace.list("events") if event["involvedObject"]["name"] == name}


def test_a_job_ends(namespace: Namespace) -> None:
    namespace.apply(job("hello", shell("unused", "echo done")))
    namespace.kubectl("wait", "--for=condition=Complete", "job/hello", "--timeout=60s")
    assert namespace.kubectl("logs", "job/hello") == "done\n"


def test_an_exit_code_is_reported(namespace: Namespace) -> None:
    namespace.apply(shell("fails", "exit 3"))
    end = ended(namespace.wait_phase("fails", "Failed"))
    assert (end["exitCode"], end["reason"]) == (3, "Error")


def test_a_command_that_does_not_exist_is_a_start_error(namespace: Namespace) -> None:
    namespace.apply(pod("typo", "no-such-program"))
    end = ended(namespace.wait_phase("typo", "Failed"))
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert "no-such-program" in end["message"]


def test_a_kill_from_outside_is_a_crash_with_137(namespace: Namespace) -> None:
    namespace.apply(pod("victim", *SLEEP))
    namespace.wait_ready("victim")
    namespace.signal("victim", signal.SIGKILL)
    assert ended(namespace.wait_phase("victim", "Failed"))["exitCode"] == 137


def test_a_crashed_container_starts_again_and_remembers_its_end(namespace: Namespace) -> None:
    namespace.apply(pod("phoenix", *SLEEP, spec={"restartPolicy": "Always"}))
    namespace.wait_ready("phoenix")
    namespace.signal("phoenix", signal.SIGKILL)
    container = wait_for("a restart", lambda: restarted(namespace, "phoenix"))
    assert container["lastState"]["terminated"]["exitCode"] == 137


def test_a_container_that_keeps_crashing_waits_between_its_starts(namespace: Namespace) -> None:
    namespace.apply(shell("looping", "exit 1", spec={"restartPolicy": "Always"}))

    def backing_off() -> bool:
        return namespace.container("looping")["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"

    wait_for("a back-off", backing_off)
    assert namespace.pod_status("looping")["phase"] == "Running"
    wait_for("an event that says so", lambda: "BackOff" in warnings(namespace, "looping"))


def test_what_succeeded_is_not_started_again_on_failure_only(namespace: Namespace) -> None:
    once = "test -e $HOME/tried && exit 0; touch $HOME/tried; exit 1"
    namespace.apply(shell("second-try", once, spec={"restartPolicy": "OnFailure"}))
    status = namespace.wait_phase("second-try", "Succeeded")
    assert status["containerStatuses"][0]["restartCount"] == 1


def test_deletion_lets_a_process_end_by_itself(namespace: Namespace) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    namespace.apply(job("polite", shell("unused", script)))
    (running,) = wait_for("its pod", lambda: namespace.list("pods", "job-name=polite"))
    name = running["metadata"]["name"]
    wait_for("its trap", lambda: "ready" in namespace.kubectl("logs", name))
    namespace.kubectl("delete", "pod", name, "--wait=false")
    # The Job's finalizer keeps the pod readable until the Job has counted its end.
    wait_for("its removal", lambda: gone(namespace, name))
    (log,) = namespace.cluster.logs.glob(f"pods/{namespace.name}_{name}_*/main.0.log")
    assert log.read_text() == "ready\nbye\n"


def test_deletion_kills_what_does_not_end_in_its_time_of_grace(namespace: Namespace) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    namespace.apply(shell("stubborn", stubborn, spec={"terminationGracePeriodSeconds": 1}))
    wait_for("its trap", lambda: "ready" in namespace.kubectl("logs", "stubborn"))
    pid = namespace.pid("stubborn")
    namespace.kubectl("delete", "pod", "stubborn", "--timeout=60s")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_forced_deletion_kills_at_once(namespace: Namespace) -> None:
    namespace.apply(shell("stubborn", "trap '' TERM; while :; do sleep 0.1; done"))
    namespace.wait_ready("stubborn")
    pid = namespace.pid("stubborn")
    namespace.kubectl("delete", "pod", "stubborn", "--force", "--grace-period=0")
    wait_for("its end", lambda: not os.path.exists(f"/proc/{pid}"))  # noqa: PTH110 # no file, a process


def test_a_container_s_children_end_with_it(namespace: Namespace) -> None:
    namespace.apply(shell("parent", "sleep 1000 & echo $!"))
    namespace.wait_phase("parent", "Succeeded")
    child = int(namespace.kubectl("logs", "parent"))
    wait_for("the child's end", lambda: not os.path.exists(f"/proc/{child}"))  # noqa: PTH110 # no file, a process


def test_a_deadline_ends_a_pod(namespace: Namespace) -> None:
    namespace.apply(pod("late", *SLEEP, spec={"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1}))
    status = namespace.wait_phase("late", "Failed")
    assert status["reason"] == "DeadlineExceeded"


def test_last_words_reach_the_status(namespace: Namespace) -> None:
    namespace.apply(shell("speaks", "echo -n out of disk > /dev/termination-log; exit 1"))
    assert ended(namespace.wait_phase("speaks", "Failed"))["message"] == "out of disk"


def test_without_last_words_the_log_s_end_will_do(namespace: Namespace) -> None:
    namespace.apply(shell("logs", "echo Traceback; exit 1", terminationMessagePolicy="FallbackToLogsOnError"))
    assert "Traceback" in ended(namespace.wait_phase("logs", "Failed"))["message"]


def test_a_pod_that_cannot_be_run_fails_and_says_why(namespace: Namespace) -> None:
    init = {"name": "init", "image": "none", "command": ["true"]}
    namespace.apply(pod("unsupported", "true", spec={"initContainers": [init]}))
    status = namespace.wait_phase("unsupported", "Failed")
    assert status["reason"] == "Unsupported"
    assert "init containers" in status["message"]


def test_a_third_pod_waits_for_one_of_two_gpus(namespace: Namespace) -> None:
    one = {"limits": {"nvidia.com/gpu": 1}}
    script = "import os, time; print(os.environ['KUBEDIFFUSION_GPU_INDEX']); time.sleep(1000)"
    for name in ("first", "second", "third"):
        namespace.apply(python(name, script, resources=one, spec={"terminationGracePeriodSeconds": 1}))
    wait_for("two pods running", lambda: len(running(namespace)) == 2)

    def refused() -> bool:
        waiting = next(found for found in namespace.list("pods") if found["status"]["phase"] == "Pending")
        return any("Insufficient nvidia.com/gpu" in c.get("message", "") for c in waiting["status"]["conditions"])

    wait_for("the scheduler to say why", refused)
    busy = running(namespace)
    wait_for("both to print", lambda: all(namespace.kubectl("logs", name) for name in busy))
    assert {namespace.kubectl("logs", name) for name in busy} == {"0\n", "1\n"}
    namespace.kubectl("delete", "pod", busy[0])
    wait_for("the third to get its turn", lambda: len(running(namespace)) == 2)


def running(namespace: Namespace) -> list[str]:
    return [found["metadata"]["name"] for found in namespace.list("pods") if found["status"]["phase"] == "Running"]


SERVER = """
import http.server, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = pathlib.Path(os.environ["HOME"], self.path.lstrip("/")).exists()
        self.send_response(200 if ok else 503)
        self.end_headers()
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def http_probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2}


def test_two_pods_serve_on_the_same_port(namespace: Namespace) -> None:
    for name in ("one", "two"):
        probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5}
        namespace.apply(python(name, SERVER, env=[POD_IP], readinessProbe=probe))
    addresses = {namespace.wait_ready(name)["podIP"] for name in ("one", "two")}
    assert len(addresses) == 2


def test_readiness_follows_what_the_probe_finds(namespace: Namespace) -> None:
    ports = [{"name": "http", "containerPort": 8080}]
    namespace.apply(python("server", SERVER, env=[POD_IP], ports=ports, readinessProbe=http_probe("/ready")))
    home = namespace.cluster.folder / "pods" / namespace.get("pod", "server")["metadata"]["uid"]
    wait_for("it to run, unready", lambda: "running" in namespace.container("server")["state"])
    assert not namespace.container("server")["ready"]
    (home / "ready").touch()
    namespace.wait_ready("server")
    (home / "ready").unlink()
    wait_for("it to be unready again", lambda: not namespace.container("server")["ready"])


def test_an_unhealthy_container_is_restarted(namespace: Namespace) -> None:
    probe = {"exec": {"command": ["sh", "-c", "test -e $HOME/healthy"]}, "periodSeconds": 1, "timeoutSeconds": 10}
    namespace.apply(
        shell(
            "sick",
            "touch $HOME/healthy; exec sleep 1000",
            startupProbe=probe,
            livenessProbe={**probe, "failureThreshold": 1},
            spec={"restartPolicy": "Always", "terminationGracePeriodSeconds": 1},
        )
    )
    namespace.wait_ready("sick")
    home = namespace.cluster.folder / "pods" / namespace.get("pod", "sick")["metadata"]["uid"]
    (home / "healthy").unlink()
    wait_for("a restart", lambda: restarted(namespace, "sick"))
    assert "Unhealthy" in warnings(namespace, "sick")


def test_a_process_that_is_frozen_is_found_unhealthy(namespace: Namespace) -> None:
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60}
    frozen = {**http_probe("/"), "timeoutSeconds": 1, "failureThreshold": 1}
    namespace.apply(
        python(
            "frozen",
            SERVER,
            env=[POD_IP],
            ports=[{"name": "http", "containerPort": 8080}],
            startupProbe=probe,
            livenessProbe=frozen,
            spec={"restartPolicy": "Always", "terminationGracePeriodSeconds": 1},
        )
    )
    namespace.wait_ready("frozen")
    namespace.signal("frozen", signal.SIGSTOP)
    wait_for("a restart", lambda: restarted(namespace, "frozen"))


def test_logs_of_the_run_before_are_kept(namespace: Namespace) -> None:
    namespace.apply(shell("twice", "echo run; exec sleep 1000", spec={"restartPolicy": "Always"}))
    wait_for("it to speak", lambda: namespace.kubectl("logs", "twice"))
    namespace.signal("twice", signal.SIGKILL)
    wait_for("a restart", lambda: restarted(namespace, "twice"))
    assert namespace.kubectl("logs", "twice", "--previous") == "run\n"


def test_a_pod_s_logs_need_the_pod(namespace: Namespace) -> None:
    with pytest.raises(LocalError, match="NotFound"):
        namespace.kubectl("logs", "nobody")
