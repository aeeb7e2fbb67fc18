"""The API server's objects, for code that waits: a request takes milliseconds, a run of kubectl a tenth of a second.

Everything here is synchronous and keeps no connection, so that a restart of the API server between two requests is none
of its business.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from kubediffusion.local.certificates import KeyPair
from kubediffusion.local.errors import LocalError

SECONDS = 20.0
JSON = "application/json"
APPLY = "application/apply-patch+yaml"
DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(frozen=True)
class Collection:
    """Where the objects of a kind are.

    Attributes:
        base: The path of its group and version.
        plural: Its name in paths.
        namespaced: Whether its objects lie in namespaces.
    """

    base: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str = "") -> str:
        """Return the path of an object, or of the collection; of a namespace where there are namespaces."""
        place = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{self.base}{place}/{self.plural}" + (f"/{name}" if name else "")


class Rest:
    """The API server, with somebody's identity."""

    def __init__(self, url: str, authority: Path, identity: KeyPair) -> None:
        self._address = urlsplit(url).netloc
        self._context = ssl.create_default_context(cafile=authority)
        self._context.load_cert_chain(identity.certificate, identity.key)
        self._collections: dict[str, Collection] = {}

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return an object. A kind goes by any of the names that kubectl takes.

        Raises:
            LocalError: There is no such object, or the API server does not answer.
        """
        found: dict[str, Any] = self.request("GET", self._collection(kind).path(namespace, name))
        return found

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind, in a namespace or in all."""
        query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
        items: list[dict[str, Any]] = self.request("GET", self._collection(kind).path(namespace) + query)["items"]
        return items

    def apply(self, manifest: Mapping[str, Any], manager: str) -> None:
        """Apply a manifest on the server's side; what another manager changed is taken back."""
        group, _, version = manifest["apiVersion"].rpartition("/")
        metadata = manifest["metadata"]
        collection = self._collection(f"{manifest['kind']}.{version}.{group}")
        path = collection.path(metadata.get("namespace"), metadata["name"])
        query = urlencode({"fieldManager": manager, "force": "true", "fieldValidation": "Strict"})
        self.request("PATCH", f"{path}?{query}", manifest, APPLY)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Any:
        """Make a request, and return the decoded answer.

        Raises:
            LocalError: The API server refuses, or does not answer.
        """
        connection = http.client.HTTPSConnection(self._address, timeout=SECONDS, context=self._context)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type, "Accept": accept})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise LocalError(f"the API server does not answer: {error!r}") from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise LocalError(f"{method} {path}: {answer.status} {_message(content)}")
        return json.loads(content)

    def _collection(self, kind: str) -> Collection:
        if kind.lower() not in self._collections:
            self._collections = self._discover()  # perhaps it was defined a moment ago
        try:
            return self._collections[kind.lower()]
        except KeyError:
            raise LocalError(f"the API server knows no {kind}") from None

    def _discover(self) -> dict[str, Collection]:
        collections: dict[str, Collection] = {}
        for root in ("/api", "/apis"):
            for group in self.request("GET", root, accept=DISCOVERY)["items"]:
                name = group["metadata"].get("name", "")
                for version in group["versions"]:
                    base = "/".join(part for part in (root, name, version["version"]) if part)
                    for resource in version["resources"]:
                        place = Collection(base, resource["resource"], resource["scope"] == "Namespaced")
                        kind = resource["responseKind"]["kind"].lower()
                        names = [resource["resource"], kind, *resource.get("shortNames", [])]
                        suffixes = ("", f".{name}", f".{version['version']}.{name}")
                        # The first group and version wins, as with kubectl; a full name finds any.
                        for known in (short + suffix for short in names for suffix in suffixes):
                            collections.setdefault(known, place)
        return collections


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")
