"""Every part of the cluster may be killed and comes back with what it knew."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from integration.local.pods import SLEEP, job, pod, shell
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, wait_for


@pytest.fixture(autouse=True)
def recovered(cluster: LocalCluster) -> Iterator[None]:
    """Start the controllers and the scheduler afresh after each outage.

    They come back by themselves; but their clients' back-off, up to half a minute, would make the next test wait.
    """
    yield
    for process in (cluster.control_plane.controller_manager, cluster.control_plane.scheduler):
        process.kill()
        process.start()
        process.wait_ready()


def test_pods_run_on_while_the_api_server_is_away(namespace: Namespace, cluster: LocalCluster) -> None:
    namespace.apply(pod("steady", *SLEEP))
    namespace.wait_ready("steady")
    pid = namespace.pid("steady")
    apiserver = cluster.control_plane.apiserver
    apiserver.kill()
    apiserver.start()
    apiserver.wait_ready()
    assert namespace.pid("steady") == pid
    namespace.apply(shell("after", "true"))
    namespace.wait_phase("after", "Succeeded")


def test_an_end_during_an_outage_is_reported_after_it(namespace: Namespace, cluster: LocalCluster) -> None:
    namespace.apply(shell("ends", "until test -e $HOME/end; do sleep 0.1; done"))
    namespace.wait_ready("ends")
    home = cluster.folder / "pods" / namespace.get("pod", "ends")["metadata"]["uid"]
    apiserver = cluster.control_plane.apiserver
    apiserver.kill()
    (home / "end").touch()
    wait_for("its folder to be removed", lambda: not home.exists())
    apiserver.start()
    apiserver.wait_ready()
    namespace.wait_phase("ends", "Succeeded")


def test_etcd_loses_nothing_to_a_kill(namespace: Namespace, cluster: LocalCluster) -> None:
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"a": "1"}})
    cluster.control_plane.etcd.kill()
    cluster.control_plane.etcd.start()
    cluster.control_plane.etcd.wait_ready()
    found = wait_for("the API server to answer again", lambda: namespace.get("configmap", "kept"))
    assert found["data"] == {"a": "1"}


def test_the_controllers_and_the_scheduler_go_on_after_a_kill(namespace: Namespace, cluster: LocalCluster) -> None:
    for process in (cluster.control_plane.controller_manager, cluster.control_plane.scheduler):
        process.kill()
        process.start()
        process.wait_ready()
    namespace.apply(job("after", shell("unused", "true")))
    namespace.kubectl("wait", "--for=condition=Complete", "job/after", "--timeout=60s")


def test_a_killed_node_takes_its_containers_along_and_says_so(namespace: Namespace, cluster: LocalCluster) -> None:
    namespace.apply(pod("once", *SLEEP), pod("again", *SLEEP, spec={"restartPolicy": "Always"}))
    for name in ("once", "again"):
        namespace.wait_ready(name)
    cluster.node.kill()
    cluster.node.start()
    cluster.node.wait_ready()
    status = namespace.wait_phase("once", "Failed")
    end = status["containerStatuses"][0]["state"]["terminated"]
    assert (end["exitCode"], end["reason"]) == (137, "ContainerStatusUnknown")
    wait_for("a restart", lambda: namespace.container("again")["restartCount"] == 1)
    namespace.wait_ready("again")


def test_the_s3_server_keeps_its_objects_and_its_address(cluster: LocalCluster) -> None:
    client = cluster.store.client()
    client.create_bucket(Bucket="outage")
    client.put_object(Bucket="outage", Key="a/b.txt", Body=b"kept", ContentType="text/plain")
    cluster.store.process.stop()
    cluster.store.process.start()
    cluster.store.process.wait_ready()
    found = client.get_object(Bucket="outage", Key="a/b.txt")
    assert (found["Body"].read(), found["ContentType"]) == (b"kept", "text/plain")


def test_a_pod_is_frozen_and_thawed(namespace: Namespace) -> None:
    namespace.apply(shell("clock", "while :; do echo tick; sleep 0.1; done"))
    namespace.wait_ready("clock")
    namespace.signal("clock", signal.SIGSTOP)
    frozen = namespace.kubectl("logs", "clock")
    assert namespace.kubectl("logs", "clock") == frozen
    namespace.signal("clock", signal.SIGCONT)
    wait_for("it to go on", lambda: len(namespace.kubectl("logs", "clock")) > len(frozen))
