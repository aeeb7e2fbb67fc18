"""The settings of the API, read once from the environment at start."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from kubediffusion.api.caller_settings import MAX_PRIORITY, EffectiveLimits, KeyLimits, Priority, RateLimit, Scope
from kubediffusion.api.proxies import TrustedProxies
from kubediffusion.api.webhook_urls import AllowedHosts
from kubediffusion.resources.runtime.settings import LogLevel, StorageSecrets


class ImageForm(StrEnum):
    """How ``GET /results`` hands out an image."""

    BASE64 = "base64"
    """The PNG itself, base64 in ``image_base64``."""
    URL = "url"
    """A presigned URL in ``image_url``; the bytes then do not pass through the API."""


def _check_proxies(networks: str) -> str:
    TrustedProxies(networks)
    return networks


def _check_hosts(hosts: str) -> str:
    AllowedHosts(hosts)
    return hosts


Proxies = Annotated[str, AfterValidator(_check_proxies)]

Hosts = Annotated[str, AfterValidator(_check_hosts)]

RootPath = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")]


class Settings(StorageSecrets):
    """Settings, each from the environment variable of its name in capitals with the prefix ``KUBEDIFFUSION_``.

    Storage's endpoint, region and credentials are boto3's own settings (``AWS_ENDPOINT_URL_S3``, ``AWS_REGION``,
    ``AWS_ACCESS_KEY_ID``, …), the API server is the Pod's or the one of ``KUBECONFIG``.
    """

    model_config = SettingsConfigDict(
        env_prefix="KUBEDIFFUSION_",
        frozen=True,
        use_attribute_docstrings=True,
        env_ignore_empty=False,
        hide_input_in_errors=True,
    )

    namespace: Annotated[str, Field(min_length=1)] = "default"
    """Namespace whose jobs and models are served. Tenants are namespaces: each has an API of its own."""

    bind_address: str = ""
    """Address to listen on; empty for every address of the machine or Pod, of IPv4 and IPv6."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 for any free one."""

    root_path: RootPath = ""
    """Prefix of the paths that clients see, for example ``/images``, whether the proxy strips it or not."""

    cors_origins: str = ""
    """Origins, separated by commas, whose web pages may use the API (CORS), for example ``https://app.example.com``;
    ``*`` for all, empty for none. API keys go in headers, so no cookies are let through."""

    trusted_proxies: Proxies = ""
    """Addresses or networks, separated by commas, whose ``X-Forwarded-For`` is believed: the client is the last address
    that none of them is. ``*`` believes whoever connects, and takes the last address; empty for none. Without it every
    client behind a proxy shares the proxy's rate limit."""

    shutdown_seconds: Annotated[int, Field(ge=0)] = 20
    """How long requests under way may take once SIGTERM has come."""

    log_level: LogLevel = "INFO"
    """The least severe level to log."""

    log_prompts: bool = False
    """Whether prompts may be logged. They are often personal, so only when asked."""

    s3_bucket: str = ""
    """Bucket that the workers upload to. Without it, images cannot be read through the API."""

    s3_prefix: str = ""
    """What the keys of images begin with, as the workers have it: previews lie there."""

    s3_public_endpoint: str = ""
    """Address of storage as clients reach it, for presigned URLs. Empty where it is the same for them as for us."""

    image_form: ImageForm = ImageForm.BASE64
    """How ``GET /results`` hands out an image where the client does not say."""

    presign_seconds: Annotated[int, Field(ge=1, le=604_800)] = 3600
    """How long a presigned URL is valid; S3 takes a week at most."""

    image_cache_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Memory for images that were read lately."""

    api_keys_file: Path | None = None
    """Folder with one file a client (file name: the client's name, content: its key), as a mounted Secret is, or one
    such file. Read again when it changes."""

    allow_unauthenticated: bool = False
    """Whether to serve anybody who reaches the port, where callers are asked for no API key. Without it the process
    does not start then."""

    scope: Scope = Scope.NAMESPACE
    """Which jobs a caller with an API key sees, cancels and deletes: all of the ``namespace``, or its ``own``: those
    that it created over HTTP. To others' it is told that there is no such job."""

    rate_limit: RateLimit = "600/minute"
    """How many jobs one client may create, counted in each replica: by API key, else by address."""

    unknown_task_limit: RateLimit = "20/second"
    """How many lookups of task ids that do not exist one client may cause at the API server."""

    max_unfinished_jobs: Annotated[int, Field(ge=0)] = 10_000
    """With so many jobs unfinished in the namespace, further ones are refused with 429; 0 for no cap. It is read from
    the watch, so replicas may exceed it by what they accept within a watch's delay; a ResourceQuota is exact."""

    max_unfinished_jobs_by_key: Annotated[int, Field(ge=0)] = 5_000
    """With so many jobs of one API key unfinished, further ones of it are refused with 429, so that no client fills the
    namespace alone; 0 for no cap."""

    max_priority: Priority = MAX_PRIORITY
    """The highest priority that a request may ask for; a higher one is refused with 422."""

    key_limits: dict[str, KeyLimits] = {}  # noqa: RUF012 - pydantic copies it
    """Other values of ``max_unfinished_jobs_by_key``, ``max_priority``, ``rate_limit`` and ``scope`` for single API
    keys, and the models that one may use, where it may not use all, as JSON:
    ``{"alice": {"maxPriority": 10, "models": ["sdxl"], "scope": "own"}}``."""

    max_streams: Annotated[int, Field(ge=0)] = 2_000
    """With so many streams of events open in this process, further ones are refused with 429; 0 for no cap."""

    max_streams_by_client: Annotated[int, Field(ge=0)] = 1_000
    """With so many of them open for one client, by API key, else by address, further ones of it are refused; 0 for no
    cap."""

    stream_heartbeat_seconds: Annotated[float, Field(gt=0, le=3600)] = 15
    """A stream of events that has been silent for so long says that it is still there."""

    openai_deadline_seconds: Annotated[int, Field(ge=1)] = 600
    """How long a request of OpenAI's images API, or of the web UI's ``/sdapi/v1``, waits for its images, and after
    which the job ends: the time limit of OpenAI's own client."""

    default_ttl_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = 0
    """Seconds that a finished job stays that is created here, names no time to live, and whose model names none. It is
    written into the job's spec at its creation. 0 writes none, and leaves it to the operator once the job has
    finished. The chart gives both the same."""

    max_body_bytes: Annotated[int, Field(ge=1)] = 64 * 1024
    """A longer request is refused with 413 before it has been read to its end."""

    webhooks: bool = False
    """Whether clients may ask for webhooks: a deliverer of them serves this namespace."""

    webhook_allowed_hosts: Hosts = ""
    """Hosts, separated by commas, that webhooks may call over http, as the deliverer has them."""

    webhook_secrets: str = "kubediffusion-webhooks"
    """Secrets, separated by commas, that webhooks may be signed with, as the deliverer has them."""

    max_list_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024
    """The same for ``POST /v1/jobs``, which takes up to 100 jobs at once."""

    @property
    def authenticates(self) -> bool:
        """Whether callers must say who they are."""
        return self.api_keys_file is not None

    def limits_of(self, key_name: str) -> EffectiveLimits:
        """Return what one API key may do; the name is empty where none is needed."""
        own = self.key_limits.get(key_name, KeyLimits())
        return EffectiveLimits(
            self.max_unfinished_jobs_by_key if own.max_unfinished_jobs is None else own.max_unfinished_jobs,
            self.max_priority if own.max_priority is None else own.max_priority,
            self.rate_limit if own.rate_limit is None else own.rate_limit,
            own.models,
        )

    def scope_of(self, key_name: str) -> Scope:
        """Return which jobs one API key sees."""
        return self.key_limits.get(key_name, KeyLimits()).scope or self.scope
