"""Builds this checkout's images for the end-to-end tests, on a base image made here.

Runs before the tests, where the network is: they themselves run in a network of their own. Everything is kept by
buildah, so a second run builds only what the checkout has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kubediffusion.local.layout import REPOSITORY

TAG = "e2e"
PARTS = ("operator", "api", "worker")
BASE = "localhost/kubediffusion-e2e-base:bookworm"
PAUSE = "localhost/kubediffusion-e2e-pause:1"
"""What holds a pod's network while its containers come and go."""

BUSYBOX = Path("/bin/busybox")
PACKAGES = "python3,python3-venv,ca-certificates"
MEGABYTES_ABOVE_BASE = {"operator": 250, "api": 250}
LABELS = ("title", "description", "version", "revision", "licenses", "base.name")
COMPILERS = ("cc", "c++", "gcc*", "g++*", "clang*", "ld", "as", "make", "cargo", "rustc", "nvcc", "go")
COMPILERS_PATHS = tuple(
    f"{folder}/{program}" for folder in ("usr/bin", "usr/local/bin", "opt/*/bin") for program in COMPILERS
)
LEFTOVERS = (
    # What installed the packages; a base image may have a pip of its own.
    *("opt/*/bin/pip*", "opt/*/bin/uv", "opt/*/lib/python*/site-packages/pip", "uv", "build", "src", "wheels"),
    # What it had fetched.
    *("root/.cache/*", "var/cache/uv/*", "var/cache/apt/archives/*.deb", "tmp/*", "tmp/.*"),
)
"""Patterns of paths that no image may hold."""


COMPILES = """
import os, tempfile
import torch
from torch._inductor import config
from triton.backends.nvidia import driver
from triton.runtime.build import _build
source = os.path.join(driver.dirname, "driver.c")
assert os.path.exists(_build("cuda_utils", source, tempfile.mkdtemp(), [], driver.include_dirs, [], []))
config.force_disable_caches = True
assert torch.compile(lambda x: x.sin() + 1)(torch.zeros(3)).tolist() == [1, 1, 1]
"""
"""What Triton does when it meets its first CUDA device, but for linking with the driver, which this machine has not."""


def name(part: str, tag: str = TAG) -> str:
    """Name of a part's image."""
    return f"localhost/kubediffusion-{part}:{tag}"


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    """Run a command; its errors are the user's to see."""
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def identity(image: str) -> str:
    """Return an image's ID; an empty string where there is no such image."""
    return next(iter(run(["buildah", "images", "--quiet", "--no-trunc", "--filter", f"reference={image}"]).split()), "")


def build_all() -> None:
    """Build every image that the tests need."""
    base = os.environ.get("BASE_IMAGE") or BASE
    if base == BASE and not identity(BASE):
        say("Making a base image with debootstrap (once)")
        make_base()
    if not identity(PAUSE):
        make_pause()
    build = REPOSITORY / "deploy" / "images" / "build"
    # One revision for all commits: what is the same shall have the same name, so that it is not loaded again.
    settings = {"BASE_IMAGE": base, "TAG": TAG, "BUILDER": "buildah", "REVISION": "e2e"}
    if os.environ.get("CI") == "true":
        # The machine builds once, and its disk may be small.
        settings["UV_NO_CACHE"] = "1"
    run_loudly([build, *PARTS], settings)
    check_sizes(base)
    for part in PARTS:
        check_configuration(part)
        check_contents(part)
    check_compilation()
    check_bills()


def make_base() -> None:
    """Make a slim Debian with Python, as none can be pulled everywhere."""
    with tempfile.TemporaryDirectory(prefix="kubediffusion-e2e-base-", dir="/var/tmp") as folder:
        root = Path(folder) / "root"
        run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root])
        for leftover in (root / "var/cache/apt", root / "var/lib/apt/lists"):
            shutil.rmtree(leftover, ignore_errors=True)
        make(Path(folder), BASE, 'FROM scratch\nCOPY root /\nCMD ["python3"]\n')


def make_pause() -> None:
    """Make the image of pod sandboxes."""
    with tempfile.TemporaryDirectory(prefix="kubediffusion-e2e-pause-") as folder:
        shutil.copy(BUSYBOX, folder)
        make(Path(folder), PAUSE, 'FROM scratch\nCOPY busybox /\nENTRYPOINT ["/busybox", "sleep", "2147483647"]\n')


