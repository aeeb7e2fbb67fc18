"""The operator's process says what is wrong with its settings before it starts anything."""

from __future__ import annotations

import pytest

from kubediffusion.operator.main import main


def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KUBEDIFFUSION_CONCURRENT_REQUESTS", "0")
    monkeypatch.setenv("KUBEDIFFUSION_WORKER_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 78
    second, first = capsys.readouterr().err.splitlines()
    assert first.startswith("KUBEDIFFUSION_CONCURRENT_REQUESTS: ")
    assert first.endswith("; correct it, or unset it for 32")
    assert second.startswith("KUBEDIFFUSION_WORKER_LOG_LEVEL: ")
