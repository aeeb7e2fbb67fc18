"""The one way to make a client of S3-compatible storage: for images, model folders and the compile cache.

Endpoint, credentials, checksums and authorities of certificates are boto3's own settings (``AWS_ENDPOINT_URL_S3``,
``AWS_ACCESS_KEY_ID``, ``AWS_REQUEST_CHECKSUM_CALCULATION``, ``AWS_CA_BUNDLE``, …:
https://docs.aws.amazon.com/boto3/latest/guide/configuration.html). :class:`S3Settings` adds what boto3 reads from no
environment variable.
"""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
)
from botocore.exceptions import ConnectionError as ConnectFailedError
from botocore.handlers import add_expect_header

from kubediffusion.resources.runtime.no_proxy import in_no_proxy_network
from kubediffusion.resources.runtime.settings import S3Settings

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT = 3.0
"""Seconds to connect."""

_PASSING = frozenset(
    {
        HTTPStatus.NOT_MODIFIED,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""Answers that speak of the moment, though they are of the class that speaks of the request."""

_OUTAGES = (
    ConnectFailedError,
    HTTPClientError,
    IncompleteReadError,
    ChecksumError,
    FlexibleChecksumError,
    MetadataRetrievalError,
)
"""What botocore raises where storage, or the way to it, is at fault; all else it finds wrong in the settings."""

MISREAD_ATTEMPTS = 4
"""How often a request is sent in all that the server cannot parse."""


def make_client(
    *, endpoint: str | None = None, connections: int = 10, read_timeout: float = 20.0, attempts: int = 2
) -> S3Client:
    """Make a client, which threads may share.

    Args:
        endpoint: Address of the server, where it is not the one of the AWS settings.
        connections: Requests that may be under way at the same time.
        read_timeout: Seconds without a byte of an answer after which a request has failed.
        attempts: How often a request is sent in all. Callers pace longer outages themselves, since they can say so
            meanwhile.
    """
    settings = S3Settings()
    named = endpoint or settings.endpoint
    if "@" in named:
        # botocore sends neither name nor password, and would write both into each URL that it signs.
        endpoint = urlunsplit(urlsplit(named)._replace(netloc=urlsplit(named).netloc.rpartition("@")[2]))
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=read_timeout,
        max_pool_connections=connections,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        # boto3 still signs URLs with version 2 by default, which most servers, AWS's newer regions among them, no
        # longer take.
        signature_version="s3v4",
        s3={"addressing_style": settings.s3_addressing_style} if settings.s3_addressing_style else None,
        # None: those of the environment, as boto3 reads them.
        proxies={} if in_no_proxy_network(named) else None,
        # boto3's own is put together anew for each request: a sixth of what a small one costs.
        user_agent="kubediffusion",
    )
    key_id, secret_key, token = _credentials()
    session = boto3.session.Session(key_id, secret_key, token, region_name=settings.aws_region or None)
    client: S3Client = session.client("s3", config=config, endpoint_url=endpoint)
    # boto3 asks for leave before it sends a body: one more way there and back for each image, and no image is so long
    # that it pays.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register("needs-retry.s3", _retry_misread)  # type: ignore[arg-type] # the stubs know no answer
    return client


def is_refusal(error: ClientError | BotoCoreError) -> bool:
    """Return whether a request fails until somebody acts, as the request or the settings are at fault.

    Besides what storage forbids these are redirects to another region or address, which botocore does not follow, what
    the server cannot do, credentials that are missing, a bucket's name that is none, and a certificate that is not
    trusted.
    """
    if not isinstance(error, ClientError):
        return not isinstance(error, _OUTAGES) or "CERTIFICATE_VERIFY_FAILED" in str(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status in _PASSING or error.response["Error"].get("Code") == "RequestTimeout":
        return False
    return HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR or (
        status == HTTPStatus.NOT_IMPLEMENTED
    )


def _retry_misread(response: tuple[AWSResponse, dict[str, Any]] | None, attempts: int, **_: object) -> float | None:
    """Have a request sent again that the server could not parse.

    A server that refuses an upload by its condition may leave the body unread, and takes it for the next request of the
    connection: versitygw 1.8 does so over TLS, answers 400 and closes the connection. Nothing was carried out.

    Returns:
        Seconds until the request is sent again; None where it is not (botocore's event ``needs-retry``).
    """
    if response is None or attempts >= MISREAD_ATTEMPTS or response[0].status_code != HTTPStatus.BAD_REQUEST:
        return None
    return 0.0 if response[1].get("Error", {}).get("Code") == "BadRequest" else None


def _credentials() -> tuple[str | None, str | None, str | None]:
    """Return key id, secret key and session token of the environment without whitespace around them.

    A Secret made from a file often ends with a newline: boto3 would sign with it, or quote the key in an error. Where
    the environment has no keys all are None, and boto3 looks for others.
    """
    key_id, secret_key, token = (
        os.environ.get(name, "").strip() or None
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    )
    return (key_id, secret_key, token) if key_id and secret_key else (None, None, None)
