"""The worker's settings: one object, read from the environment once, in :mod:`kubediffusion.worker.main`.

The operator sets these on the worker's Pod. Storage's endpoint and credentials are boto3's own settings (``AWS_*``),
and the API server is found by service account or ``KUBECONFIG``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from kubediffusion.resources.accelerators import requested_accelerator
from kubediffusion.resources.adapters import MAX_RANK
from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.runtime.settings import LogLevel, StorageSecrets, credentials_in


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


class Settings(StorageSecrets):
    """Settings of one worker process."""

    model_config = SettingsConfigDict(
        frozen=True, use_attribute_docstrings=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    pod_name: Annotated[str, Field(alias="POD_NAME", min_length=1)]
    """Name of the Pod: ``status.worker`` of the jobs that this worker runs."""

    pod_namespace: Annotated[str, Field(alias="POD_NAMESPACE", min_length=1)]
    """Namespace of the Pod, of its DiffusionModel and of the jobs."""

    model_name: Annotated[str, Field(alias="KUBEDIFFUSION_MODEL", min_length=1)]
    """Name of the DiffusionModel."""

    # The alias generator of the resources names the JSON's fields, so the variable holds spec as kubectl shows it.
    spec: Annotated[DiffusionModelSpec, Field(alias="KUBEDIFFUSION_MODEL_SPEC")]
    """The DiffusionModel's ``spec`` as JSON: what to load, and how."""

    model_path: Annotated[Path | None, Field(alias="KUBEDIFFUSION_MODEL_PATH")] = None
    """Where a ``persistentVolumeClaim`` source is mounted, the source's own path included."""

    claim_paths: Annotated[dict[str, Path], Field(alias="KUBEDIFFUSION_CLAIM_PATHS", default_factory=dict)]
    """Where the claims of ``spec.source.configFrom`` and ``spec.components`` are mounted, by their names; a JSON
    object."""

    cache_dir: Annotated[Path | None, Field(alias="KUBEDIFFUSION_CACHE_DIR")] = None
    """Where models from S3 are kept; a folder of the temporary directory by default. The Hugging Face cache has its
    own setting, ``HF_HOME``."""

    compile_cache_path: Annotated[Path | None, Field(alias="KUBEDIFFUSION_COMPILE_CACHE_PATH")] = None
    """Where ``spec.compileCache.persistentVolumeClaim`` is mounted, its own path included."""

    # A Secret often ends with a newline, which no header takes.
    hf_token: Annotated[SecretStr | None, Field(alias="HF_TOKEN"), BeforeValidator(_stripped)] = None
    """Token of the Hugging Face Hub, from the Secret that the source names."""

    # The Hub's library still takes it from there where HF_TOKEN is not set. Here to be kept out of texts.
    old_hf_token: Annotated[SecretStr | None, Field(alias="HUGGING_FACE_HUB_TOKEN"), BeforeValidator(_stripped)] = None
    """The same, by the name that it had: from ``spec.workers.env`` alone."""

    hf_endpoint: Annotated[str, Field(alias="HF_ENDPOINT")] = ""
    """Address of a mirror of the Hub, which the Hub's library reads itself."""

    bind_address: Annotated[str, Field(alias="KUBEDIFFUSION_BIND_ADDRESS")] = "0.0.0.0"  # noqa: S104 - the kubelet probes the Pod's address
    """Address that probes and metrics are served on."""

    port: Annotated[int, Field(alias="KUBEDIFFUSION_PORT", ge=0, le=65535)] = 8080
    """Port that probes and metrics are served on; 0 for any free one."""

    log_level: Annotated[LogLevel, Field(alias="KUBEDIFFUSION_LOG_LEVEL")] = "INFO"
    """The least severe level to log."""

    log_prompts: Annotated[bool, Field(alias="KUBEDIFFUSION_LOG_PROMPTS")] = False
    """Log prompts, and messages of libraries that may quote them. Off: prompts are private."""

    termination_log: Annotated[Path | None, Field(alias="KUBEDIFFUSION_TERMINATION_LOG")] = None
    """File for the reason why the worker ended, as the Pod's ``terminationMessagePath``; none is written without it."""

    bucket: Annotated[str, Field(alias="KUBEDIFFUSION_S3_BUCKET", min_length=1)]
    """Bucket for images."""

    prefix: Annotated[str, Field(alias="KUBEDIFFUSION_S3_PREFIX")] = ""
    """What the keys of images begin with."""

    accelerator: Annotated[str | None, Field(alias="KUBEDIFFUSION_ACCELERATOR")] = None
    """The GPU, or another accelerator, that the Pod asks for, as the operator tells it. Empty for none; what
    ``spec.workers.resources`` asks for when absent."""

    device: Annotated[Literal["auto", "cpu"], Field(alias="KUBEDIFFUSION_DEVICE")] = "auto"
    """What computes: ``auto`` takes a GPU, and the CPU only where the Pod asks for no GPU; ``cpu``
    takes the CPU all the same."""

    torch_threads: Annotated[int | None, Field(alias="KUBEDIFFUSION_TORCH_THREADS", ge=1)] = None
    """CPU threads for the pipeline; by default as many as the container may use."""

    adapter_rank: Annotated[int, Field(alias="KUBEDIFFUSION_ADAPTER_RANK", ge=1, le=MAX_RANK)] = 64
    """The most rank that the adapters of one image have together. Each image of a batch has room for so much on the
    device, from the first image with adapters on."""

    adapter_cache_mib: Annotated[int, Field(alias="KUBEDIFFUSION_ADAPTER_CACHE_MIB", ge=1)] = 2048
    """MiB of main memory for adapters that no job has now; those used longest ago make room for others."""

    upload_buffer_mib: Annotated[int, Field(alias="KUBEDIFFUSION_UPLOAD_BUFFER_MIB", ge=1)] = 256
    """MiB of finished images that may wait for storage or the API server before the engine pauses."""

    refused_seconds: Annotated[float, Field(alias="KUBEDIFFUSION_REFUSED_SECONDS", gt=0)] = 300.0
    """For so long an image that storage refuses and an outcome that the API server refuses are tried again; then the
    job fails."""

    stuck_seconds: Annotated[float, Field(alias="KUBEDIFFUSION_STUCK_SECONDS", gt=0)] = 900.0
    """``/livez`` fails when a batch shows no sign of life for this long. Longer than a compilation takes."""

    @property
    def requested_gpu(self) -> str | None:
        """The GPU, or another accelerator, that its Pod asks for, as ``nvidia.com/gpu: 1``; None for none."""
        if self.accelerator is not None:
            return self.accelerator or None
        return requested_accelerator(self.spec.workers.resources.to_wire())

    @property
    def secrets(self) -> list[str]:
        """Values that no message and no line of the log may hold."""
        tokens = [token.get_secret_value() for token in (self.hf_token, self.old_hf_token) if token is not None]
        return [*tokens, *super().secrets, *credentials_in(self.hf_endpoint)]
