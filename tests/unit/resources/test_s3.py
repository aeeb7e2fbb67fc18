"""A client of storage follows the settings that the documentation names: seen in what it signs."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from kubediffusion.resources.runtime.settings import StorageSecrets, read_settings
from kubediffusion.resources.storage import ImageStorage

Sign = Callable[[dict[str, str]], str]


@pytest.fixture
def sign(monkeypatch: pytest.MonkeyPatch) -> Sign:
    """Return a function that signs a URL under some environment variables."""
    credentials = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_CONFIG_FILE": "/dev/null"}
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def signed(variables: dict[str, str]) -> str:
        for name, value in (credentials | variables).items():
            monkeypatch.setenv(name, value)
        storage = ImageStorage("pictures")
        try:
            return storage.presign("s3://pictures/studio/uid/0.png", 60)
        finally:
            storage.close()

    return signed


def region(url: str) -> str:
    """Region of the credential that a URL is signed with: key/date/region/s3/aws4_request."""
    return parse_qs(urlsplit(url).query)["X-Amz-Credential"][0].split("/")[2]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-central-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
    ],
)
def test_the_region_is_the_one_of_the_settings(sign: Sign, variables: dict[str, str], expected: str) -> None:
    assert region(sign(variables)) == expected


@pytest.mark.parametrize(
    ("style", "address"),
    [
        ("path", "https://s3.example.com/pictures/studio/uid/0.png"),
        ("virtual", "https://pictures.s3.example.com/studio/uid/0.png"),
    ],
)
def test_the_addressing_style_and_the_endpoint_are_settings(sign: Sign, style: str, address: str) -> None:
    url = sign(
        {
            "AWS_ENDPOINT_URL_S3": "https://s3.example.com",
            "AWS_REGION": "eu-central-1",
            "KUBEDIFFUSION_S3_ADDRESSING_STYLE": style,
        }
    )
    assert url.split("?")[0] == address


def test_the_whitespace_around_a_key_does_not_count(sign: Sign) -> None:
    """A Secret that was made from a file ends with a newline."""
    query = parse_qs(urlsplit(sign({"AWS_ACCESS_KEY_ID": "key\n", "AWS_SESSION_TOKEN": "token\n"})).query)
    assert query["X-Amz-Credential"][0].startswith("key/")
    assert query["X-Amz-Security-Token"] == ["token"]


def test_a_wrong_addressing_style_is_a_line_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEDIFFUSION_S3_ADDRESSING_STYLE", "dns")
    with pytest.raises(SystemExit):
        read_settings(StorageSecrets)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("KUBEDIFFUSION_S3_ADDRESSING_STYLE: Input should be 'auto', 'path' or 'virtual'")
