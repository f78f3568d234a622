from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instructgpt.data import download as module
from instructgpt.data.download import download, fetch, list_sets
from instructgpt.data.public_sets import PublicSet
from instructgpt.errors import UserError

CONTENT = random.Random(0).randbytes(700_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path, as the last part of the path asks for."""

    ranges: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        manner = self.path.rsplit("/", 1)[-1]
        if manner.isdigit():
            self.send_error(int(manner))
            return
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and manner != "no-ranges" else 0
        if begin >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        breaks = manner == "always-breaks" or (manner in ("breaks", "no-ranges") and len(server.ranges) == 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body[: 300_000 if breaks else len(body)])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.ranges = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(server: Server, manner: str, target: Path, sha256: str = SHA256, size: int = len(CONTENT)) -> None:
    download(f"{server.url}/{manner}", target, sha256, size, urllib.request.urlopen, pause=0.0)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_file_arrives_whole(server, tmp_path):
    target = tmp_path / "new" / "file.bin"
    get(server, "plain", target)
    assert target.read_bytes() == CONTENT and server.ranges == [None]
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    get(server, "plain", tmp_path / "file")
    get(server, "plain", tmp_path / "file")
    assert len(server.ranges) == 1


def test_a_server_that_breaks_off_is_asked_for_the_rest(server, tmp_path):
    get(server, "breaks", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_later_command_goes_on_from_the_part(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT[:500_000])
    get(server, "plain", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and server.ranges == ["bytes=500000-"]


def test_a_part_that_is_complete_needs_no_request(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT)
    get(server, "plain", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and not server.ranges


def test_a_part_of_something_longer_is_thrown_away(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT + b"more")
    get(server, "plain", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and server.ranges == [None]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    get(server, "no-ranges", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_server_that_never_gets_further_is_given_up_and_the_part_is_kept(server, tmp_path, monkeypatch):
    def no_ranges(request: urllib.request.Request) -> Any:
        request.remove_header("Range")
        return urllib.request.urlopen(request)

    with pytest.raises(UserError, match=r"broke off after 300,000 of 700,001 bytes.*file\.part"):
        download(f"{server.url}/always-breaks", tmp_path / "file", SHA256, len(CONTENT), no_ranges, pause=0.0)
    assert part_of(tmp_path / "file").stat().st_size == 300_000
    assert not (tmp_path / "file").exists()
    assert len(server.ranges) == 6  # the one that brought something, and five that brought nothing more


@pytest.mark.parametrize("part", [b"", b"other bytes"])
def test_wrong_bytes_never_take_the_name(server, tmp_path, part):
    part_of(tmp_path / "file").write_bytes(part)
    with pytest.raises(UserError, match="sha256"):
        get(server, "plain", tmp_path / "file", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_more_bytes_than_expected_are_refused(server, tmp_path):
    with pytest.raises(UserError, match="more than the 1,000 bytes"):
        get(server, "plain", tmp_path / "file", size=1000)


def test_fewer_bytes_than_expected_are_refused(server, tmp_path):
    with pytest.raises(UserError, match="kept in"):
        get(server, "plain", tmp_path / "file", size=len(CONTENT) + 1)
    assert not (tmp_path / "file").exists()


def test_another_file_in_the_place_is_not_overwritten(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="other contents"):
        get(server, "plain", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (503, 5), (429, 5)])
def test_a_refusal_is_told_and_a_busy_server_is_asked_again(server, tmp_path, code, requests):
    with pytest.raises(UserError, match=f"answers {code}"):
        get(server, str(code), tmp_path / "file")
    assert len(server.ranges) == requests


def test_no_server_is_the_users_to_know(tmp_path):
    def refused(request: urllib.request.Request) -> Any:
        return urllib.request.urlopen(request, timeout=5)

    with pytest.raises(UserError, match=r"cannot be read.*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "file", SHA256, 5, refused, pause=0.0)


def test_a_connection_that_dies_is_taken_up_again(server, tmp_path, monkeypatch):
    calls = []
    plain_read = module._read

    def read(response: Any) -> bytes:
        calls.append(None)
        if len(calls) == 2:
            raise module._NetworkError(ConnectionResetError("reset by peer"))
        return plain_read(response)

    monkeypatch.setattr(module, "_read", read)
    get(server, "plain", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={module._CHUNK}-"]


def test_a_full_disk_is_told_in_a_line(server, tmp_path, monkeypatch):
    def full(path: Any, mode: str = "r") -> Any:
        if "b" in mode and mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode)

    monkeypatch.setattr(module, "open", full, raising=False)
    with pytest.raises(UserError, match=r"file\.part: cannot be written: No space left"):
        get(server, "plain", tmp_path / "file")


def test_only_https_is_spoken_but_to_this_machine(tmp_path, server):
    with pytest.raises(UserError, match="not an https:// address"):
        download("http://example.org/plain", tmp_path / "file", SHA256, 5)
    asked = urllib.request.Request("https://example.org/x")
    for elsewhere in ("http://example.org/x", f"{server.url}/plain"):  # nor is anybody sent on to it
        with pytest.raises(UserError, match="not an https:// address"):
            module._HTTPSRedirects().redirect_request(asked, None, 302, "", {}, elsewhere)
    assert not server.ranges
    download(f"{server.url}/plain", tmp_path / "file", SHA256, len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_named_set_is_fetched_with_its_licence(server, tmp_path, monkeypatch):
    listing = f"\n{SHA256} {len(CONTENT)} a.bin\n{SHA256} {len(CONTENT)} 论语/b c.bin\n"
    small = PublicSet("small", "two files", "MIT", "owner/name", "abc", "data/", listing)
    monkeypatch.setattr(module, "PUBLIC_SETS", (small,))
    urls, lines = [], []

    def local(request: urllib.request.Request) -> Any:
        urls.append(request.full_url)
        return urllib.request.urlopen(f"{server.url}/plain")

    paths = fetch("small", tmp_path, report=lines.append, opener=local)
    assert paths == [tmp_path / "a.bin", tmp_path / "论语" / "b c.bin"]
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert urls[1] == "https://raw.githubusercontent.com/owner/name/abc/data/%E8%AE%BA%E8%AF%AD/b%20c.bin"
    assert "licence: MIT" in lines


def test_an_unknown_set_suggests_the_near_one(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tinyshakespeare'"):
        fetch("tinyshakespear", tmp_path)


def test_every_listed_set_is_complete_and_pinned():
    for public_set in list_sets():
        assert public_set.licence and public_set.about and len(public_set.commit) == 40
        assert public_set.files
        for file in public_set.files:
            assert file.url.startswith("https://") and public_set.commit in file.url
            assert len(file.sha256) == 64 and int(file.sha256, 16) and file.size > 0
            assert not Path(file.name).is_absolute() and ".." not in file.name
    names = [public_set.name for public_set in list_sets()]
    assert len(set(names)) == len(names)


def test_listed_checksums_are_those_of_the_real_files(real_data):
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in real_data.rglob("*") if path.is_file()}
    assert {file.sha256 for public_set in list_sets() for file in public_set.files} <= hashes
