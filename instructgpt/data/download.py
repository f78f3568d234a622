"""Downloads: over HTTPS only, resumed where they broke off, checked before they take their name. The public sets."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from instructgpt.data.public_sets import PUBLIC_SETS, PublicSet
from instructgpt.errors import UserError, suggestion

Opener = Callable[[urllib.request.Request], Any]
"""Sends a request; returns a response with `status`, `headers` and `read(n)`, as urllib does."""

_CHUNK = 1 << 18
_ATTEMPTS = 5  # in a row that bring nothing new
_TIMEOUT = 30.0  # seconds without a byte
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def list_sets() -> list[PublicSet]:
    """The sets that `fetch` knows, by name."""
    return sorted(PUBLIC_SETS, key=lambda public_set: public_set.name)


def fetch(
    name: str, out: str | Path, report: Callable[[str], None] = print, opener: Opener | None = None
) -> list[Path]:
    """Downloads a named set into the directory `out` and returns its files; what is there already is not fetched again.

    `report` is told the licence and each file. Raises UserError for an unknown name, and as `download` does.
    """
    found = [public_set for public_set in PUBLIC_SETS if public_set.name == name]
    if not found:
        raise UserError(f"there is no data set {name!r}{suggestion(name, [each.name for each in list_sets()])}")
    public_set = found[0]
    report(f"{name}: {public_set.about}; from github.com/{public_set.repository}, {public_set.size / 1e6:.1f} MB")
    report(f"licence: {public_set.licence}")
    paths = []
    for file in public_set.files:
        path = Path(out) / file.name
        download(file.url, path, file.sha256, file.size, opener)
        report(f"{path}: {file.size:,} bytes, sha256 verified")
        paths.append(path)
    return paths


def download(
    url: str,
    target: Path,
    digest: str,
    size: int,
    opener: Opener | None = None,
    pause: float = 1.0,
    progress: Callable[[int], object] = lambda have: None,
) -> None:
    """Brings the file of `size` bytes at `url` to `target`, which appears whole and verified or not at all.

    digest: its sha256, or the sha1 that git gives it, told by the length. What has arrived waits in `TARGET.part`; a
    broken download goes on from there, in this call (after `pause` seconds, doubled each time nothing came) or in a
    later one. `opener` replaces the HTTPS client, for other transports. `progress` is told the bytes there are so far.
    Raises UserError when the server refuses, the network fails, the disk is full, or the bytes are not those expected.
    """
    if target.exists():
        if target.stat().st_size == size and _digest(target, digest) == digest:
            return
        raise UserError("is there already, with other contents; remove it or choose another directory", target)
    part = target.with_name(target.name + ".part")
    with _telling_disk_errors(part):
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    _complete(url, part, size, opener or https_opener(), pause, progress)
    found = _digest(part, digest)
    if found != digest:
        part.unlink()
        kind = "sha256" if len(digest) == 64 else "git sha1"
        raise UserError(f"what {url} sent has the {kind} {found}, not {digest}; it was thrown away", target)
    with _telling_disk_errors(target):
        os.replace(part, target)


def _complete(url: str, part: Path, size: int, opener: Opener, pause: float, progress: Callable[[int], object]) -> None:
    """Requests what is missing of `part` until it has `size` bytes."""
    failures, farthest = 0, 0
    while (have := part.stat().st_size) != size:
        if have > size:
            with _telling_disk_errors(part):
                os.truncate(part, 0)  # the remains of something else
            have = 0
        try:
            _receive(url, part, have, size, opener, progress)
            problem = f"broke off after {part.stat().st_size:,} of {size:,} bytes"
        except urllib.error.HTTPError as error:
            problem = f"answers {error.code} {error.reason}"
            if error.code == 416:  # it has nothing from here on: what is here is no beginning of what it has
                with _telling_disk_errors(part):
                    os.truncate(part, 0)
            elif error.code < 500 and error.code != 429:
                raise UserError(f"{url} {problem}") from None
        except (urllib.error.URLError, http.client.HTTPException, _NetworkError) as error:
            problem = f"cannot be read: {getattr(error, 'reason', None) or error}"
        # Only what no attempt has reached before is progress: a server can go round in circles.
        failures = 0 if part.stat().st_size > max(have, farthest) else failures + 1
        farthest = max(farthest, part.stat().st_size)
        if failures >= _ATTEMPTS:
            raise UserError(f"{url} {problem}; what arrived is kept in {part}: the same command goes on from there")
        if failures:
            time.sleep(pause * 2 ** (failures - 1))


class _NetworkError(Exception):
    """The connection failed; told apart from a disk that fails, which is an OSError too."""


def _receive(url: str, part: Path, have: int, size: int, opener: Opener, progress: Callable[[int], object]) -> None:
    """One request for what follows the first `have` bytes; appends what comes."""
    request = urllib.request.Request(url, headers={"User-Agent": "instructgpt", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = opener(request)
    except (TimeoutError, ConnectionError) as error:
        raise _NetworkError(error) from None
    with response:
        continues = response.status == 206 and f"bytes {have}-" in response.headers.get("Content-Range", "")
        # A server that ignores the range sends the whole file: begin again.
        with _telling_disk_errors(part), open(part, "ab" if continues else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                if file.tell() > size:
                    raise UserError(f"{url} sends more than the {size:,} bytes expected")
                progress(file.tell())


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial
    except OSError as error:
        raise _NetworkError(error) from None


class _HTTPSRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to an address that is not HTTPS, and never with a token to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _refuse_plain(newurl, from_loopback=urlsplit(req.full_url).hostname in _LOOPBACK)
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            for name, value in req.unredirected_hdrs.items():
                if name == "Authorization":
                    found.add_unredirected_header(name, value)
        return found


def https_opener(token: str = "") -> Opener:
    """An HTTPS client. A token is shown to the host that is asked, and to no other that it sends one on to."""

    def open_https(request: urllib.request.Request) -> Any:
        _refuse_plain(request.full_url)
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        return urllib.request.build_opener(_HTTPSRedirects).open(request, timeout=_TIMEOUT)

    return open_https


def _refuse_plain(url: str, from_loopback: bool = True) -> None:
    """UserError unless the address is HTTPS, or this machine itself."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK and from_loopback):
        return
    raise UserError(f"{url} is not an https:// address; nothing is downloaded over a connection that anyone can change")


@contextmanager
def _telling_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", path) from None


def _digest(path: Path, like: str) -> str:
    """The file's sha256, or what git calls it, a sha1 over its length and contents, if `like` is one."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
