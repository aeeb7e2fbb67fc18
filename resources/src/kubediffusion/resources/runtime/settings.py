"""Settings from the environment. Each wrong one is a line on standard error: the variable, the reason, the remedy."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

EX_CONFIG = 78
"""Exit code of a process that is not configured as it must be (sysexits.h)."""

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})

S = TypeVar("S", bound=BaseSettings)

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
]
"""The least severe level to log, in any case."""


class S3Settings(BaseSettings):
    """What boto3 does not read from the environment itself."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)

    aws_region: Annotated[str | None, Field(alias="AWS_REGION")] = None
    """Region of the bucket. Every AWS SDK reads this variable but boto3, which reads ``AWS_DEFAULT_REGION`` alone."""

    s3_addressing_style: Annotated[
        Literal["auto", "path", "virtual"] | None, Field(alias="KUBEDIFFUSION_S3_ADDRESSING_STYLE")
    ] = None
    """Where a request names the bucket: in the path, in the host name (``virtual``), or as boto3 chooses."""

    aws_endpoint_url_s3: Annotated[str, Field(alias="AWS_ENDPOINT_URL_S3")] = ""
    """Address of storage that is not AWS."""

    aws_endpoint_url: Annotated[str, Field(alias="AWS_ENDPOINT_URL")] = ""
    """The same, where it is one for all services."""

    @property
    def endpoint(self) -> str:
        """Address of storage; empty at AWS."""
        return self.aws_endpoint_url_s3 or self.aws_endpoint_url


class StorageSecrets(S3Settings):
    """Credentials that libraries read themselves: storage's, and those in addresses. Here to be kept out of texts."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)

    aws_secret_access_key: Annotated[SecretStr | None, Field(alias="AWS_SECRET_ACCESS_KEY")] = None
    """The key that requests to storage are signed with."""

    aws_session_token: Annotated[SecretStr | None, Field(alias="AWS_SESSION_TOKEN")] = None
    """What goes with a key that is valid for a time."""

    aws_container_authorization_token: Annotated[SecretStr | None, Field(alias="AWS_CONTAINER_AUTHORIZATION_TOKEN")] = (
        None
    )
    """What a Pod's identity is shown with to the endpoint that gives it credentials for storage."""

    @property
    def secrets(self) -> list[str]:
        """Credentials in the clear, which no message and no log line may hold."""
        held = (self.aws_secret_access_key, self.aws_session_token, self.aws_container_authorization_token)
        addresses = [*_proxies(), self.aws_endpoint_url_s3, self.aws_endpoint_url]
        credentials = [secret for address in addresses for secret in credentials_in(address)]
        return [*(secret.get_secret_value() for secret in held if secret is not None), *credentials]


def _proxies() -> list[str]:
    """Return the addresses of proxies, which libraries read in capitals and not; a setting would be one of the two."""
    return [value for name, value in os.environ.items() if name.lower() in _PROXIES]


def credentials_in(address: str) -> list[str]:
    """Return the password of a URL, or its user where that is all: a token. Both as they stand there and decoded.

    Args:
        address: The URL; what is none has no credentials.
    """
    with suppress(ValueError):
        parts = urlsplit(address)
        if secret := parts.password or parts.username:
            return [secret, unquote(secret)]
    return []


def read_settings(kind: type[S], exit_code: int = EX_CONFIG) -> S:
    """Read settings from the environment, or end the process with a line on standard error for each mistake.

    No line holds a value: it may be a secret in the wrong place.

    Args:
        kind: Class of the settings.
        exit_code: Exit code of the process.

    Raises:
        SystemExit: A variable is missing, or its value is not valid.
    """
    try:
        return kind()
    except ValidationError as error:
        lines = [_line(kind, problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()]
    except SettingsError as error:
        # A variable that should be JSON and is not; only the message names the field.
        quoted = re.search(r'"(\w+)"', str(error))
        lines = [f"{_variable(kind, quoted[1]) if quoted else error}: it is not valid JSON; correct it"]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.exit(exit_code)


def _line(kind: type[BaseSettings], where: tuple[int | str, ...], error: str, message: str) -> str:
    name, *inside = map(str, where)
    field = ".".join((_variable(kind, name), *inside))
    if error == "missing":
        return f"{field}: it is not set; set it"
    default = _default(kind, name) if not inside else None
    return f"{field}: {message}; correct it" + (f", or unset it for {default}" if default is not None else "")


def _variable(kind: type[BaseSettings], name: str) -> str:
    """Return the environment variable of a field. pydantic reports a field under its alias, if it has one."""
    if name not in kind.model_fields:
        return name
    return kind.model_fields[name].alias or f"{kind.model_config.get('env_prefix', '')}{name}".upper()


def _default(kind: type[BaseSettings], name: str) -> Any:
    fields = {field.alias or own: field for own, field in kind.model_fields.items()}
    field = fields[name]
    return None if field.is_required() or field.default in (None, "") else field.default
