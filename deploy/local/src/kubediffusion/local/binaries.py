"""The server programs, built once from pinned Go modules and kept outside the checkout.

Each folder under ``deploy/local/binaries`` is a Go module whose go.mod lists programs as tools and whose go.sum holds
the checksum of everything that goes into them. What is built is kept under a name that hashes both files, so two
checkouts share it as long as they agree, and an upgrade never meets an old binary.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kubediffusion.local import toolchain
from kubediffusion.local.errors import LocalError
from kubediffusion.local.layout import BINARIES, cache_folder
from kubediffusion.local.processes import killed_with_parent
from kubediffusion.local.progress import say, step
from kubediffusion.local.toolchain import Toolchain, parse_version

MACHINES = ("x86_64", "aarch64")
ASSETS = "KUBEBUILDER_ASSETS"


@dataclass(frozen=True)
class Module:
    """A Go module of ours and the programs that it builds.

    Attributes:
        name: The name of its folder.
        programs: The Go package of each program, by the program's name.
        version_of: The requirement whose version the programs should report, for those that are told at link time.
    """

    name: str
    programs: Mapping[str, str]
    version_of: str | None = None

    @property
    def folder(self) -> Path:
        """Where its go.mod lies."""
        return BINARIES / self.name

    @property
    def go_version(self) -> toolchain.Version:
        """The oldest Go that builds it."""
        return parse_version(_match(r"^go (\S+)$", self._definition()))

    def linker_flags(self) -> str:
        """Return the linker's flags: no debug information, and the version to report."""
        flags = "-s -w"
        if self.version_of:
            version = _match(rf"^(?:require )?\s*{re.escape(self.version_of)} (v\S+)", self._definition())
            major, minor, _ = parse_version(version)
            package = "k8s.io/component-base/version"
            flags += f" -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        return flags

    def fingerprint(self, programs: list[str]) -> str:
        """Return a name for the result of building some of its programs."""
        content = hashlib.sha256()
        for part in (self._definition(), (self.folder / "go.sum").read_text(), self.linker_flags(), *programs):
            content.update(part.encode() + b"\0")
        return f"{self.name}-{platform.machine()}-{content.hexdigest()[:16]}"

    def _definition(self) -> str:
        return (self.folder / "go.mod").read_text()


CLUSTER = (
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module("versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}),
    Module(
        "kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        },
        version_of="k8s.io/kubernetes",
    ),
)
"""What a local cluster consists of: all that `make up` and `make demo` need."""

HELM = Module("helm", {"helm": "helm.sh/helm/v4/cmd/helm"})
"""What the chart's tests need besides."""

ACTIONLINT = Module("actionlint", {"actionlint": "github.com/rhysd/actionlint/cmd/actionlint"})
"""What the tests of the forge's workflows need besides."""

NODE = (
    Module(
        "node",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
        version_of="k8s.io/kubernetes",
    ),
    Module("coredns", {"coredns": "github.com/coredns/coredns"}),
)
"""What a real node needs besides, for the end-to-end tests."""

SETS = {"cluster": CLUSTER, "tests": (*CLUSTER, HELM, ACTIONLINT), "e2e": (*CLUSTER, HELM, *NODE)}
"""Which modules serve a purpose, by its name."""


class Binaries:
    """The programs, by name."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def path(self, name: str) -> Path:
        """Return where a program is."""
        return self._paths[name]


def provide(environment: Mapping[str, str] | None = None, modules: Iterable[Module] = CLUSTER) -> Binaries:
    """Find every program of some modules, building those that are neither in KUBEBUILDER_ASSETS nor in the cache.

    Raises:
        LocalError: The machine is of a kind that we do not support, or a build failed.
    """
    environment = os.environ if environment is None else environment
    require_supported_machine()
    modules = tuple(modules)
    paths = _assets(environment, modules)
    for module in modules:
        missing = sorted(module.programs.keys() - paths.keys())
        if missing:
            folder = _built(module, missing, environment)
            paths |= {name: folder / name for name in missing}
    return Binaries(paths)


def require_supported_machine() -> None:
    """Raise `LocalError` on anything but Linux on x86-64 or arm64."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise LocalError(
            f"the local cluster runs on Linux on x86-64 or arm64, and this is {sys.platform} on {platform.machine()}; "
            "use a virtual machine, or install the chart on a cluster"
        )


def _assets(environment: Mapping[str, str], modules: Iterable[Module]) -> dict[str, Path]:
    folder = environment.get(ASSETS)
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise LocalError(f"{ASSETS} is {folder}, which is no folder; unset it to build the programs instead")
    return {
        name: Path(folder) / name for module in modules for name in module.programs if (Path(folder) / name).exists()
    }


def _built(module: Module, programs: list[str], environment: Mapping[str, str]) -> Path:
    cache = cache_folder(environment)
    shelf = cache / "bin"
    result = shelf / module.fingerprint(programs)
    if result.is_dir():
        return result
    shelf.mkdir(parents=True, exist_ok=True)
    with _alone(shelf / f".{module.name}.lock", module.name):
        if not result.is_dir():  # nobody else built it while we waited
            for leftover in shelf.glob(f".{module.name}-*.partial"):
                shutil.rmtree(leftover)
            tools = toolchain.find(module.go_version, cache)
            partial = shelf / f".{result.name}.partial"
            try:
                _build(module, programs, tools, partial, environment)
                partial.rename(result)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            if tools.scratch:
                shutil.rmtree(tools.scratch, ignore_errors=True)
    return result


def _build(module: Module, programs: list[str], tools: Toolchain, target: Path, environment: Mapping[str, str]) -> None:
    with step(f"Building {module.name} (once; kept in {target.parent})") as progress:
        go_environment = tools.environment(environment)
        packages = [module.programs[name] for name in programs]
        progress.detail = "downloading modules"
        go = str(tools.go)
        total = len(list(_lines(module, go_environment, [go, "list", "-deps", *packages])))
        target.mkdir()
        for name, package in zip(programs, packages, strict=True):
            progress.detail = name
            flags = ["-v", "-ldflags", module.linker_flags(), "-o", str(target / name)]
            # `go build -v` names each package that it compiles; those that it has already are not named.
            for done, _ in enumerate(_lines(module, go_environment, [go, "build", *flags, package]), 1):
                progress.detail = f"{name}, {done} of at most {total} packages"


def _lines(module: Module, environment: Mapping[str, str], command: list[str]) -> Iterator[str]:
    process = subprocess.Popen(
        killed_with_parent(command),
        cwd=module.folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    try:
        assert process.stdout is not None  # noqa: S101 # for the type checker
        for line in process.stdout:
            said.append(line)
            yield line.strip()
        if process.wait() != 0:
            raise LocalError(f"building {module.name} failed:\n{''.join(said[-15:])}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # on Ctrl-C, the compilers too
        process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Hold a lock, so that one process at a time builds a module; the lock goes with the process that holds it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process is building {name}; waiting for it", sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise LocalError(f"go.mod holds no line like {pattern}")
    return found.group(1)
