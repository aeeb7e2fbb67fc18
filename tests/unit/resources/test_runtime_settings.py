"""A wrong setting is one line: the variable, the reason, the remedy, and never the value."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from kubediffusion.resources.runtime import settings
from kubediffusion.resources.runtime.settings import LogLevel
from kubediffusion.resources.schema import Schema


class Prefixed(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="KUBEDIFFUSION_", hide_input_in_errors=True)

    bucket: str
    port: Annotated[int, Field(ge=0)] = 8000
    log_level: LogLevel = "INFO"


class Place(Schema):
    path: Annotated[str, Field(min_length=1)]


class Aliased(BaseSettings):
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    place: Annotated[Place, Field(alias="KUBEDIFFUSION_PLACE")]
    threads: Annotated[int | None, Field(alias="KUBEDIFFUSION_THREADS", ge=1)] = None


def said(
    kind: type[BaseSettings],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        settings.read_settings(kind)
    assert ended.value.code == 78
    return capsys.readouterr().err.splitlines()


def test_what_is_right_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEDIFFUSION_BUCKET", "images")
    monkeypatch.setenv("KUBEDIFFUSION_LOG_LEVEL", "debug")
    read = settings.read_settings(Prefixed)
    assert (read.bucket, read.port, read.log_level) == ("images", 8000, "DEBUG")


def test_every_mistake_is_a_line_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"KUBEDIFFUSION_PORT": "hunter2", "KUBEDIFFUSION_LOG_LEVEL": "loud"}
    lines = said(Prefixed, environment, monkeypatch, capsys)
    assert lines[0] == "KUBEDIFFUSION_BUCKET: it is not set; set it"
    assert lines[1].startswith("KUBEDIFFUSION_PORT: Input should be a valid integer")
    assert lines[1].endswith("; correct it, or unset it for 8000")
    assert lines[2].startswith("KUBEDIFFUSION_LOG_LEVEL: Input should be 'DEBUG', 'INFO'")
    assert "hunter2" not in "".join(lines)


def test_a_part_of_a_json_value_is_named_by_its_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"KUBEDIFFUSION_PLACE": '{"path": ""}', "KUBEDIFFUSION_THREADS": "0"}
    lines = said(Aliased, environment, monkeypatch, capsys)
    assert lines[0] == "KUBEDIFFUSION_PLACE.path: String should have at least 1 character; correct it"
    assert lines[1] == "KUBEDIFFUSION_THREADS: Input should be greater than or equal to 1; correct it"


def test_a_value_that_is_no_json_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(Aliased, {"KUBEDIFFUSION_PLACE": "secret{"}, monkeypatch, capsys)
    assert line == "KUBEDIFFUSION_PLACE: it is not valid JSON; correct it"