def make(folder: Path, image: str, dockerfile: str) -> None:
    """Build an image from a folder."""
    (folder / "Dockerfile").write_text(dockerfile)
    run(["buildah", "build", "--quiet", "--isolation=chroot", f"--tag={image}", folder])


def check_sizes(base: str) -> None:
    """Fail where an image has grown beyond what it may add to its base."""
    for part in PARTS:
        added = (size(name(part)) - size(base)) / 1e6
        say(f"kubediffusion-{part}: {added:.0f} MB above its base")
        most = MEGABYTES_ABOVE_BASE.get(part)
        require(part, most is None or added < most, f"adds {added:.0f} MB to its base; less than {most} are allowed")


def check_configuration(part: str) -> None:
    """Fail where an image is not labelled as OCI has it, runs as root, or is probed by anybody but Kubernetes."""
    known = json.loads(run(["buildah", "inspect", "--type=image", name(part)]))
    configuration = known["OCIv1"]["config"]
    require(part, configuration["User"] == "65532:65532", f"runs as {configuration['User']}")
    require(part, configuration["Entrypoint"] == [f"kubediffusion-{part}"], f"starts {configuration['Entrypoint']}")
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in configuration["Labels"].items()}
    require(part, labels.get("title") == f"kubediffusion-{part}", f"has the labels {labels}")
    require(part, all(labels.get(label) for label in LABELS), f"has the labels {labels}")
    require(part, not known["Docker"]["config"].get("Healthcheck"), "has a HEALTHCHECK")


def check_contents(part: str) -> None:
    """Fail where an image holds what it does not use: an installer, a cache of packages, and but for one a compiler."""
    container = run(["buildah", "from", "--pull-never", name(part)])
    try:
        root = Path(run(["buildah", "mount", container]))
        for pattern in (*LEFTOVERS, *(() if part == "worker" else COMPILERS_PATHS)):
            found = [str(path.relative_to(root)) for path in root.glob(pattern)]
            require(part, not found, f"holds {', '.join(found[:5])}")
        packages = next((root / "opt/kubediffusion/lib").glob("python3.*/site-packages"))
        require(part, (packages / "torch").exists() == (part == "worker"), "holds torch, or ought to")
    finally:
        run(["buildah", "rm", container])


def check_compilation() -> None:
    """Fail where the worker's image cannot compile: torch.compile's code for the CPU, and Triton's module for CUDA."""
    container = run(["buildah", "from", "--pull-never", name("worker")])
    try:
        run(["buildah", "run", "--isolation=chroot", container, "python", "-c", COMPILES])
    except subprocess.CalledProcessError:
        require("worker", False, "cannot compile; what it says is above")
    finally:
        run(["buildah", "rm", container])


def check_bills() -> None:
    """Fail where the bills of materials do not list what is there."""
    with tempfile.TemporaryDirectory(prefix="kubediffusion-e2e-sbom-") as folder:
        settings = {"REGISTRY": "localhost", "TAG": TAG, "BUILDER": "buildah", "OUTPUT": folder}
        run_loudly([REPOSITORY / "deploy" / "images" / "sbom", *PARTS], settings)
        for part, distribution in {"operator": "kopf", "api": "fastapi", "worker": "torch"}.items():
            bill = json.loads((Path(folder) / f"kubediffusion-{part}.cdx.json").read_text())
            listed = {component["purl"].partition("@")[0] for component in bill["components"]}
            wanted = {f"pkg:pypi/{d}" for d in (distribution, "kubediffusion-resources", f"kubediffusion-{part}")}
            require(part, wanted <= listed, f"has a bill without {', '.join(wanted - listed)}")
            require(part, any(purl.startswith("pkg:deb/debian/libc6") for purl in listed), "has a bill without Debian")


def require(part: str, holds: bool, what: str) -> None:
    """End with a message where something does not hold of a part's image."""
    if not holds:
        sys.exit(f"the image of {part} {what}")


def size(image: str) -> float:
    """Return an image's size in bytes, unpacked, to three digits."""
    # A line for each of its names.
    number, unit = run(["buildah", "images", "--format={{.Size}}", image]).splitlines()[0].split()
    return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def run_loudly(command: Sequence[str | Path], environment: dict[str, str]) -> None:
    """Run a command whose output the user sees."""
    subprocess.run([str(word) for word in command], env={**os.environ, **environment}, check=True)


def say(text: str) -> None:
    """Print a line, and flush it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    build_all()
