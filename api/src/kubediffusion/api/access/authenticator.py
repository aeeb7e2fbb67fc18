"""Turns the credentials of a request into the identity of its caller."""

from __future__ import annotations

from collections.abc import Iterable

from kubediffusion.api.access.identity import Identity, Mode
from kubediffusion.api.access.keys import ApiKeys
from kubediffusion.api.caller_settings import Scope
from kubediffusion.api.errors import UnauthorizedError, WrongKeyError
from kubediffusion.api.settings import Settings

OPEN_PATHS = frozenset({"/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""What needs no key: probes, documentation and the page itself say nothing of jobs."""

OPEN_PREFIXES = ("/docs/", "/page/")

MOST_CREDENTIALS = 4
"""Different credentials of one request that are tried; more of them are a guess at keys."""

Headers = Iterable[tuple[bytes, bytes]]


class Authenticator:
    """Knows the callers of one API.

    Args:
        settings: Settings of the API.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.keys = ApiKeys(settings.api_keys_file)
        # An identity says nothing of a request, so a key has one. Whoever withdraws a key withdraws no identity.
        self._of_keys: dict[str, Identity] = {}
        self._limits = settings.limits_of("")

    @property
    def required(self) -> bool:
        """Whether callers must say who they are."""
        return self._settings.authenticates

    def anybody(self, address: str) -> Identity:
        """Return the identity of a caller that nobody asks who it is."""
        return Identity(Mode.NONE, "", address, Scope.NAMESPACE, self._limits)

    async def identify(self, headers: Headers, address: str) -> Identity:
        """Return the identity of a request's caller.

        Args:
            headers: The request's headers, their names in lower case.
            address: Where it came from.

        Raises:
            UnauthorizedError: There is no credential.
            WrongKeyError: No credential is valid, or they are those of several callers.
        """
        if not self.required:
            return self.anybody(address)
        credentials = _credentials(headers)
        if not credentials:
            raise UnauthorizedError(
                "An API key is needed, as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
                {"WWW-Authenticate": "Bearer"},
            )
        if len(credentials) > MOST_CREDENTIALS:
            raise WrongKeyError(f"A request may carry at most {MOST_CREDENTIALS} credentials.")
        owners = self.keys.owners(credentials)
        if not owners:
            raise WrongKeyError("This API key is not valid.")
        if len(owners) > 1:
            raise WrongKeyError("The request carries API keys of several clients; send one.")
        return self._of_key(owners.pop())

    def _of_key(self, name: str) -> Identity:
        if (known := self._of_keys.get(name)) is not None:
            return known
        settings = self._settings
        identity = Identity(Mode.API_KEY, name, name, settings.scope_of(name), settings.limits_of(name))
        self._of_keys[name] = identity
        return identity


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _credentials(headers: Headers) -> set[bytes]:
    """Return the different credentials of a request.

    There may be several: a proxy that has a login of its own passes its bearer token on, beside the client's X-API-Key.
    """
    credentials = set()
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            credentials.add(value[7:].strip())
        elif name == b"x-api-key":
            credentials.add(value.strip())
    return credentials - {b""}
