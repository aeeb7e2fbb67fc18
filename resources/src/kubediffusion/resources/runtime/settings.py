"""Settings from the environment. Each wrong one is a line on standard error: the variable, the reason, the remedy."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

EX_CONFIG = 78
"""Exit code of a process that is not configured as it must be (sysexits.h)."""

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

    http_proxy: Annotated[SecretStr | None, Field(alias="HTTP_PROXY")] = None
    """Proxy for http addresses; its URL may hold a password."""

    https_proxy: Annotated[SecretStr | None, Field(alias="HTTPS_PROXY")] = None
    """Proxy for https addresses."""

    all_proxy: Annotated[SecretStr | None, Field(alias="ALL_PROXY")] = None
    """Proxy for what the others do not name."""

    @property
    def secrets(self) -> list[str]:
        """Credentials in the clear, which no message and no log line may hold."""
        held = (self.aws_secret_access_key, self.aws_session_token)
        proxies = (self.http_proxy, self.https_proxy, self.all_proxy)
        addresses = [proxy.get_secret_value() for proxy in proxies if proxy is not None]
        addresses += [self.aws_endpoint_url_s3, self.aws_endpoint_url]
        passwords = [password for address in addresses for password in _passwords(address)]
        return [*(secret.get_secret_value() for secret in held if secret is not None), *passwords]


def _passwords(address: str) -> list[str]:
    """Return the password of a URL, as it stands there and decoded; none of an address without one."""
    with suppress(ValueError):
        if password := urlsplit(address).password:
            return [password, unquote(password)]
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
