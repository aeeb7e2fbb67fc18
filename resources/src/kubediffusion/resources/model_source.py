"""Where a model and its components come from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from kubediffusion.resources.schema import Schema


class SecretKeyRef(Schema):
    """A key of a Secret in the model's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """The Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253)] = "token"
    """The key within it."""


Variant = Annotated[str, Field(min_length=1, max_length=40)]

_WITHIN = r"^[^/].*[^/]$|^[^/]$"
SAFETENSORS_FILE = r"^[^/].*\.safetensors$"
_COMPONENT_FILE = r"^[^/].*\.(safetensors|gguf)$"

ONE_LOCATION: JsonDict = {
    "rule": (
        "[has(self.huggingFace), has(self.persistentVolumeClaim), has(self.s3), has(self.path)]"
        ".filter(set, set).size() == 1"
    ),
    "message": "exactly one of huggingFace, persistentVolumeClaim, s3 and path must be set",
}
_ONE_VARIANT: JsonDict = {
    "rule": (
        "(has(self.variant) ? 1 : 0) + (has(self.singleFile) ? 1 : 0) + (self.?huggingFace.?variant.hasValue() ? 1 : 0)"
        " <= 1"
    ),
    "message": "variant is set once, and not beside singleFile, which names one file",
}


class HubRepository(Schema):
    """A repository of the Hugging Face Hub (or of the mirror that HF_ENDPOINT names), at a revision."""

    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=200)]
    """Owner and name."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] = "main"
    """A commit, tag or branch; pin a commit to get the same weights always."""


class HuggingFaceSource(HubRepository):
    """A repository of the Hugging Face Hub (or of the mirror that HF_ENDPOINT names)."""

    variant: Variant | None = None
    """Which files to take where a repository has several, for example fp16; as variant beside huggingFace."""
    token_secret_ref: SecretKeyRef | None = None
    """The token to read it with, where it is not public."""


class PersistentVolumeClaimSource(Schema):
    """A folder on a PersistentVolumeClaim, mounted read-only."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253)]
    """The PersistentVolumeClaim."""
    path: Annotated[str, Field(max_length=1024)] = ""
    """Folder within the volume; the root when empty."""


class S3Source(Schema):
    """A folder in S3-compatible storage, read with the worker's own credentials."""

    uri: Annotated[str, Field(pattern=r"^s3://[^/]+/.+$", max_length=1024)]
    """Where the folder lies: s3://bucket/folder."""


class SourceLocation(Schema):
    """Where files of a model lie: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [ONE_LOCATION]})

    hugging_face: HuggingFaceSource | None = None
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    s3: S3Source | None = None
    path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A folder of the worker's image or machine."""


class ModelSource(SourceLocation):
    """Where the diffusers folder, or a checkpoint in one file, lies: exactly one of the four places."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                ONE_LOCATION,
                _ONE_VARIANT,
                {
                    "rule": "!has(self.configFrom) || has(self.singleFile)",
                    "message": "configFrom is for a singleFile: a diffusers folder has its own configuration",
                },
            ]
        }
    )

    variant: Variant | None = None
    """Which files to take where the folder has several of a component, for example fp16."""
    single_file: Annotated[str, Field(pattern=SAFETENSORS_FILE, max_length=1024)] | None = None
    """A checkpoint of the whole pipeline in one safetensors file, by its path within the source."""
    config_from: SourceLocation | None = None
    """The diffusers folder whose configuration, tokenizers and scheduler the singleFile goes with; the source itself
    when absent."""


class ComponentSource(SourceLocation):
    """Where a component lies: exactly one of the four places."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [ONE_LOCATION, _ONE_VARIANT]})

    subfolder: Annotated[str, Field(pattern=_WITHIN, max_length=1024)] | None = None
    """Folder of the component within the source; the source itself when absent."""
    variant: Variant | None = None
    """Which files to take where there are several, for example fp16."""
    single_file: Annotated[str, Field(pattern=_COMPONENT_FILE, max_length=1024)] | None = None
    """The component's weights in one file, safetensors or GGUF, by its path within the source and subfolder. Its
    configuration is that of the model."""


class Quantization(StrEnum):
    """In how few bits weights are held: less memory for less precision."""

    NONE = "none"
    """As they are stored, or in torchDtype."""
    FLOAT8 = "float8"
    """8 bits each, by torchao."""
    INT8 = "int8"
    """8 bits each with a scale a row, by torchao."""
    NF4 = "nf4"
    """4 bits each with a scale a block, by bitsandbytes; on CUDA only."""


class ModelComponent(Schema):
    """A component of the pipeline that comes from elsewhere, or is held otherwise than the rest."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.source) || has(self.quantization)",
                    "message": "a component says where it comes from (source), how it is held (quantization), or both",
                }
            ]
        }
    )

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=63)]
    """The component, as model_index.json names it: transformer, vae, text_encoder_2."""
    source: ComponentSource | None = None
    """Where it comes from instead."""
    quantization: Quantization | None = None
    """In how few bits its weights are held; for the denoiser this wins over the model's."""
