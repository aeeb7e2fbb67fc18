"""What a worker asks of S3-compatible storage before it downloads, of a real HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kubediffusion.resources.lora_adapter import AdapterSource
from kubediffusion.worker.engine.adapters import AdapterRefusedError
from kubediffusion.worker.loading.adapter_files import fetch_adapter
from unit.worker.worker_builders import settings

GIB = 2**30

LISTING = f"""<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>
<Contents><Key>loras/small.safetensors</Key><Size>5</Size><ETag>"a"</ETag></Contents>
<Contents><Key>loras/model.safetensors</Key><Size>{24 * GIB}</Size><ETag>"b"</ETag></Contents>
</ListBucketResult>"""


class Bucket(ThreadingHTTPServer):
    """Lists two files, and serves five bytes for either."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.downloads: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """One answer of a bucket."""

    server: Bucket

    def do_GET(self) -> None:
        listed = "list-type=2" in self.path
        body = LISTING.encode() if listed else b"12345"
        self.send_response(200)
        self.send_header("ETag", '"a"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            if not listed:
                self.server.downloads.append(self.path.partition("?")[0])
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class has it so

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_adapter_that_is_a_whole_model_is_refused_before_it_fills_the_disk(bucket: Bucket, tmp_path: Path) -> None:
    def fetch(file: str) -> Path:
        source = AdapterSource.model_validate({"s3": {"uri": "s3://bucket/loras"}, "file": file})
        # Its own cache: what is there once is not fetched again.
        return fetch_adapter(source, settings(tmp_path).model_copy(update={"cache_dir": tmp_path}))

    with pytest.raises(AdapterRefusedError, match=r"model\.safetensors has .*KUBEDIFFUSION_ADAPTER_CACHE_MIB"):
        fetch("model.safetensors")
    assert not bucket.downloads
    assert fetch("small.safetensors").read_bytes() == b"12345"
    assert bucket.downloads == ["/bucket/loras/small.safetensors"]
