"""What every image promises, read from its Dockerfile; `make images` and `make e2e` build them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kubediffusion.local.layout import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "images"
PARTS = ("operator", "api", "worker")

every_part = pytest.mark.parametrize("part", PARTS)


def dockerfile(part: str) -> str:
    return (FOLDER / f"{part}.Dockerfile").read_text()


def instructions(part: str) -> list[str]:
    return re.findall(r"^[A-Z]+ ", dockerfile(part), re.MULTILINE)


def test_each_part_has_one():
    assert sorted(file.name for file in FOLDER.glob("*.Dockerfile")) == sorted(f"{part}.Dockerfile" for part in PARTS)


@every_part
def test_it_stands_on_any_base(part: str):
    text = dockerfile(part)
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm" in text
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE_IMAGE}"}


@every_part
def test_it_runs_as_a_number_that_is_not_root(part: str):
    assert re.findall(r"^USER (.+)$", dockerfile(part), re.MULTILINE) == ["65532:65532"]


@every_part
def test_it_installs_nothing_unhashed_and_keeps_no_installer(part: str):
    installs = re.findall(r"pip install [^&]*-r \S+", dockerfile(part))
    assert len(installs) == 4
    assert all("--require-hashes" in install for install in installs)
    assert "rm -rf /tmp/uv" in dockerfile(part)
    assert "apt-get" not in without_compiler(dockerfile(part))


def without_compiler(text: str) -> str:
    """Leave out what the worker alone installs of Debian's: its packages are signed, and their lists do not stay."""
    return re.sub(
        r"^# torch\.compile: .*\n^RUN (?:.*\\\n)*.*rm -rf /var/lib/apt/lists.*\n", "", text, flags=re.MULTILINE
    )


def test_the_worker_alone_holds_a_compiler():
    assert re.findall(r"install .* (\S+\+\+) ", dockerfile("worker")) == ["g++"]
    assert [part for part in PARTS if without_compiler(dockerfile(part)) != dockerfile(part)] == ["worker"]


@every_part
def test_kubernetes_alone_probes_it(part: str):
    assert "HEALTHCHECK " not in instructions(part)


@every_part
def test_its_labels_are_those_of_the_image_specification(part: str):
    labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", dockerfile(part)))
    assert labels == {"title", "description", "version", "revision", "licenses", "base.name"}


@pytest.mark.parametrize("part", ["operator", "api"])
def test_only_the_worker_holds_torch(part: str):
    pinned = (REPOSITORY / "requirements" / f"{part}.txt").read_text()
    assert not re.findall(r"^(torch|diffusers|transformers|nvidia-\S+)==", pinned, re.MULTILINE)


def test_they_differ_in_nothing_but_their_part():
    def neutral(part: str) -> str:
        lines = without_compiler(dockerfile(part)).splitlines()[1:]
        text = "\n".join(line for line in lines if "NVIDIA_" not in line and "image.description" not in line)
        return text.replace(part, "PART").replace("PYTHONUNBUFFERED=1 \\", "PYTHONUNBUFFERED=1")

    assert neutral("operator") == neutral("api") == neutral("worker")


def test_the_context_holds_no_more_than_the_images_need():
    kept = {line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {"!requirements/*.txt", "!LICENSE", "!resources", *(f"!{part}" for part in PARTS)}
    assert Path(REPOSITORY / "LICENSE").exists()
