"""The settings of the operator, read from the environment once."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from kubediffusion.resources.runtime.settings import LogLevel, StorageSecrets


class Settings(StorageSecrets):
    """Settings of the operator; each comes from ``KUBEDIFFUSION_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="KUBEDIFFUSION_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    namespaces: str = ""
    """Namespaces to manage, separated by commas; empty for all of the cluster."""
    bind_address: str = ""
    """Address of the endpoint for probes and metrics; empty for every address of the Pod, of IPv4 and IPv6."""
    port: int = 8081
    """Port of the endpoint for probes and metrics."""
    log_level: LogLevel = "INFO"
    """Least severe level to log."""

    worker_image: str = "kubediffusion-worker"
    """Container image of workers whose model names none."""
    worker_service_account: str = "kubediffusion-worker"
    """Service account of workers whose model names none."""
    worker_port: int = 8080
    """Port of a worker's probes and metrics."""
    worker_log_level: LogLevel = "INFO"
    """Least severe level that workers log."""
    worker_template: dict[str, Any] = Field(default_factory=dict)
    """A partial Pod template as JSON, for all workers: merged over the operator's own and beneath what a model says."""
    worker_run_as_user: int = Field(default=65532, ge=0)
    """User and group that workers run as; 0 where the platform chooses them, as OpenShift does."""
    worker_ca_config_map: str = ""
    """ConfigMap, in each served namespace, with the certificates of the authorities that storage is trusted by; it is
    mounted where ``AWS_CA_BUNDLE`` says. Empty for the authorities that the images know."""
    aws_request_checksum_calculation: Annotated[str, Field(alias="AWS_REQUEST_CHECKSUM_CALCULATION")] = ""
    """When requests to storage get checksums, as boto3 reads it. Workers are given it too."""
    aws_response_checksum_validation: Annotated[str, Field(alias="AWS_RESPONSE_CHECKSUM_VALIDATION")] = ""
    """When checksums of storage's answers are compared, as boto3 reads it. Workers are given it too."""
    aws_ca_bundle: Annotated[str, Field(alias="AWS_CA_BUNDLE")] = ""
    """File of the authorities that storage is trusted by, as boto3 reads it. Workers are given it where they have the
    ConfigMap: another file is their image's business."""
    s3_secret: str = "kubediffusion-s3"  # noqa: S105 - the name of a Secret, not a secret
    """Secret with the AWS settings, KUBEDIFFUSION_S3_BUCKET and KUBEDIFFUSION_S3_PREFIX, which workers get as their
    environment; the operator gets the same to delete images."""
    s3_bucket: str = ""
    """Bucket of the images. Empty: images of ``deletionPolicy: Delete`` jobs cannot be deleted."""
    s3_prefix: str = ""
    """Prefix of every key."""

    concurrent_requests: int = Field(default=32, ge=1)
    """Requests to the API server that may be under way at once, beside four of each namespace's own."""
    resync_seconds: float = Field(default=30, gt=0)
    """Seconds between two lists of the workers: what a watch may miss while it was broken is found then."""
    model_grace_seconds: float = Field(default=30, ge=0)
    """Seconds that a job waits for a DiffusionModel that does not exist, as both may be applied together."""
    node_grace_seconds: float = Field(default=30, gt=0)
    """Seconds after a worker's grace period that its node may take to tell of its end. Then the node is taken for
    lost: the worker's jobs are bound elsewhere, as its reports are fenced should it still run."""
    explain_after_seconds: float = Field(default=1, ge=0)
    """A job that waits longer than so many seconds says why, in its Scheduled condition."""
    explanations_per_second: float = Field(default=5, gt=0)
    """Such writes a second at most, so that a long queue costs little."""
    default_ttl_seconds: int = Field(default=86_400, ge=0, le=31_536_000)
    """Seconds that a finished job stays which names no time to live, and whose model names none. 0 is for ever."""
    webhook_hold_seconds: int = Field(default=0, ge=0, le=7 * 86_400)
    """Seconds after its end for which a finished job stays, whatever its time to live, whose webhook's receiver has not
    been told yet. 0 where nobody delivers webhooks."""
    finished_jobs_per_namespace: int = Field(default=10_000, ge=0)
    """Finished jobs of one namespace that are kept: of more the oldest are deleted first. 0 keeps any number."""
    batches_ahead: int = Field(default=2, ge=1)
    """Batches bound to a worker: the one that runs and those that wait behind it, so that it never idles."""

    @property
    def worker_environment(self) -> dict[str, str]:
        """Variables that workers get as the operator has them."""
        passed = {
            "KUBEDIFFUSION_S3_ADDRESSING_STYLE": self.s3_addressing_style or "",
            "AWS_REQUEST_CHECKSUM_CALCULATION": self.aws_request_checksum_calculation,
            "AWS_RESPONSE_CHECKSUM_VALIDATION": self.aws_response_checksum_validation,
            "AWS_CA_BUNDLE": self.aws_ca_bundle if self.worker_ca_config_map else "",
        }
        return {name: value for name, value in passed.items() if value}

    @property
    def namespace_list(self) -> list[str]:
        """The namespaces to manage; empty for all."""
        return [name.strip() for name in self.namespaces.split(",") if name.strip()]
