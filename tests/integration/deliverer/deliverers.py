"""Deliverers and a receiver as processes of their own, and jobs that owe their receiver something."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from standardwebhooks import Webhook

from integration.api.api_kit import Stage, free_port, png
from kubediffusion.local import installation
from kubediffusion.local.testing import Namespace, wait_for

COMMAND = Path(sys.executable).with_name("kubediffusion-webhooks")
KEY = "whsec_" + base64.b64encode(b"a key of a test, 32 bytes long..").decode()

Request = dict[str, Any]


class Receiver:
    """Somebody who is told.

    Attributes:
        host: Its name and port.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "requests.jsonl"
        self._file.touch()
        program = Path(__file__).with_name("receiver.py")
        self._process = subprocess.Popen([sys.executable, program, self._file], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.host = f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}"

    def requests(self, uid: str = "") -> list[Request]:
        """Return what it got, of one job where one is named."""
        lines = [json.loads(line) for line in self._file.read_text().splitlines()]
        return [line for line in lines if line["headers"].get("webhook-id", "").startswith(uid)]

    def wait_for(self, uid: str, count: int) -> list[Request]:
        """Wait until it has got so many requests of a job."""

        def there() -> list[Request] | None:
            found = self.requests(uid)
            return found if len(found) >= count else None

        return wait_for(f"{count} requests of {uid}", there)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class DelivererProcess:
    """A replica of the deliverer, under the rights of its service account."""

    def __init__(
        self, namespace: Namespace, folder: Path, kubeconfig: Path | None, environment: Mapping[str, str]
    ) -> None:
        self.port = free_port()
        self.name = f"deliverer-{self.port}"
        self.log = folder / f"{self.name}.log"
        identity = kubeconfig or identity_in(namespace)
        self._environment = {
            "PATH": os.environ["PATH"],
            "POD_NAME": self.name,
            "KUBECONFIG": str(identity),
            "KUBEDIFFUSION_NAMESPACES": namespace.name,
            "KUBEDIFFUSION_LEASE_NAMESPACE": namespace.name,
            "KUBEDIFFUSION_BIND_ADDRESS": "127.0.0.1",
            "KUBEDIFFUSION_PORT": str(self.port),
            **environment,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([COMMAND], env=self._environment, stdout=log, stderr=log)

    def get(self, path: str) -> httpx.Response | None:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=30)
        return None

    def leads(self) -> bool:
        answer = self.get("/readyz")
        return answer is not None and "this replica delivers" in answer.text

    def wait_ready(self) -> None:
        wait_for("the deliverer to be ready", lambda: (a := self.get("/readyz")) is not None and a.status_code == 200)

    def wait_leading(self) -> None:
        wait_for(f"{self.name} to lead", self.leads)

    def said(self) -> str:
        return self.log.read_text()

    def metric(self, name: str) -> float:
        answer = self.get("/metrics")
        assert answer is not None
        lines = answer.text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it by SIGTERM, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()


def identity_in(namespace: Namespace) -> Path:
    """Return the kubeconfig of a namespace's deliverer."""
    plane = namespace.cluster.control_plane
    return plane.kubeconfig(f"system:serviceaccount:{namespace.name}:{installation.WEBHOOKS}")


StartDeliverer = Callable[..., DelivererProcess]


@contextlib.contextmanager
def deliverers(namespace: Namespace, folder: Path, **common: str) -> Iterator[StartDeliverer]:
    """Yield a function that starts a deliverer with settings of its own; all are ended on exit."""
    started: list[DelivererProcess] = []

    def start(kubeconfig: Path | None = None, **environment: str) -> DelivererProcess:
        settings = {f"KUBEDIFFUSION_{name}": value for name, value in {**common, **environment}.items()}
        started.append(DelivererProcess(namespace, folder, kubeconfig, settings))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.close()


class Jobs:
    """Jobs with webhooks, of which somebody plays operator and worker."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def create(self, name: str, url: str, **webhook: Any) -> str:
        """Create a job, and return its uid."""
        self.stage.create(name, {"prompt": "a fox in the snow", "webhook": {"url": url, **webhook}})
        uid: str = self.stage.job(name)["metadata"]["uid"]
        return uid

    def ended(self, name: str, url: str, **webhook: Any) -> str:
        """Create a job that has succeeded, and return its uid."""
        uid = self.create(name, url, **webhook)
        self.stage.complete(name, png())
        return uid

    def told(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = self.stage.job(name)["status"].get("webhook", {})
        return state

    def wait_told(self, name: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until the state of a job's webhook is as it should be."""

        def reached() -> dict[str, Any] | None:
            state = self.told(name)
            return state if state and condition(state) else None

        return wait_for(f"the webhook of {name}", reached)

    def wait_delivered(self, name: str, *events: str) -> dict[str, Any]:
        return self.wait_told(name, lambda state: state.get("delivered") == list(events or ("completed",)))


def verified(request: Request, key: str = KEY) -> dict[str, Any]:
    """Verify a request as its receiver should, and return its message."""
    message: dict[str, Any] = Webhook(key).verify(request["body"], request["headers"])
    return message


def secret(name: str = installation.WEBHOOKS, **keys: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys or {"key": KEY}}
