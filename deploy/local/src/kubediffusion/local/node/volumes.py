"""Makes the folders that stand behind a pod's volumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kubediffusion.local.certificates import write_secret
from kubediffusion.local.node import environment
from kubediffusion.local.node.access import Access
from kubediffusion.local.node.environment import ConfigurationError, Facts
from kubediffusion.local.node.objects import (
    ConfigMapFiles,
    FieldFiles,
    HostPath,
    KeyToPath,
    Pod,
    Projected,
    SecretFiles,
    TokenFile,
    Volume,
)

# Kubelet renews a token when a fifth of its life is left.
RENEW_AT = 0.8


@dataclass(frozen=True)
class RenewedToken:
    """A token in a file, to be written again after some seconds."""

    request: TokenFile
    file: Path

    @property
    def seconds(self) -> float:
        """How long the present one is used."""
        return self.request.expiration_seconds * RENEW_AT


class Volumes:
    """A pod's volumes.

    Attributes:
        tokens: The token files among them, which somebody must renew.
    """

    def __init__(self, pod: Pod, folder: Path, access: Access, facts: Facts) -> None:
        self._pod = pod
        self._folder = folder
        self._access = access
        self._facts = facts
        self.tokens: list[RenewedToken] = []

    async def make(self) -> dict[str, Path]:
        """Make every volume, and return its folder (or file, for a hostPath of one) by its name.

        Raises:
            ConfigurationError: Something that a volume is made of does not exist (yet).
            KubernetesError: The API server refuses or does not answer.
        """
        self.tokens.clear()
        return {volume.name: await self._volume(volume) for volume in self._pod.spec.volumes}

    async def renew(self, token: RenewedToken) -> None:
        """Write a new token."""
        text = await self._access.token(self._pod, token.request.audience, token.request.expiration_seconds)
        write_secret(token.file, text)

    async def _volume(self, volume: Volume) -> Path:
        if volume.host_path:
            return _host_path(volume.host_path)
        if volume.persistent_volume_claim:
            return await self._claim(volume.persistent_volume_claim.claim_name)
        folder = self._folder / volume.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if volume.secret:
            await self._secret(folder, volume.secret)
        elif volume.config_map:
            await self._config_map(folder, volume.config_map)
        elif volume.downward_api:
            self._fields(folder, volume.downward_api)
        elif volume.projected:
            await self._projected(folder, volume.projected)
        return folder

    async def _claim(self, name: str) -> Path:
        path = await self._access.claimed_path(self._pod.metadata.namespace, name)
        if path is None:
            raise ConfigurationError(f'PersistentVolumeClaim "{name}" has no volume with a path of this machine')
        return Path(path)

    async def _secret(self, folder: Path, files: SecretFiles) -> None:
        await self._keys(folder, "Secret", files.secret_name or files.name, files.items, optional=files.optional)

    async def _config_map(self, folder: Path, files: ConfigMapFiles) -> None:
        await self._keys(folder, "ConfigMap", files.name, files.items, optional=files.optional)

    async def _keys(self, folder: Path, kind: str, name: str, items: Iterable[KeyToPath], *, optional: bool) -> None:
        content = await self._access.content(kind, self._pod.metadata.namespace, name)
        if content is None and not optional:
            raise ConfigurationError(f'{kind} "{name}" does not exist')
        content = content or {}
        paths = {item.key: item.path for item in items} or {key: key for key in content}
        for key, path in paths.items():
            if key in content:
                _write(folder, path, content[key])
            elif not optional:
                raise ConfigurationError(f'{kind} "{name}" has no key "{key}"')

    def _fields(self, folder: Path, fields: FieldFiles) -> None:
        for item in fields.items:
            if item.field_ref is None:
                raise ConfigurationError("a process node knows fields of the pod only, not of its resources")
            _write(folder, item.path, environment.field(item.field_ref.field_path, self._pod, self._facts).encode())

    async def _projected(self, folder: Path, projected: Projected) -> None:
        for source in projected.sources:
            if source.secret:
                await self._secret(folder, source.secret)
            if source.config_map:
                await self._config_map(folder, source.config_map)
            if source.downward_api:
                self._fields(folder, source.downward_api)
            if source.service_account_token:
                token = RenewedToken(source.service_account_token, folder / source.service_account_token.path)
                token.file.parent.mkdir(parents=True, exist_ok=True)
                await self.renew(token)
                self.tokens.append(token)


def _host_path(volume: HostPath) -> Path:
    path = Path(volume.path)
    if volume.type == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif not path.exists() and volume.type not in {"", "FileOrCreate"}:
        raise ConfigurationError(f"hostPath {path} does not exist")
    return path


def _write(folder: Path, path: str, content: bytes) -> None:
    file = folder / path
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret(file, content)
