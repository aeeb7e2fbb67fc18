"""API keys: one file a client in a mounted Secret, so that adding or withdrawing one needs no restart."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

RELOAD_SECONDS = 2.0

_UNSENDABLE = re.compile(rb"[\r\n\0]")
"""What the value of a header cannot hold (RFC 9110, section 5.5)."""


class ApiKeys:
    """The keys that are valid now.

    Args:
        path: Folder with one file a client, or one such file; None when no key is needed.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        # Digests have one length, so comparing tells nothing of a key, its length included.
        self._clients: dict[str, bytes] = {}

    @property
    def required(self) -> bool:
        """Whether a key is needed at all."""
        return self._path is not None

    def reload(self) -> None:
        """Read the keys from the files; this blocks.

        What cannot be read leaves the keys as they were: a Secret that is being replaced must lock nobody out.
        """
        if self._path is None:
            return
        try:
            keys = _read_keys(self._path)
        except OSError as error:
            logger.error("cannot read the API keys, the known ones stay valid: %s", error)  # noqa: TRY400 - says it all
            return
        found = {name: hashlib.sha256(key).digest() for name, key in keys.items()}
        if found != self._clients:
            self._clients = found
            logger.info("API keys loaded", extra={"clients": sorted(found)})
            if unsendable := sorted(name for name, key in keys.items() if _UNSENDABLE.search(key)):
                logger.error("API keys of several lines, which nobody can send", extra={"clients": unsendable})
            for names in _sharing(found):
                logger.error("clients have the same API key, and count as the last of them", extra={"clients": names})

    async def keep_current(self) -> None:
        """Reload for as long as the process runs."""
        while self.required:
            await asyncio.sleep(RELOAD_SECONDS)
            await asyncio.to_thread(self.reload)

    def owners(self, credentials: Iterable[bytes]) -> set[str]:
        """Return the names of the clients whose API keys are among a request's credentials."""
        return {name for credential in credentials if (name := self._client_of(credential)) is not None}

    def _client_of(self, key: bytes) -> str | None:
        digest = hashlib.sha256(key).digest()
        found = None
        # All of them, always: neither the answer's time nor its order tells which keys there are.
        for name, known in self._clients.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def _read_keys(path: Path) -> dict[str, bytes]:
    # A Secret's volume keeps its versions in folders whose names begin with two dots.
    files = [file for file in path.iterdir() if file.is_file() and file.name[:1] != "."] if path.is_dir() else [path]
    keys = {file.name: file.read_bytes().strip() for file in sorted(files)}
    return {name: key for name, key in keys.items() if key}


def _sharing(clients: Mapping[str, bytes]) -> list[list[str]]:
    """Return the names of clients that share a key, each group by itself."""
    by_key = defaultdict(list)
    for name, digest in clients.items():
        by_key[digest].append(name)
    return [names for names in by_key.values() if len(names) > 1]
