"""Mount paths become the folders behind them, and nothing else changes."""

from pathlib import Path

import pytest

from kubediffusion.local.node.mounts import Mounts

MOUNTS = Mounts(
    {
        "/models": Path("/pods/1/models"),
        "/models/cache/": Path("/pods/1/cache"),
        "/dev/termination-log": Path("/pods/1/m"),
    }
)


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("/models", "/pods/1/models"),
        ("/models/", "/pods/1/models/"),
        ("/models/emoji", "/pods/1/models/emoji"),
        ("--path=/models/emoji", "--path=/pods/1/models/emoji"),
        ("cat /models/a > /dev/termination-log", "cat /pods/1/models/a > /pods/1/m"),
        ('{"path":"/models/emoji"}', '{"path":"/pods/1/models/emoji"}'),
        ("/models:/models/cache", "/pods/1/models:/pods/1/cache"),
        ("/models/cache/x", "/pods/1/cache/x"),
        ("/models/cached", "/pods/1/models/cached"),
    ],
)
def test_a_path_that_begins_with_a_mount_path_is_translated(text: str, translated: str) -> None:
    assert MOUNTS.translate(text) == translated


@pytest.mark.parametrize(
    "text",
    ["/modelsandmore", "/data/models", "http://host/models", "models", "an /other path", "", "/dev/termination-logs"],
)
def test_anything_else_stays(text: str) -> None:
    assert MOUNTS.translate(text) == text


def test_what_was_put_in_place_is_not_translated_again() -> None:
    mounts = Mounts({"/a": Path("/b"), "/b": Path("/c")})
    assert mounts.translate("/a /b") == "/b /c"


def test_without_mounts_nothing_changes() -> None:
    assert Mounts({}).translate("/models/x") == "/models/x"
