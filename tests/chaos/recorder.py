"""Writes down every state of every object, by watches of its own that no fault touches but the servers' own death."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from chaos.checker import TERMINAL
from chaos.evidence import Object, Span, Version

PATHS = {
    "GenerationJob": "/apis/kubediffusion.io/v1alpha1/namespaces/{}/generationjobs",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
}
SILENCE_SECONDS = 100.0
"""Bookmarks come every minute: a watch without any word for so long is dead."""
PAUSE = 0.1


class ExpiredError(Exception):
    """The resource version to watch from is gone."""


class Recorder:
    """Records one namespace.

    Args:
        kubeconfig: Of an administrator with a client certificate; reaches the API server without any proxy.
        namespace: What to record.

    Attributes:
        versions: All that was seen, in the order of seeing.
        latest: Each kind's objects as they are now, by uid.
        finished: When each job was first seen ended or deleted, by uid, on the monotonic clock of this process.
        gaps: When changes of jobs may have been missed: from the last word of one watch to the list before the next.
    """

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        address = urlsplit(cluster["server"])
        self._address = f"{address.hostname}:{address.port}"
        self._context = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]).decode())
        certificate, key = kubeconfig.with_suffix(".recorder.crt"), kubeconfig.with_suffix(".recorder.key")
        for file, field in ((certificate, "client-certificate-data"), (key, "client-key-data")):
            file.touch(mode=0o600)
            file.write_bytes(_decoded(user[field]))
        self._context.load_cert_chain(certificate, key)
        self._namespace = namespace
        self._stopped = threading.Event()
        self.versions: list[Version] = []
        self.latest: dict[str, dict[str, Object]] = {kind: {} for kind in PATHS}
        self.finished: dict[str, float] = {}
        self.gaps: list[Span] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record for as long as the block runs, from before anything in it happens."""
        listed = {kind: threading.Event() for kind in PATHS}
        threads = [
            threading.Thread(target=self._follow, args=(kind, listed[kind]), name=f"records {kind}", daemon=True)
            for kind in PATHS
        ]
        for thread in threads:
            thread.start()
        for event in listed.values():
            event.wait()
        try:
            yield
        finally:
            self._stopped.set()

    def _follow(self, kind: str, listed: threading.Event) -> None:
        revision: str | None = None
        heard = time.monotonic()
        while not self._stopped.is_set():
            try:
                if revision is None:
                    revision = self._list(kind, gap=listed.is_set())
                    if kind == "GenerationJob" and listed.is_set():
                        self.gaps.append(Span(heard, time.monotonic()))
                    heard = time.monotonic()
                    listed.set()
                for event in self._events(kind, revision):
                    heard = time.monotonic()
                    revision = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._note(kind, event["type"], event["object"], int(revision), gap=False)
            except ExpiredError:
                revision = None
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(PAUSE)

    def _list(self, kind: str, *, gap: bool) -> str:
        with self._get(kind, {}) as answer:
            found = json.loads(answer.read())
        revision = str(found["metadata"]["resourceVersion"])
        present = {item["metadata"]["uid"]: item for item in found["items"]}
        for uid, item in list(self.latest[kind].items()):
            if uid not in present:
                self._note(kind, "DELETED", item, int(revision), gap=gap)
        for uid, item in present.items():
            known = self.latest[kind].get(uid)
            if known is None or known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._note(kind, "ADDED", item, int(item["metadata"]["resourceVersion"]), gap=gap)
        return revision

    def _events(self, kind: str, revision: str) -> Iterator[dict[str, Any]]:
        query = {"watch": "true", "resourceVersion": revision, "allowWatchBookmarks": "true"}
        with self._get(kind, query) as answer:
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    if event["object"].get("code") == 410:
                        raise ExpiredError
                    raise OSError(event["object"].get("message"))
                yield event

    @contextmanager
    def _get(self, kind: str, query: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(self._address, timeout=SILENCE_SECONDS, context=self._context)
        try:
            connection.request("GET", f"{PATHS[kind].format(self._namespace)}?{urlencode(query)}")
            answer = connection.getresponse()
            if answer.status == 410:
                raise ExpiredError
            if answer.status != 200:
                raise OSError(f"{answer.status} {answer.reason}")
            yield answer
        finally:
            connection.close()

    def _note(self, kind: str, change: str, item: Object, revision: int, *, gap: bool) -> None:
        uid = item["metadata"]["uid"]
        if change == "DELETED":
            self.latest[kind].pop(uid, None)
        else:
            self.latest[kind][uid] = item
        if kind == "GenerationJob" and (change == "DELETED" or item.get("status", {}).get("phase") in TERMINAL):
            self.finished.setdefault(uid, time.monotonic())
        self.versions.append(Version(kind, change, item, revision, gap))


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)
