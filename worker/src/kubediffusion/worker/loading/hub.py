"""Fetches a repository of the Hugging Face Hub into this machine's cache, or finds it there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import HubRepository, HuggingFaceSource
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.sources import ModelRefusedError

_REFUSED = frozenset({400, 401, 403, 404, 410})
_NO_ACCESS = 401

_NO_SAFETENSORS = "Could not find the necessary `safetensors` weights"
"""How diffusers begins to say that a component has no weights that may be loaded."""

_CONVERT = (
    "it has no safetensors weights for every component; convert the model to safetensors, name the variant or revision "
    "that has them, or set spec.useSafetensors to false if you trust whoever made it: such weights can run code"
)


def fetch(source: HuggingFaceSource, spec: DiffusionModelSpec, token: str | None) -> tuple[Path, str]:
    """Download what is missing of a repository, and return its local folder and the commit that it holds.

    With ``HF_HUB_OFFLINE=1``, or while the Hub is away, what the cache has is used.

    Args:
        source: Repository, revision and variant.
        spec: The rules for weights and code.
        token: For repositories that are not public.

    Raises:
        BadModelError: The repository cannot be loaded, or its name is not valid.
        ModelRefusedError: The Hub says that repository, revision or the right to read it does not exist.
        OSError: The Hub cannot be reached; another try may help.
    """
    # One that is not loaded may be in any format, and need not come.
    left_out = [component.name for component in spec.components if component.source is not None]
    if not spec.safety_checker:
        left_out.append("safety_checker")
    with _typed_errors(source):
        folder = DiffusionPipeline.download(
            source.repository,
            revision=source.revision,
            variant=spec.source.variant or source.variant,
            token=token,
            use_safetensors=True if spec.use_safetensors else None,
            trust_remote_code=spec.trust_remote_code,
            **dict.fromkeys(left_out),
        )
    # The cache's layout: …/snapshots/<commit>.
    return Path(folder), Path(folder).name


def fetch_files(source: HubRepository, patterns: tuple[str, ...], token: str | None) -> tuple[Path, str]:
    """Download those files of a repository that match a pattern, and return its local folder and the commit.

    Args:
        source: Repository and revision.
        patterns: As ``fnmatch`` has them.
        token: For repositories that are not public.

    Raises:
        ModelRefusedError: The Hub says that repository, revision or the right to read it does not exist.
        OSError: The Hub cannot be reached; another try may help.
    """
    with _typed_errors(source):
        folder = snapshot_download(
            source.repository, revision=source.revision, allow_patterns=list(patterns), token=token
        )
    return Path(folder), Path(folder).name


def fetch_file(source: HubRepository, name: str, token: str | None, accept: Callable[[int], None]) -> Path | None:
    """Download one file of a repository, and return it as it lies here; None where the repository has none of its name.

    While the Hub is away, what the cache has is used.

    Args:
        source: Repository and revision.
        name: Path of the file within it.
        token: For repositories that are not public.
        accept: Told its bytes before it is downloaded; raises what refuses it.

    Raises:
        BadModelError: The repository's name is not valid, or ``HF_HUB_OFFLINE`` is set and the cache lacks the file.
        ModelRefusedError: The Hub says that repository, revision or the right to read it does not exist.
        OSError: The Hub cannot be reached; another try may help.
    """
    with _typed_errors(source):
        try:
            found = hf_hub_download(source.repository, name, revision=source.revision, token=token, dry_run=True)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
    if found.file_size is not None:
        accept(found.file_size)
    with _typed_errors(source):
        return Path(hf_hub_download(source.repository, name, revision=source.revision, token=token))


def list_files(source: HubRepository, token: str | None) -> list[str]:
    """Return the names of a repository's files.

    Raises:
        ModelRefusedError: The Hub says that repository, revision or the right to read it does not exist.
        OSError: The Hub cannot be reached; another try may help.
    """
    with _typed_errors(source):
        return HfApi().list_repo_files(source.repository, revision=source.revision, token=token)


@contextlib.contextmanager
def _typed_errors(source: HubRepository) -> Iterator[None]:
    """Have an error say which repository it is of, and whether a restart may cure it."""
    try:
        yield
    except Exception as error:
        name = f"cannot fetch {source.repository} at {source.revision} from the Hugging Face Hub"
        if (reason := _permanent(error)) is not None:
            raise BadModelError(f"{name}: {reason}") from None
        if (reason := _refusal(error)) is not None:
            raise ModelRefusedError(f"{name}: {reason}") from None
        raise


def _permanent(error: Exception) -> str | None:
    """Return why no worker can load the repository; None when one may."""
    if any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error)):
        return "HF_HUB_OFFLINE is set, and the cache does not hold it"
    if any(isinstance(link, HFValidationError) for link in _chain(error)):
        return "the repository's name is not valid"
    if type(error) is OSError and error.errno is None and _NO_SAFETENSORS in str(error):
        # Of the files' names alone. Its text lists all of them.
        return _CONVERT
    if _refusal(error) is not None:
        return None
    # Raised before anything is fetched: a format or code that the rules forbid, a class whose packages are not here.
    return str(error) if isinstance(error, ValueError | ImportError) else None


def _refusal(error: Exception) -> str | None:
    """Return what the Hub refuses, and the remedy; None when it refuses nothing."""
    for link in _chain(error):
        if isinstance(link, GatedRepoError):
            return "access is restricted; accept the model's terms and give a token by tokenSecretRef"
        if isinstance(link, RepositoryNotFoundError):
            return "there is no such repository, or the token may not read it"
        if isinstance(link, RevisionNotFoundError):
            return "there is no such revision"
        if isinstance(link, EntryNotFoundError) and not isinstance(link, LocalEntryNotFoundError):
            return "it holds no model_index.json: it is not a diffusers pipeline"
        if isinstance(link, HfHubHTTPError) and link.response is not None and link.response.status_code in _REFUSED:
            status = link.response.status_code
            return f"the Hub answers {status}" + (": the token is missing or not valid" if status == _NO_ACCESS else "")
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and what it was raised from, in order."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain
