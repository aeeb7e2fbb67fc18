"""API keys and settings, each by itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kubediffusion.api.access.authenticator import Authenticator
from kubediffusion.api.access.identity import Mode
from kubediffusion.api.caller_settings import KeyLimits, Scope
from kubediffusion.api.errors import UnauthorizedError, WrongKeyError
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.settings import Settings
from kubediffusion.resources.meta import CLIENT_ANNOTATION
from unit.api.api_builders import cached


def keys_in(folder: Path, **keys: str) -> Authenticator:
    for name, key in keys.items():
        (folder / name).write_text(key)
    access = Authenticator(Settings(api_keys_file=folder))
    access.keys.reload()
    return access


def client(access: Authenticator, headers: list[tuple[bytes, bytes]]) -> str:
    identity = asyncio.run(access.identify(headers, "192.0.2.1"))
    assert (identity.client, identity.mode) == (identity.subject, Mode.API_KEY)
    return identity.subject


def test_a_key_names_its_client(tmp_path: Path) -> None:
    keys = keys_in(tmp_path, alice="a-key\n", bob="b-key")
    assert client(keys, [(b"authorization", b"Bearer a-key")]) == "alice"
    assert client(keys, [(b"authorization", b"bearer   b-key")]) == "bob"
    assert client(keys, [(b"x-api-key", b"b-key")]) == "bob"


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Basic eDp5")], [(b"x-api-key", b"")]])
def test_no_key(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(UnauthorizedError):
        client(keys_in(tmp_path, alice="a-key"), headers)


@pytest.mark.parametrize("key", [b"wrong", b"a-ke", b"a-key2", b"\xff", b"alice"])
def test_a_wrong_key(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(WrongKeyError):
        client(keys_in(tmp_path, alice="a-key"), [(b"x-api-key", key)])


ALICE, BOB, OTHER = (
    (b"x-api-key", b"a-key"),
    (b"x-api-key", b"b-key"),
    (b"authorization", b"Bearer a-token-of-the-proxy"),
)


@pytest.mark.parametrize(
    "headers",
    [
        [OTHER, ALICE],
        [ALICE, OTHER],
        [(b"authorization", b"Basic eDp5"), ALICE],
        [(b"x-api-key", b"old-key"), ALICE],
        [ALICE, (b"authorization", b"Bearer a-key")],
    ],
)
def test_a_key_counts_beside_another_credential(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    assert client(keys_in(tmp_path, alice="a-key", bob="b-key"), headers) == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        [ALICE, BOB],
        [OTHER, (b"x-api-key", b"wrong")],
        [*((b"x-api-key", b"guess-%d" % number) for number in range(10)), ALICE],
    ],
)
def test_keys_of_two_clients_and_guesses_are_refused(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(WrongKeyError):
        client(keys_in(tmp_path, alice="a-key", bob="b-key"), headers)


def test_what_one_key_may_do_is_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"alice": {"maxPriority": 10, "models": ["a", "b"]}, "bob": {"maxUnfinishedJobs": 0, "rateLimit": ""}}
    monkeypatch.setenv("KUBEDIFFUSION_KEY_LIMITS", json.dumps(limits))
    settings = Settings(max_priority=100, max_unfinished_jobs_by_key=7, rate_limit="5/minute")
    assert [settings.limits_of(name) for name in ("alice", "bob", "carol", "")] == [
        (7, 10, "5/minute", ("a", "b")),
        (0, 100, "", None),
        (7, 100, "5/minute", None),
        (7, 100, "5/minute", None),
    ]
    for wrong in (
        '{"alice": {"maxPriorty": 10}}',
        '{"alice": {"maxUnfinishedJobs": -1}}',
        '{"alice": {"rateLimit": "often"}}',
        '{"alice": {"models": []}}',
        '{"alice": {"scope": "all"}}',
    ):
        monkeypatch.setenv("KUBEDIFFUSION_KEY_LIMITS", wrong)
        with pytest.raises(ValidationError):
            Settings()


def test_who_sees_which_jobs(tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("a-key")
    (tmp_path / "admin").write_text("b-key")
    jobs = [cached(name, metadata=owner) for name, owner in OWNERS.items()]

    def seen(key: bytes, scope: Scope, **limits: KeyLimits) -> list[str]:
        access = Authenticator(Settings(api_keys_file=tmp_path, scope=scope, key_limits=limits))
        access.keys.reload()
        identity = asyncio.run(access.identify([(b"x-api-key", key)], "192.0.2.1"))
        listed = [job.name for job in jobs if JobFilter(client=identity.owner).matches(job, None)]
        assert listed == [job.name for job in jobs if identity.sees(job)]
        return listed

    everything = ["by-kubectl", "by-alice", "by-admin"]
    assert seen(b"a-key", Scope.NAMESPACE) == everything
    assert seen(b"a-key", Scope.OWN) == ["by-alice"]
    assert seen(b"a-key", Scope.NAMESPACE, alice=KeyLimits(scope=Scope.OWN)) == ["by-alice"]
    assert seen(b"b-key", Scope.OWN, admin=KeyLimits(scope=Scope.NAMESPACE)) == everything


OWNERS: dict[str, dict[str, Any]] = {
    "by-kubectl": {},
    "by-alice": {"annotations": {CLIENT_ANNOTATION: "alice"}},
    "by-admin": {"annotations": {CLIENT_ANNOTATION: "admin"}},
}


def test_an_empty_file_is_no_key(tmp_path: Path) -> None:
    keys = keys_in(tmp_path, alice="\n")
    assert keys.required
    with pytest.raises(UnauthorizedError):
        client(keys, [(b"x-api-key", b"")])


def test_keys_that_cannot_work_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_in(tmp_path, alice="a-key", bob="a-key\n", carol="two\nlines")
    keys.keys.reload()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [vars(record)["clients"] for record in errors] == [["carol"], ["alice", "bob"]]
    assert "a-key" not in caplog.text
    assert "two" not in caplog.text


def test_a_secrets_volume_has_hidden_folders(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "alice").write_text("a-key")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "alice").symlink_to("..data/alice")
    keys = keys_in(tmp_path)
    assert client(keys, [(b"x-api-key", b"a-key")]) == "alice"


def test_keys_that_cannot_be_read_stay_valid(tmp_path: Path) -> None:
    keys = keys_in(tmp_path, alice="a-key")
    (tmp_path / "alice").unlink()
    tmp_path.rmdir()
    keys.keys.reload()
    assert client(keys, [(b"x-api-key", b"a-key")]) == "alice"


def test_without_a_folder_everybody_may() -> None:
    access = Authenticator(Settings())
    assert not access.required
    somebody = asyncio.run(access.identify([(b"x-api-key", b"a-key")], "192.0.2.1"))
    assert (somebody.mode, somebody.subject, somebody.client, somebody.owner) == (Mode.NONE, "", "192.0.2.1", None)


def test_every_setting_is_documented() -> None:
    undocumented = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undocumented == []


@pytest.mark.parametrize("limit", ["fast", "10/fortnight", "-1/minute"])
def test_a_rate_that_is_none_is_refused_at_start(limit: str) -> None:
    with pytest.raises(ValidationError):
        Settings(rate_limit=limit)


def test_nothing_reads_the_environment_but_the_settings() -> None:
    import kubediffusion.api

    files = [file for folder in kubediffusion.api.__path__ for file in Path(folder).rglob("*.py")]
    assert "settings.py" in {file.name for file in files}
    for file in files:
        assert "os.environ" not in file.read_text(), file
        assert "getenv" not in file.read_text(), file
