"""Which programs are built, and under which name they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubediffusion.local import binaries, toolchain
from kubediffusion.local.binaries import CLUSTER, SETS, Module
from kubediffusion.local.errors import LocalError
from kubediffusion.local.layout import cache_folder

KUBERNETES = next(module for module in CLUSTER if module.name == "kubernetes")


@pytest.mark.parametrize("module", SETS["e2e"], ids=lambda module: module.name)
def test_every_program_is_a_tool_of_its_module(module: Module) -> None:
    definition = (module.folder / "go.mod").read_text()
    assert all(package in definition for package in module.programs.values())


def test_kubernetes_is_told_its_version() -> None:
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3 " in KUBERNETES.linker_flags()
    assert "version.gitMinor=36" in KUBERNETES.linker_flags()


def test_the_result_s_name_changes_with_what_goes_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "BINARIES", tmp_path)
    module = Module("m", {"p": "example.com/p"})
    module.folder.mkdir()
    (module.folder / "go.mod").write_text("go 1.26.0\n")
    (module.folder / "go.sum").write_text("one")
    first = module.fingerprint(["p"])
    assert module.fingerprint(["p"]) == first
    assert module.fingerprint(["p", "q"]) != first
    (module.folder / "go.sum").write_text("two")
    assert module.fingerprint(["p"]) != first


def test_programs_of_the_given_folder_are_taken_and_not_built(tmp_path: Path) -> None:
    given = ("etcd", "kube-apiserver", "kubectl")
    for name in given:
        (tmp_path / name).touch()
    environment = {"KUBEBUILDER_ASSETS": str(tmp_path), "HOME": str(tmp_path / "home")}
    kept: dict[str, Path] = {}
    # Built once, for the same missing programs: nothing else is in the cache, and building takes Go and minutes.
    for module in CLUSTER:
        if missing := sorted(module.programs.keys() - set(given)):
            folder = cache_folder(environment) / "bin" / module.fingerprint(missing)
            folder.mkdir(parents=True)
            kept |= {name: folder / name for name in missing}
    assert sorted(kept) == ["kube-controller-manager", "kube-scheduler", "versitygw"]
    found = binaries.provide(environment)
    assert {name: found.path(name) for name in given} == {name: tmp_path / name for name in given}
    assert {name: found.path(name) for name in kept} == kept


def test_a_given_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    with pytest.raises(LocalError, match=f"KUBEBUILDER_ASSETS is {folder}, which is no folder"):
        binaries.provide({"KUBEBUILDER_ASSETS": str(folder)})


@pytest.mark.parametrize(("platform", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_another_kind_of_machine_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, platform: str, machine: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(LocalError, match=f"this is {platform} on {machine}"):
        binaries.provide({})


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/kubediffusion"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/cache"}, "/cache/kubediffusion"),
        ({"XDG_CACHE_HOME": "/cache", "KUBEDIFFUSION_CACHE": "/mine"}, "/mine"),
    ],
)
def test_the_cache_lies_where_the_user_wants_it(environment: dict[str, str], folder: str) -> None:
    assert str(cache_folder(environment)) == folder


def test_versions_are_compared_as_numbers() -> None:
    assert toolchain.parse_version("1.26.10") > toolchain.parse_version("1.26.9")
    assert toolchain.parse_version("") < toolchain.parse_version("1.0")


def test_a_build_depends_on_our_pins_alone(tmp_path: Path) -> None:
    own = toolchain.Toolchain(tmp_path / "go").environment({"GOFLAGS": "-mod=mod", "GOPROXY": "kept"})
    assert own["GOTOOLCHAIN"] == "local"
    assert "-mod=readonly" in own["GOFLAGS"]
    assert own["GOPROXY"] == "kept"
    assert "GOPATH" not in own


def test_a_machine_without_certificate_authorities_gets_python_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = toolchain.Toolchain(tmp_path / "go")
    monkeypatch.setattr(toolchain, "AUTHORITIES", (tmp_path / "none",))
    assert tools.environment({})["SSL_CERT_FILE"].endswith(".pem")
    assert tools.environment({"SSL_CERT_FILE": "own"})["SSL_CERT_FILE"] == "own"
    monkeypatch.setattr(toolchain, "AUTHORITIES", (tmp_path,))
    assert "SSL_CERT_FILE" not in tools.environment({})
