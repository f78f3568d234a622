"""Who may ask, and how much: bearer keys, kept as hashes in a file, and the limits of each.

A line of the file is a key; `#` begins a comment:

    anna sha256:9f86d081884c7d65… requests=60 tokens=20000 parallel=4

requests and tokens are a minute's, parallel are requests at a time; 0, or nothing said, is no limit. A key is 32 random
bytes, so that a plain hash of it can be neither guessed nor inverted. The file is read again when it changes: a line
that is taken out, or can no longer be read, lets nobody in.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgpt.atomic import write_text
from instructgpt.errors import UserError
from instructgpt.serving.problems import Problem

_LIMITS = ("requests", "tokens", "parallel")
_NAME = re.compile(r"[\w.@-]{1,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Key:
    """What a line of the file says."""

    name: str
    digest: bytes
    requests: int = 0
    tokens: int = 0
    parallel: int = 0


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path) -> tuple[list[Key], list[UserError]]:
    """The keys of a file, and what is wrong with each line that is none. Raises UserError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"keys cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}", path) from None
    keys: dict[str, Key] = {}
    complaints = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _key(words)
            if key.name in keys:
                raise ValueError(f"there is a key named {key.name} already")
            keys[key.name] = key
        except ValueError as error:
            complaints.append(UserError(str(error), path, number))
    return list(keys.values()), complaints


def _key(words: list[str]) -> Key:
    name, *rest = words
    if not _NAME.fullmatch(name):
        raise ValueError("a key's name has 1 to 64 letters, digits, or . _ @ -")
    if not rest or not (digest := _DIGEST.fullmatch(rest[0])):
        raise ValueError(f"after {name} there should be sha256: and 64 hexadecimal digits; --new-key makes a line")
    limits: dict[str, int] = {}
    for word in rest[1:]:
        limit, _, value = word.partition("=")
        if limit not in _LIMITS or not value.isdecimal() or not value.isascii():
            raise ValueError(f"{word!r} is no limit; write {', '.join(f'{one}=NUMBER' for one in _LIMITS)}")
        limits[limit] = int(value)
    return Key(name, bytes.fromhex(digest[1]), **limits)


def new_key(path: Path, name: str) -> str:
    """Adds a line for a new key to the file, which is made if there is none, and returns the key, which nothing else
    remembers. Errors: UserError."""
    present, complaints = read_keys(path) if path.exists() else ([], [])
    if complaints:
        raise complaints[0]
    if not _NAME.fullmatch(name) or any(key.name == name for key in present):
        raise UserError(f"a new key cannot be named {name!r}: the name is taken, or has more than letters and digits")
    key = "sk-" + secrets.token_urlsafe(32)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    write_text(path, f"{before}{name} sha256:{digest_of(key).hex()}\n")
    os.chmod(path, 0o600)
    return key


class Allowance:
    """So much a minute, given back evenly: a bucket that holds a minute's worth (Turner 1986)."""

    def __init__(self, a_minute: int, clock: Clock):
        """a_minute: 0 is without limit."""
        self.a_minute, self._clock = a_minute, clock
        self._level, self._at = float(a_minute), clock()

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(float(self.a_minute), self._level + (now - self._at) * self.a_minute / 60)
        self._at = now

    def wait(self, amount: int) -> float:
        """Seconds until so much may be taken; 0 now. What is more than a minute's worth may be when all is there."""
        if not self.a_minute:
            return 0.0
        self._refill()
        lacking = min(amount, self.a_minute) - self._level
        return 0.0 if lacking <= 0 else lacking * 60 / self.a_minute

    def take(self, amount: int) -> None:
        """Takes it, even where it is not there: what was used must be paid, before there is more."""
        if self.a_minute:
            self._refill()
            self._level -= amount


@dataclass
class Caller:
    """Who holds a key, and what is left of its limits."""

    key: Key
    clock: Clock = time.monotonic
    under_way: int = 0
    requests: Allowance = field(init=False)
    tokens: Allowance = field(init=False)

    def __post_init__(self) -> None:
        self.limit(self.key)

    def limit(self, key: Key) -> None:
        """From now on these limits hold."""
        self.key = key
        self.requests, self.tokens = Allowance(key.requests, self.clock), Allowance(key.tokens, self.clock)

    @contextmanager
    def admitted(self) -> Any:
        """One request from its beginning to its end. Raises Problem where that is one too many."""
        if self.key.parallel and self.under_way >= self.key.parallel:
            message = f"Rate limit reached: {self.key.parallel} requests at a time."
            raise Problem(429, message, code="rate_limit_exceeded", retry_after=1)
        if wait := self.requests.wait(1):
            message = f"Rate limit reached: {self.key.requests} requests a minute."
            raise Problem(429, message, code="rate_limit_exceeded", retry_after=wait)
        self.requests.take(1)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def charge_prompt(self, tokens: int) -> None:
        """Raises Problem where the prompt has more tokens than are left; those of the answer are taken afterwards."""
        if wait := self.tokens.wait(tokens):
            message = f"Rate limit reached: {self.key.tokens} tokens a minute; this prompt has {tokens}."
            raise Problem(429, message, code="rate_limit_exceeded", retry_after=wait)
        self.tokens.take(tokens)


class Keys:
    """The keys of a file, as it is now."""

    def __init__(self, path: Path, clock: Clock = time.monotonic):
        """Raises UserError where the file is wrong from the beginning, or holds no key."""
        self._path, self._clock = path, clock
        self.complain: Callable[[str], None] = print
        """Told, in a line, what of a file that has changed cannot be read."""
        keys, complaints = read_keys(path)
        if complaints:
            raise complaints[0]
        if not keys:
            raise UserError("holds no key; --new-key NAME adds one", path)
        self._callers = {key.name: Caller(key, clock) for key in keys}
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _reread(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            keys, complaints = read_keys(self._path)
        except UserError as error:
            keys, complaints = [], [error]
        for complaint in complaints:
            self.complain(str(complaint))
        known, self._callers = self._callers, {}
        for key in keys:
            caller = known.get(key.name) or Caller(key, self._clock)
            if caller.key != key:
                caller.limit(key)
            self._callers[key.name] = caller

    def who(self, authorization: str | None) -> Caller:
        """Whose key an Authorization header holds. Raises Problem for none, and for one that nobody has."""
        self._reread()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "You didn't provide an API key: send it as the header `Authorization: Bearer YOUR_KEY`."
            raise Problem(401, message)
        found = None
        digest = digest_of(key.strip())
        for caller in self._callers.values():  # all of them: how long it takes says nothing of which is right
            if hmac.compare_digest(caller.key.digest, digest):
                found = caller
        if found is None:
            raise Problem(401, "Incorrect API key provided.", code="invalid_api_key")
        return found
