"""Builders of the pods that these tests run."""

from __future__ import annotations

from typing import Any

SLEEP = ("sleep", "1000")


def pod(name: str, *command: str, spec: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    """Build a pod of one container, which never restarts unless `spec` says so."""
    main = {"name": "main", "image": "none", "command": list(command), **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [main], **(spec or {})},
    }


def shell(name: str, script: str, **rest: Any) -> dict[str, Any]:
    """Build a pod that runs a shell script."""
    return pod(name, "sh", "-c", script, **rest)


def python(name: str, script: str, **rest: Any) -> dict[str, Any]:
    """Build a pod that runs a Python script, in this project's environment."""
    return pod(name, "python", "-u", "-c", script, **rest)


def job(name: str, template: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Build a Job of a pod."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"spec": template["spec"]}, **spec},
    }
