"""Where images lie: a bucket of S3-compatible storage (:mod:`kubediffusion.resources.s3` reaches it).

Calls block: run them in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from botocore.exceptions import BotoCoreError, ClientError
from botocore.response import StreamingBody

from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.runtime.settings import StorageSecrets
from kubediffusion.resources.s3 import is_refusal, make_client

PNG = "image/png"

_PERMANENT = frozenset({"NoSuchBucket", "InvalidBucketName", "InvalidArgument", "EntityTooLarge", "InvalidRequest"})

_MISSING = frozenset({"NoSuchKey", "404"})

_NOTHING_THERE = _MISSING | {"NoSuchBucket", "NotFound"}

_CONDITION_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})

_PUT_TRIES = 5
"""Attempts of one put while other writers change the same key; there is hardly ever one."""

ATTEMPT = "attempt"
"""Metadata of an image: the attempt of the job that stored it."""


class Precondition(TypedDict, total=False):
    """Under which condition storage accepts a put (RFC 9110, section 13.1)."""

    IfMatch: str
    IfNoneMatch: str


INDEX = "index"
"""Metadata of a preview: which of its job's images it shows."""


@dataclass(frozen=True)
class Preview:
    """A preview in storage.

    Attributes:
        data: A PNG.
        attempt: The attempt of the job that stored it.
        index: The image that it shows.
    """

    data: bytes = field(repr=False)
    attempt: int
    index: int


class SupersededError(Exception):
    """A later attempt of the job has stored its image already."""


