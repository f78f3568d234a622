"""Downloads from a hub, which is a server on this machine."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import instructgpt as ig
from instructgpt.cli import run_command
from instructgpt.errors import UserError
from instructgpt.pretrained.hub import _File, _told, fetch, is_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": random.Random(0).randbytes(600_000),
    "modeling_evil.py": b"raise SystemExit",
    "README.md": b"# no part of the model",
    "onnx/model.safetensors": b"of another engine",
    "pytorch_model.bin": b"the same weights again",
    "model.gguf": b"and again",
}


def entry(name: str, content: bytes) -> dict[str, Any]:
    is_large = name.endswith((".safetensors", ".gguf"))
    lfs = {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}} if is_large else {}
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return {"rfilename": name, "size": len(content), "blobId": git, **lfs}


class Hub(ThreadingHTTPServer):
    files: dict[str, bytes]
    breaks: bool = False
    secret: str = ""
    answers: bytes | None = None
    elsewhere: str = ""
    """Where files are sent on to."""
    asked: list[tuple[str, dict[str, str]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub: Any = self.server
        hub.asked.append((self.path, dict(self.headers)))
        if hub.secret and self.headers.get("Authorization") != f"Bearer {hub.secret}":
            return self.send_error(401)
        if self.path.startswith("/api/models/owner/model/revision/"):
            listing = {"sha": COMMIT, "siblings": [entry(*item) for item in hub.files.items()]}
            return self.send(hub.answers if hub.answers is not None else json.dumps(listing).encode())
        name = self.path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
        if name not in hub.files:
            return self.send_error(404)
        if hub.elsewhere:
            self.send_response(302)
            self.send_header("Location", f"{hub.elsewhere}{self.path}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        return self.send(hub.files[name], begin)

    def send(self, body: bytes, begin: int = 0) -> None:
        hub: Any = self.server
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        stop = begin + 250_000 if hub.breaks else len(body)
        self.wfile.write(body[begin:stop])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def served() -> Hub:
    hub = Hub(("127.0.0.1", 0), Handler)
    hub.files, hub.asked = dict(FILES), []
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    hub = served()
    yield hub
    hub.shutdown()
    hub.server_close()


def get(hub: Hub, cache: Path, name: str = "owner/model") -> tuple[Path, str]:
    told: list[str] = []
    return fetch(name, cache, told.append, hub=hub.url), "\n".join(told)


def test_a_models_files_arrive_and_no_others(hub, tmp_path):
    folder, told = get(hub, tmp_path)
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert all((folder / path.name).read_bytes() == FILES[path.name] for path in folder.iterdir())
    assert "owner/model: 3 files, 600 KB" in told and "model.safetensors: 600 KB, verified" in told
    before = len(hub.asked)
    assert get(hub, tmp_path)[0] == folder and len(hub.asked) == before + 1  # the listing alone


def test_a_download_that_breaks_off_goes_on(hub, tmp_path):
    hub.breaks = True
    folder, _ = get(hub, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    asked = [headers.get("Range") for path, headers in hub.asked if path.endswith("model.safetensors")]
    assert asked == [None, "bytes=250000-", "bytes=500000-"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_not_what_the_hub_lists_is_thrown_away(hub, tmp_path, name, monkeypatch):
    content = hub.files[name]
    listing = {"sha": COMMIT, "siblings": [entry(*item) for item in hub.files.items()]}
    hub.answers = json.dumps(listing).encode()
    hub.files[name] = bytes([content[0] ^ 1]) + content[1:]
    with pytest.raises(UserError, match=rf"{name}: what .* sent has the (sha256|git sha1) .*thrown away"):
        get(hub, tmp_path)
    assert not list(tmp_path.rglob(f"{name}*"))


def test_the_token_is_shown_to_the_hub_alone_and_never_printed(hub, tmp_path, monkeypatch):
    hub.secret, other = "hf_secret", served()
    hub.elsewhere = other.url
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    folder, told = get(hub, tmp_path)
    assert (folder / "config.json").exists() and "hf_secret" not in told
    assert other.asked and all("Authorization" not in headers for _, headers in other.asked)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="or the token in HF_TOKEN may not see it") as error:
        get(hub, tmp_path / "again")
    assert "hf_wrong" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no model owner/model on .*, or it asks for a token, in HF_TOKEN"):
        get(hub, tmp_path / "again")
    other.shutdown()
    other.server_close()


def test_a_redirect_to_the_same_host_keeps_the_token(hub, tmp_path, monkeypatch):
    hub.secret = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.files = {"config.json": b"{}", "model.safetensors": b"x"}
    original = Handler.do_GET

    def moved(self: Any) -> None:
        if self.path.startswith("/owner/old/") or "/models/owner/old/" in self.path:
            self.send_response(307)
            self.send_header("Location", self.path.replace("owner/old", "owner/model"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return original(self)

    monkeypatch.setattr(Handler, "do_GET", moved)
    assert (get(hub, tmp_path, "owner/old")[0] / "config.json").exists()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"config.json": b"{}"}, "has no weights in a form that is read here"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, r"several GGUF files; fetch one and name it with --from: a\.gguf, b\.gguf"),
    ],
)  # fmt: skip
def test_models_of_which_nothing_can_be_taken(hub, tmp_path, files, complaint):
    hub.files = files
    with pytest.raises(UserError, match=complaint):
        get(hub, tmp_path)


def test_other_forms_of_weights(hub, tmp_path):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x", "model.gguf": b"y"}
    assert {p.name for p in get(hub, tmp_path / "a")[0].iterdir()} == {"config.json", "pytorch_model.bin"}
    hub.files = {"README.md": b"", "only.gguf": b"y"}
    assert get(hub, tmp_path / "b")[0].read_bytes() == b"y"


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"sha": "../..", "siblings": []}', b'{"sha": 1}'])
def test_a_server_that_is_no_hub(hub, tmp_path, answer):
    hub.answers = answer
    with pytest.raises(UserError, match="does not answer as the hub does"):
        get(hub, tmp_path)


def test_a_model_or_a_server_that_is_not_there(hub, tmp_path):
    with pytest.raises(UserError, match=r"no model owner/other of revision v2 on http.*answer 404"):
        get(hub, tmp_path, "owner/other@v2")
    with pytest.raises(
        UserError, match=r"cannot be reached \(.*\): fetch the files of gpt2 elsewhere, and name the folder"
    ):
        fetch("gpt2", tmp_path, print, hub="http://127.0.0.1:9")
    with pytest.raises(UserError, match="is not an https:// address"):
        fetch("gpt2", tmp_path, print, hub="http://example.org")


def test_a_model_is_imported_by_its_name(hub, save, tmp_path, monkeypatch, capsys):
    hub.files = {path.name: path.read_bytes() for path in save("qwen3").folder.iterdir()}
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run_command(["import", "--from", "owner/model", "--out", str(tmp_path / "run")]) == 0
    assert "qwen3, 0.1M parameters" in capsys.readouterr().out
    assert ig.load(tmp_path / "run", "cpu")[0].config.qk_norm
    assert (tmp_path / "cache" / "instructgpt" / "models" / "owner--model" / COMMIT / "config.json").exists()


def test_names():
    assert all(map(is_name, ["gpt2", "owner/model", "Qwen/Qwen2.5-0.5B@v1.0", "a_b/c-d.e"]))
    assert not any(map(is_name, ["", "/etc", "../x", "a/b/c", "a//b", ".hidden", "a b", "owner/..", "x@", "a/.b"]))
    with pytest.raises(UserError, match="neither a path that exists nor a model's name"):
        fetch("../x", Path())


def test_progress_is_told_by_tenths():
    told: list[str] = []
    progress = _told(_File("x", 1000, ""), told.append, least=100)
    for have in range(0, 1001, 7):
        progress(have)
    progress(1000)
    assert len(told) == 10 and told[0] == "x: 10% of 1.00 KB" and told[-1].startswith("x: 100%")
