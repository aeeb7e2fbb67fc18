"""Kubeconfig files: who somebody is and where the API server answers."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from kubediffusion.local.certificates import KeyPair, write_secret

NAME = "kubediffusion-local"


def with_certificate(path: Path, server: str, authority: Path, identity: KeyPair, namespace: str = "default") -> Path:
    """Write a self-contained kubeconfig of a user with a client certificate."""
    user = {"client-certificate-data": _inline(identity.certificate), "client-key-data": _inline(identity.key)}
    return _write(path, server, authority, user, namespace)


def with_token_file(path: Path, server: str, authority: Path, token: Path, namespace: str) -> Path:
    """Write a kubeconfig of a service account whose token is renewed in a file."""
    return _write(path, server, authority, {"tokenFile": str(token)}, namespace)


def _write(path: Path, server: str, authority: Path, user: dict[str, str], namespace: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": NAME,
        "clusters": [{"name": NAME, "cluster": {"server": server, "certificate-authority-data": _inline(authority)}}],
        "users": [{"name": NAME, "user": user}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": namespace}}],
    }
    return write_secret(path, yaml.safe_dump(config, sort_keys=False))


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
