"""Which answers of the Hugging Face Hub no restart cures, as its own client takes them from a real HTTP server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import hf_api
from huggingface_hub.errors import LocalEntryNotFoundError

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import ModelComponent
from kubediffusion.resources.testing import present
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading import hub
from kubediffusion.worker.sources import ModelRefusedError

SPEC = DiffusionModelSpec.from_wire({"source": {"huggingFace": {"repository": "somebody/model", "revision": "v1"}}})


COMMIT = "0123456789abcdef0123456789abcdef01234567"

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class Hub(ThreadingHTTPServer):
    """Answers everything alike, or as the Hub does of a repository whose files have these names."""

    status = 500
    code = ""
    files: tuple[str, ...] = ()


class Answer(BaseHTTPRequestHandler):
    """One answer of a hub."""

    server: Hub

    def do_GET(self) -> None:
        if self.server.files:
            self._answer_of_repository()
            return
        self.send_response(self.server.status)
        if self.server.code:
            self.send_header("X-Error-Code", self.server.code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _answer_of_repository(self) -> None:
        body = json.dumps(INDEX)
        if self.path.startswith("/api/"):
            body = json.dumps(
                {"id": "somebody/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.server.files]}
            )
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": name, "size": 2, "oid": "0" * 40} for name in self.server.files]
            body = json.dumps(tree)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body.encode()).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body.encode())

    do_HEAD = do_GET  # noqa: N815 - the base class has it so

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub which the Hub's own client asks."""
    server = Hub(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    files = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch() -> None:
    hub.fetch(present(SPEC.source.hugging_face), SPEC, "hf_token_of_ours")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "", "the Hub answers 401: the token is missing or not valid"),
        (404, "RepoNotFound", "no such repository"),
        (404, "RevisionNotFound", "no such revision"),
        (403, "GatedRepo", "accept the model's terms"),
    ],
)
def test_what_the_hub_refuses_is_to_be_asked_again_elsewhere(server: Hub, status: int, code: str, words: str) -> None:
    server.status, server.code = status, code
    with pytest.raises(ModelRefusedError, match=words) as error:
        fetch()
    assert "somebody/model at v1" in str(error.value)
    assert "hf_token" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        ("unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"),
        ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"),
        ("unet/diffusion_pytorch_model.ckpt", "vae/diffusion_pytorch_model.pt"),
    ],
)
def test_a_repository_without_safetensors_is_refused_at_once_with_the_remedy(
    server: Hub, files: tuple[str, ...]
) -> None:
    server.files = ("model_index.json", "unet/config.json", "vae/config.json", *files)
    with pytest.raises(BadModelError, match=r"no safetensors weights.*convert.*spec\.useSafetensors") as error:
        fetch()
    assert type(error.value) is BadModelError


def test_files_come_by_their_names(server: Hub) -> None:
    server.files = ("a/b [1].safetensors", "a/b 1.safetensors", "a/config.json", "c.json")
    source = present(SPEC.source.hugging_face)
    folder, commit = hub.fetch_files(source, ("a/b [[]1].safetensors", "a/*.json"), None)
    assert commit == COMMIT
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert found == ["a/b [1].safetensors", "a/config.json"]


def test_one_file_comes_once_its_size_is_accepted_and_from_the_cache_while_the_hub_is_away(
    server: Hub, tmp_path: Path
) -> None:
    source = present(SPEC.source.hugging_face)
    server.files, sizes = ("a/b [1].safetensors",), list[int]()

    def refuse(size: int) -> None:
        sizes.append(size)
        raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"):
        hub.fetch_file(source, "a/b [1].safetensors", None, refuse)
    assert not list(tmp_path.rglob("*.safetensors"))
    file = present(hub.fetch_file(source, "a/b [1].safetensors", None, sizes.append))
    assert sizes == [file.stat().st_size] * 2
    server.files, server.status = (), 500
    assert hub.fetch_file(source, "a/b [1].safetensors", None, sizes.append) == file
    # Of the same repository, and not here: nobody knows that there is none.
    with pytest.raises(LocalEntryNotFoundError):
        hub.fetch_file(source, "a/c.safetensors", None, sizes.append)
    server.status, server.code = 404, "EntryNotFound"
    assert hub.fetch_file(source, "a/c.safetensors", None, sizes.append) is None


def test_files_of_a_repository_that_is_not_there(server: Hub) -> None:
    server.status, server.code = 404, "RepoNotFound"
    with pytest.raises(ModelRefusedError, match="no such repository"):
        hub.fetch_files(present(SPEC.source.hugging_face), ("*.json",), None)


def test_components_that_come_from_elsewhere_do_not_come_from_the_repository(server: Hub) -> None:
    names = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin")
    server.files = ("model_index.json", "unet/config.json", "vae/config.json", *names)
    spec = SPEC.model_copy(
        update={"components": (ModelComponent.model_validate({"name": "vae", "source": {"path": "/vae"}}),)}
    )
    folder, _ = hub.fetch(present(SPEC.source.hugging_face), spec, None)
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert not list((folder / "vae").glob("*.bin"))


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_in_trouble_may_pass(server: Hub, status: int) -> None:
    server.status = status
    with pytest.raises(OSError, match="not fully cached"):
        fetch()


def test_an_empty_cache_while_offline_is_a_bad_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadModelError, match="HF_HUB_OFFLINE is set") as error:
        fetch()
    assert type(error.value) is BadModelError
