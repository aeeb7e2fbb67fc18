"""A log line is one JSON object, whatever is logged."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.runtime import logs
from kubediffusion.resources.runtime.settings import EX_CONFIG


def line(message: str = "done", *arguments: Any, **extra: Any) -> Any:
    logger = logging.getLogger("kubediffusion.test")
    return logger.makeRecord(logger.name, logging.INFO, __file__, 1, message, arguments, None, extra=extra)


def written(record: Any) -> Any:
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


@given(st.text())
def test_any_message_is_one_line_of_json(message: str) -> None:
    assert written(line("%s", message))["message"] == message


def test_a_line_says_when_how_severe_who_and_what() -> None:
    record = line("%d of %d", 1, 2)
    record.created = 1893499200.25
    assert written(record) == {
        "time": "2030-01-01T12:00:00.250000Z",
        "level": "info",
        "logger": "kubediffusion.test",
        "message": "1 of 2",
    }


def test_what_a_line_concerns_is_a_field_of_its_own() -> None:
    assert written(line(job="0190-abc", namespace="studio"))["job"] == "0190-abc"


def test_what_json_cannot_say_is_written_as_text() -> None:
    assert written(line(path={1}))["path"] == "{1}"


def test_a_traceback_stays_within_its_line() -> None:
    record = line()
    try:
        int("broken")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: invalid literal" in written(record)["exception"]


@pytest.mark.parametrize("secret", ["hf_token", 'with "quotes" and \\', "übergeheim"])
def test_no_line_holds_a_secret(secret: str) -> None:
    record = line("401 for %s", secret, header=[f"Bearer {secret}"])
    error = ValueError(f"the token {secret} is not valid")
    record.exc_info = (ValueError, error, None)
    told = json.loads(logs.JsonFormatter(["", secret]).format(record))
    assert (told["message"], told["header"]) == ("401 for ***", ["Bearer ***"])
    assert told["exception"].endswith("ValueError: the token *** is not valid")


@pytest.fixture
def root() -> Iterator[Any]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logging.captureWarnings(capture=False)
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_requests_of_the_libraries_are_no_lines(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_logging("info")
    logging.getLogger("botocore").info("a request")
    logging.getLogger("kubediffusion").debug("a detail")
    logging.getLogger("kubediffusion").info("an event")
    (only,) = capsys.readouterr().err.splitlines()
    assert json.loads(only)["message"] == "an event"


def test_a_warning_of_python_is_a_line_like_any_other() -> None:
    code = (
        "import warnings; from kubediffusion.resources.runtime import logs; logs.configure_logging('info', ['hush']);"
        "warnings.warn('this is hush')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(ended.stderr)
    assert (said["level"], said["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: this is ***" in said["message"]


@pytest.mark.parametrize("part", ["operator", "api"])
def test_no_part_s_log_holds_storage_s_credentials(part: str, tmp_path: Path) -> None:
    """A kubeconfig that asks for what is also a secret: whatever an error quotes, it does not come out."""
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text("{current-context: hush and whisper, contexts: [], clusters: [], users: []}")
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "KUBEDIFFUSION_BIND_ADDRESS": "127.0.0.1",
        "KUBEDIFFUSION_PORT": "0",
        # The API asks for keys, or to be told that it needs none.
        "KUBEDIFFUSION_ALLOW_UNAUTHENTICATED": "true",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_SESSION_TOKEN": "whisper",
    }
    command = [str(Path(sys.executable).with_name(f"kubediffusion-{part}"))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EX_CONFIG
    (only,) = ended.stderr.splitlines()
    assert "no Kubernetes API server is configured" in only
    assert "*** and ***" in only
    assert not ended.stdout
