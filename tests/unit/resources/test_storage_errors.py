"""What storage's own errors become: what a caller must know is whether asking again can help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)

from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.runtime.settings import StorageSecrets
from kubediffusion.resources.storage import ImageStorage, StorageError, storage_error

SECRET = "wJalrXUtnFEMI"
URI = "s3://pictures/studio/uid/0.png"


@pytest.fixture(scope="module")
def storage() -> Iterator[Any]:
    """Storage where nobody listens. One for all: to make a client takes a second."""
    settings = {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        opened = ImageStorage("pictures")
    yield opened
    opened.close()


def refused(code: str, message: str = "no") -> Any:
    error = ClientError({"Error": {"Code": code, "Message": message}}, "PutObject")
    return storage_error(error, f"cannot store {URI}", Redactor([SECRET]))


@pytest.mark.parametrize("code", ["NoSuchBucket", "InvalidBucketName", "EntityTooLarge"])
def test_what_cannot_come_right_by_itself_is_permanent(code: str) -> None:
    assert refused(code).permanent


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "ServiceUnavailable", "503", "RequestTimeout"])
def test_trouble_of_the_server_passes(code: str) -> None:
    assert not refused(code).permanent


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_denied_access_passes_since_credentials_get_mended(code: str) -> None:
    assert not refused(code).permanent


def answered(status: int, code: str = "") -> StorageError:
    response: Any = {"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return storage_error(ClientError(response, "PutObject"), "cannot store it", Redactor([]))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (301, "PermanentRedirect"),
        (307, "TemporaryRedirect"),
        (400, "ExpiredToken"),
        (400, "AuthorizationHeaderMalformed"),
        (403, "AccessDenied"),
        (403, "RequestTimeTooSkewed"),
        (403, "AllAccessDisabled"),
        (405, "MethodNotAllowed"),
        (501, "NotImplemented"),
    ],
)
def test_what_somebody_has_to_mend_is_a_refusal(status: int, code: str) -> None:
    error = answered(status, code)
    assert (error.refused, error.permanent) == (True, False)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (304, "304"),
        (400, "RequestTimeout"),
        (409, "OperationAborted"),
        (412, "PreconditionFailed"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (502, "502"),
        (503, "SlowDown"),
    ],
)
def test_what_speaks_of_the_moment_is_none(status: int, code: str) -> None:
    assert not answered(status, code).refused


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (NoCredentialsError(), True),
        (PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), True),
        (ParamValidationError(report='Invalid bucket name "a b"'), True),
        (
            SSLError(endpoint_url="https://s3", error=OSError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get issuer")),
            True,
        ),
        (SSLError(endpoint_url="https://s3", error=OSError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred")), False),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), False),
        (ReadTimeoutError(endpoint_url="http://127.0.0.1:9"), False),
        (ConnectionClosedError(endpoint_url="http://127.0.0.1:9"), False),
        (ProxyConnectionError(proxy_url="http://127.0.0.1:9"), False),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_wrong_settings_are_refusals_and_outages_are_not(error: BotoCoreError, refused: bool) -> None:
    assert storage_error(error, "cannot store it", Redactor([])).refused is refused


@pytest.mark.parametrize("code", ["NoSuchKey", "404"])
def test_a_missing_object_says_so(code: str) -> None:
    assert refused(code).missing


def test_a_missing_bucket_is_no_missing_object() -> None:
    assert not refused("NoSuchBucket").missing


@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), NoCredentialsError()], ids=["away", "no keys"]
)
def test_no_answer_passes(error: BotoCoreError) -> None:
    translated = storage_error(error, "cannot store it", Redactor([]))
    assert (translated.permanent, translated.missing) == (False, False)


def test_the_message_says_what_failed_and_why() -> None:
    assert str(refused("SlowDown", "Reduce your rate")) == f"cannot store {URI}: SlowDown Reduce your rate"


def test_storage_that_is_away_is_an_error_of_ours_that_passes(storage: ImageStorage) -> None:
    with pytest.raises(StorageError, match="cannot read s3://pictures") as caught:
        storage.get(URI)
    assert not caught.value.permanent
    assert SECRET not in str(caught.value)


def test_an_address_leads_back_to_its_key(storage: ImageStorage) -> None:
    assert storage.key(storage.uri("studio/uid/0.png")) == "studio/uid/0.png"


@pytest.mark.parametrize("uri", ["s3://other/studio/uid/0.png", "s3://pictures-too/a.png", "https://pictures/a.png"])
def test_an_address_of_another_bucket_is_refused(storage: ImageStorage, uri: str) -> None:
    with pytest.raises(StorageError, match="not in the configured bucket 'pictures'") as caught:
        storage.key(uri)
    assert caught.value.permanent


def test_a_presigned_url_is_signed_with_version_4_and_carries_no_secret(storage: ImageStorage) -> None:
    url = storage.presign(URI, 60)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "X-Amz-Expires=60" in url
    assert SECRET not in url


def test_no_password_of_an_address_is_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://somebody:{SECRET}@127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    quoted = EndpointConnectionError(endpoint_url=address)
    assert SECRET in str(quoted)
    message = str(storage_error(quoted, f"cannot store {URI}", Redactor(StorageSecrets().secrets)))
    assert SECRET not in message
    assert message.startswith(f"cannot store {URI}: ")
    assert "127.0.0.1:9" in message


def test_no_password_of_an_address_is_in_a_signed_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is handed to clients. botocore uses what stands before the host for nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://somebody:{SECRET}@[::1]:9/base")
    for endpoint in (None, f"http://somebody:{SECRET}@[::1]:9/base"):
        opened = ImageStorage("pictures", endpoint=endpoint)
        assert opened.presign(URI, 60).startswith("http://[::1]:9/base/pictures/studio/uid/0.png?X-Amz-")
        opened.close()
