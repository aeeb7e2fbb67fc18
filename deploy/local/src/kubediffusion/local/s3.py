"""A real S3 server on one machine: versitygw, whose objects are files in a folder."""

from __future__ import annotations

import secrets
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from kubediffusion.local.binaries import Binaries
from kubediffusion.local.certificates import Authority
from kubediffusion.local.processes import Process, Program, answers
from kubediffusion.local.reservations import LOOPBACK, Reservations

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

REGION = "us-east-1"
HEALTH_PATH = "/health"


class ObjectStore:
    """An S3 server with keys of its own, which can be stopped and started in the same place.

    Attributes:
        process: The server.
        endpoint: Its URL.
        access_key: The one key it knows.
        secret_key: That key's secret.
        folder: Where a bucket is a folder and an object a file.
        authority: The certificate of the authority that it is trusted by; None where it speaks plain HTTP.
    """

    def __init__(
        self,
        folder: Path,
        log: Path,
        binaries: Binaries,
        reservations: Reservations,
        address: str = LOOPBACK,
        authority: Authority | None = None,
    ) -> None:
        port = reservations.port()
        self.folder = folder / "buckets"
        self.folder.mkdir(mode=0o700, parents=True)
        # Not every file system of a temporary folder has extended attributes, so metadata gets a folder too.
        metadata = folder / "metadata"
        metadata.mkdir(mode=0o700)
        self.authority = authority.certificate if authority else None
        self.endpoint = f"{'https' if authority else 'http'}://{address}:{port}"
        self.access_key = f"local{secrets.token_hex(8)}"
        self.secret_key = secrets.token_urlsafe(30)
        self.process = Process(
            Program(
                name="S3 server",
                command=[
                    str(binaries.path("versitygw")),
                    f"--port={address}:{port}",
                    f"--region={REGION}",
                    f"--health={HEALTH_PATH}",
                    "--keep-alive",
                    "--quiet",
                    *(_tls(authority, address) if authority else ()),
                    "posix",
                    f"--sidecar={metadata}",
                    str(self.folder),
                ],
                log=log,
                healthy=answers(self.endpoint + HEALTH_PATH, self.authority),
                environment={"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key},
            )
        )

    @property
    def settings(self) -> dict[str, str]:
        """The ordinary AWS settings of a client."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            **({"AWS_CA_BUNDLE": str(self.authority)} if self.authority else {}),
        }

    def client(self) -> S3Client:
        """Return a client with the server's own key; the caller closes it.

        The client of ``resources.s3`` reads endpoint and keys from its process's environment, which is another's here.
        """
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=str(self.authority) if self.authority else None,
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    def create_bucket(self, name: str) -> None:
        """Make a bucket."""
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)


def _tls(authority: Authority, address: str) -> tuple[str, ...]:
    identity = authority.server("s3", address)
    return f"--cert={identity.certificate}", f"--key={identity.key}"
