"""Signs what is sent, as https://www.standardwebhooks.com says, with the keys of a Secret of the job's namespace."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Sequence

from standardwebhooks import Webhook

from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError
from kubediffusion.resources.apiserver.rest import RestClient

PREFIX = "whsec_"
"""What a key begins with; the rest is Base64."""

LEAST_BYTES = 24
"""Of a key, by the specification."""

MOST_KEYS = 4
"""Each is one more signature in the header: the old one and the new one, while a key is changed."""


class SigningError(Exception):
    """There is no key to sign with; the words say what to do."""


def signature_headers(message_id: str, moment: dt.datetime, body: str, keys: Sequence[str]) -> dict[str, str]:
    """Return the headers of a message: its id, its time, and a signature by each key.

    Args:
        message_id: The same for every attempt.
        moment: When it is sent.
        body: The body.
        keys: Keys; none for a message without a signature.
    """
    headers = {"webhook-id": message_id, "webhook-timestamp": str(int(moment.timestamp()))}
    signatures = [Webhook(key).sign(message_id, moment, body) for key in keys]
    return {**headers, "webhook-signature": " ".join(signatures)} if signatures else headers


class SecretKeys:
    """The keys that messages are signed with.

    Args:
        client: The connection.
        names: Secrets that may be read; the first is the default.
        unsigned: Whether a message is sent without a signature where the Secret does not exist.
    """

    def __init__(self, client: RestClient, names: Sequence[str], *, unsigned: bool) -> None:
        self._client = client
        self._names = names
        self._unsigned = unsigned

    async def of(self, namespace: str, name: str | None) -> list[str]:
        """Read the keys of a namespace.

        Args:
            namespace: The namespace.
            name: Name of the Secret; None for the default one.

        Raises:
            SigningError: There is no key, or it is none.
            KubernetesError: The API server cannot be asked.
        """
        chosen = name or self._names[0]
        if chosen not in self._names:
            raise SigningError(f"Secret {chosen} is none of those to sign with: {', '.join(self._names)}")
        try:
            secret = await self._client.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{chosen}")
        except NotFoundError:
            if self._unsigned and name is None:
                return []
            raise SigningError(
                f"Secret {chosen} does not exist in namespace {namespace}; create it with a key, "
                f"{PREFIX} and Base64 of {LEAST_BYTES} bytes or more"
            ) from None
        except KubernetesError as error:
            if error.transient:
                raise
            raise SigningError(f"Secret {chosen} cannot be read: {error.message}") from None
        return keys_of(chosen, secret.get("data") or {})


def keys_of(name: str, data: dict[str, str]) -> list[str]:
    """Return the keys in the data of a Secret, by the order of their entries' names.

    Args:
        name: Name of the Secret.
        data: Its entries, in Base64.

    Raises:
        SigningError: One of them is no key, or there is none; no key is quoted.
    """
    keys = []
    for entry in sorted(data):
        try:
            key = base64.b64decode(data[entry]).decode().strip()
            # Strictly: what is not of the alphabet some libraries skip and others refuse, and each had another key.
            digits = key.removeprefix(PREFIX).rstrip("=")
            length = len(base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True))
        except (ValueError, binascii.Error):
            key, length = "", 0
        if not key.startswith(PREFIX) or length < LEAST_BYTES:
            raise SigningError(
                f"entry {entry} of Secret {name} is no key; it is {PREFIX} and Base64 of {LEAST_BYTES} bytes or more"
            )
        keys.append(key)
    if not 0 < len(keys) <= MOST_KEYS:
        raise SigningError(f"Secret {name} has {len(keys)} keys; it should have one, or up to {MOST_KEYS}")
    return keys