class StorageError(Exception):
    """Storage refused a request, or could not be reached.

    Attributes:
        permanent: Whether the same request can never succeed. Denied access is not permanent: credentials get rotated
            and mended.
        refused: Whether the request fails until somebody acts: storage forbids it (403), or the settings are wrong.
        missing: Whether there is no such object.
    """

    def __init__(self, message: str, *, permanent: bool = False, refused: bool = False, missing: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.refused = refused
        self.missing = missing


class ImageStream:
    """An image's bytes as they come from storage.

    Attributes:
        length: How many bytes the image has.
    """

    def __init__(self, body: StreamingBody, length: int, uri: str, redactor: Redactor) -> None:
        self.length = length
        self._body = body
        self._uri = uri
        self._redactor = redactor

    def read(self, size: int) -> bytes:
        """Read the next ``size`` bytes, fewer only at the end.

        Raises:
            StorageError: The connection broke, or storage fell silent.
        """
        try:
            return self._body.read(size)
        except BotoCoreError as error:
            raise storage_error(error, f"cannot read {self._uri}", self._redactor) from error

    def close(self) -> None:
        """Close the connection, and discard what has not been read."""
        self._body.close()


class ImageStorage:
    """One bucket of images. Safe to share between threads, as boto3 clients are.

    Args:
        bucket: Name of the bucket.
        connections: Requests that may be under way at the same time.
        endpoint: Address of the server, where it is not the one of the AWS settings.
    """

    def __init__(self, bucket: str, connections: int = 16, endpoint: str | None = None) -> None:
        self.bucket = bucket
        self._client = make_client(endpoint=endpoint, connections=connections)
        # The environment is read once, as the client does.
        self._redactor = Redactor(StorageSecrets().secrets)

    def uri(self, key: str) -> str:
        """Return the address of a key: ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{key}"

    def key(self, uri: str) -> str:
        """Return the key of an address of this bucket.

        Raises:
            StorageError: The address is of another bucket: it was written under other settings.
        """
        scheme = f"s3://{self.bucket}/"
        if not uri.startswith(scheme):
            raise StorageError(f"{uri} is not in the configured bucket {self.bucket!r}", permanent=True)
        return uri.removeprefix(scheme)

    def put(self, key: str, data: bytes, attempt: int) -> str:
        """Store a PNG and return its address once storage has confirmed it; an earlier attempt's image is overwritten.

        The attempt number fences here as it does in status: a worker that was frozen while its job ran elsewhere would
        otherwise replace the image whose hash the status names. Storage without conditional writes is written to
        without this fence.

        Raises:
            SupersededError: A later attempt has stored its image, which stays.
            StorageError: Storage did not confirm the write.
        """
        condition: Precondition = {"IfNoneMatch": "*"}
        try:
            for _ in range(_PUT_TRIES):
                try:
                    self._client.put_object(
                        Bucket=self.bucket,
                        Key=key,
                        Body=data,
                        ContentType=PNG,
                        Metadata={ATTEMPT: str(attempt)},
                        **condition,
                    )
                except ClientError as error:
                    code = error.response["Error"].get("Code", "")
                    if code == "NotImplemented" and condition:
                        condition = {}
                    elif code in _CONDITION_FAILED:
                        condition = self._to_replace(key, attempt)
                    else:
                        raise
                else:
                    return self.uri(key)
        except (ClientError, BotoCoreError) as error:
            raise storage_error(error, f"cannot store {self.uri(key)}", self._redactor) from error
        raise StorageError(f"cannot store {self.uri(key)}: it changes all the time")

    def _to_replace(self, key: str, attempt: int) -> Precondition:
        """Return the precondition under which this attempt may replace the stored image.

        Raises:
            SupersededError: A later attempt stored it.
        """
        try:
            stored = self._client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"].get("Code") in _MISSING:
                return {"IfNoneMatch": "*"}
            raise
        earlier = stored.get("Metadata", {}).get(ATTEMPT, "")
        # Somebody else may have put an object there.
        if earlier.isdecimal() and int(earlier) > attempt:
            raise SupersededError(f"{self.uri(key)} was stored by a later attempt")
        return {"IfMatch": stored["ETag"]}

    def put_input(self, key: str, data: bytes) -> None:
        """Store an image that jobs take as an input, under a key that its hash decides: what lies there is the same.

        Raises:
            StorageError: Storage did not confirm the write.
        """
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=PNG)
        except (ClientError, BotoCoreError) as error:
            raise storage_error(error, f"cannot store {self.uri(key)}", self._redactor) from error

    def put_preview(self, key: str, preview: Preview) -> None:
        """Store a preview, whatever lies there: nothing names its hash, and the next one overwrites it.

        Raises:
            StorageError: Storage did not confirm the write.
        """
        about = {ATTEMPT: str(preview.attempt), INDEX: str(preview.index)}
        try:
            self._client.put_object(
                Bucket=self.bucket, Key=key, Body=preview.data, ContentType=PNG, Metadata=about, CacheControl="no-store"
            )
        except (ClientError, BotoCoreError) as error:
            raise storage_error(error, f"cannot store {self.uri(key)}", self._redactor) from error

    def get_preview(self, key: str) -> Preview | None:
        """Read a preview; None when there is none.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            found = self._client.get_object(Bucket=self.bucket, Key=key)
            about = found.get("Metadata", {})
            return Preview(found["Body"].read(), int(about.get(ATTEMPT, "0")), int(about.get(INDEX, "0")))
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response["Error"].get("Code") in _MISSING:
                return None
            raise storage_error(error, f"cannot read {self.uri(key)}", self._redactor) from error

    def get(self, uri: str) -> bytes:
        """Read an image's bytes.

        Raises:
            StorageError: It cannot be read; ``missing`` is true when storage has no such object.
        """
        try:
            return self._client.get_object(Bucket=self.bucket, Key=self.key(uri))["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise storage_error(error, f"cannot read {uri}", self._redactor) from error

    def open(self, uri: str) -> ImageStream:
        """Open an image that is to be read in pieces; whoever opens it closes it.

        Raises:
            StorageError: It cannot be read; ``missing`` is true when storage has no such object.
        """
        try:
            found = self._client.get_object(Bucket=self.bucket, Key=self.key(uri))
        except (ClientError, BotoCoreError) as error:
            raise storage_error(error, f"cannot read {uri}", self._redactor) from error
        return ImageStream(found["Body"], found["ContentLength"], uri, self._redactor)

    def delete(self, uri: str) -> None:
        """Delete an image of any bucket that the credentials may delete from; one that is not there is no error.

        Raises:
            StorageError: It may still be there.
        """
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            self._client.delete_object(Bucket=bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            # A bucket that does not exist holds no image.
            if not (isinstance(error, ClientError) and error.response["Error"].get("Code") in _NOTHING_THERE):
                raise storage_error(error, f"cannot delete {uri}", self._redactor) from error

    def presign(self, uri: str, seconds: int) -> str:
        """Sign a URL with which anyone may read the image for some seconds. It makes no request.

        Raises:
            StorageError: The address is of another bucket.
        """
        target = {"Bucket": self.bucket, "Key": self.key(uri)}
        return self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def storage_error(error: ClientError | BotoCoreError, action: str, redactor: Redactor) -> StorageError:
    """Translate an error of botocore.

    botocore quotes the address of storage or of a proxy, which may hold a password, and a proxy the request that it
    refuses; these words reach statuses, Events and answers.

    Args:
        error: What botocore raised.
        action: What failed, for the message: ``cannot store s3://…``.
        redactor: Knows the secrets that the message must not hold.
    """
    if isinstance(error, ClientError):
        code = error.response["Error"].get("Code", "")
        message = error.response["Error"].get("Message", "")
        return StorageError(
            redactor.redact(f"{action}: {code} {message}".strip()),
            permanent=code in _PERMANENT,
            refused=is_refusal(error),
            missing=code in _MISSING,
        )
    return StorageError(redactor.redact(f"{action}: {error}"), refused=is_refusal(error))
