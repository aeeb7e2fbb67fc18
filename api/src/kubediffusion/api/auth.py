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

from kubediffusion.api.errors import UnauthorizedError, WrongKeyError

logger = logging.getLogger(__name__)

RELOAD_SECONDS = 2.0

OPEN_PATHS = frozenset({"/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""What needs no key: probes, documentation and the page itself say nothing of jobs."""

MOST_CREDENTIALS = 4
"""Different credentials of one request that are tried; more of them are a guess at keys."""

_UNSENDABLE = re.compile(rb"[\r\n\0]")
"""What the value of a header cannot hold (RFC 9110, section 5.5)."""

OPEN_PREFIXES = ("/docs/", "/page/")


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

    def client(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the name of the client that a request's key belongs to; None where no key is needed.

        Args:
            headers: The request's headers, their names in lower case.

        Raises:
            UnauthorizedError: There is no key.
            WrongKeyError: No key is valid, or the keys are those of several clients.
        """
        if not self.required:
            return None
        keys = _keys_of(headers)
        if not keys:
            raise UnauthorizedError(
                "An API key is needed, as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
                {"WWW-Authenticate": "Bearer"},
            )
        if len(keys) > MOST_CREDENTIALS:
            raise WrongKeyError(f"A request may carry at most {MOST_CREDENTIALS} credentials.")
        found = {name for key in keys if (name := self._client_of(key)) is not None}
        if not found:
            raise WrongKeyError("This API key is not valid.")
        if len(found) > 1:
            raise WrongKeyError("The request carries API keys of several clients; send one.")
        return found.pop()

    def _client_of(self, key: bytes) -> str | None:
        digest = hashlib.sha256(key).digest()
        found = None
        # All of them, always: neither the answer's time nor its order tells which keys there are.
        for name, known in self._clients.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _keys_of(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """Return the different credentials of a request that may be API keys.

    There may be several: a proxy that has a login of its own passes its bearer token on, beside the client's X-API-Key.
    """
    keys = set()
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.add(value[7:].strip())
        elif name == b"x-api-key":
            keys.add(value.strip())
    return keys - {b""}


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
