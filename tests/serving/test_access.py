"""Who may ask, and how much."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from instructgpt.errors import UserError
from instructgpt.serving.access import Allowance, Caller, Key, Keys, digest_of, new_key, read_keys
from instructgpt.serving.problems import Problem
from tests.serving.conftest import Live, Start


class Clock:
    """Time that goes on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def line(name: str, key: str, limits: str = "") -> str:
    return f"{name} sha256:{digest_of(key).hex()} {limits}\n"


def told(problem: pytest.ExceptionInfo[Problem]) -> tuple[int, str | None]:
    return problem.value.status, problem.value.code


# ---- the file


def test_a_new_key_is_printed_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, other = new_key(path, "anna"), new_key(path, "tom")
    text = path.read_text()
    assert key != other and key not in text and len(text.splitlines()) == 2
    assert Keys(path).who(f"Bearer {key}").key.name == "anna"
    assert os.stat(path).st_mode & 0o077 == 0


def test_a_line_says_its_limits_and_comments_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{line('anna', 'k', 'requests=6 tokens=200 parallel=2')[:-1]} # a student\n")
    (key,), complaints = read_keys(path)
    assert (key.name, key.requests, key.tokens, key.parallel) == ("anna", 6, 200, 2) and not complaints


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("anna\n", "keys:1: after anna there should be sha256:"),
        ("# a\nanna sk-123\n", "keys:2: after anna there should be sha256:"),
        (f"anna sha256:{'A' * 64}\n", "keys:1: after anna there should be sha256:"),
        (line("anna", "k", "request=3"), "keys:1: 'request=3' is no limit"),
        (line("anna", "k", "requests=-3"), "keys:1: 'requests=-3' is no limit"),
        (line("anna", "k", "requests=٣"), "keys:1: 'requests=٣' is no limit"),
        (line("a/b", "k"), "keys:1: a key's name"),
        (line("anna", "k") + line("anna", "l"), "keys:2: there is a key named anna already"),
        ("", "holds no key"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="^" + str(tmp_path)) as caught:
        Keys(tmp_path / "keys")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff")])
def test_a_file_that_cannot_be_read(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "keys")
    with pytest.raises(UserError, match="keys cannot be read"):
        Keys(tmp_path / "keys")


def test_a_taken_or_odd_name_gets_no_key(tmp_path: Path) -> None:
    new_key(tmp_path / "keys", "anna")
    for name in ("anna", "a b", "", "a\nb sha256:00"):
        with pytest.raises(UserError, match="cannot be named"):
            new_key(tmp_path / "keys", name)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys"
    path.write_text(line("anna", "one", "requests=2"))
    keys, complaints = Keys(path, clock), []
    keys.complain = complaints.append
    anna = keys.who("Bearer one")
    with anna.admitted():
        path.write_text(line("anna", "one", "requests=2") + line("tom", "two"))
        assert keys.who("Bearer two").key.name == "tom"
        assert keys.who("Bearer one") is anna and anna.under_way == 1  # what is used up stays used up
    path.write_text(line("tom", "two") + "anna what\n")
    with pytest.raises(Problem) as caught:
        keys.who("Bearer one")
    assert told(caught) == (401, "invalid_api_key")
    assert keys.who("Bearer two") and len(complaints) == 1 and "keys:2:" in complaints[0]
    path.unlink()
    with pytest.raises(Problem):
        keys.who("Bearer two")
    path.write_text(line("tom", "two"))
    assert keys.who("Bearer two")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic b25l", "one", "Bearer two", "Bearer one two", "Bearer onE", "Bearer \udcff"],
)
def test_no_key_and_wrong_ones(tmp_path: Path, header: str | None) -> None:
    (tmp_path / "keys").write_text(line("anna", "one"))
    with pytest.raises(Problem) as caught:
        Keys(tmp_path / "keys").who(header)
    assert caught.value.status == 401 and caught.value.headers["WWW-Authenticate"] == "Bearer"
    assert "one" not in caught.value.message.split()


def test_every_hash_is_compared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes says nothing of which key is right, and nothing of how much of it."""
    compared = []
    monkeypatch.setattr(
        "instructgpt.serving.access.hmac.compare_digest", lambda a, b: compared.append(len(a)) or a == b
    )
    (tmp_path / "keys").write_text("".join(line(f"k{i}", str(i)) for i in range(5)))
    keys = Keys(tmp_path / "keys")
    for key in ("0", "4", "none"):
        compared.clear()
        with suppress(Problem):
            keys.who(f"Bearer {key}")
        assert compared == [32] * 5


# ---- limits


def test_an_allowance_comes_back_evenly(clock: Clock) -> None:
    allowance = Allowance(60, clock)
    assert allowance.wait(60) == 0
    allowance.take(60)
    assert allowance.wait(1) == pytest.approx(1)
    clock.now += 10
    assert allowance.wait(10) == 0 and allowance.wait(11) == pytest.approx(1)
    allowance.take(40)  # more than there was
    assert allowance.wait(1) == pytest.approx(31)
    clock.now += 3600
    assert allowance.wait(60) == 0 and allowance.wait(1000) == 0  # never more than a minute's worth is asked for
    assert Allowance(0, clock).wait(10**9) == 0


def test_requests_a_minute(clock: Clock) -> None:
    caller = Caller(Key("anna", b"", requests=2), clock)
    for _ in range(2):
        with caller.admitted():
            pass
    with pytest.raises(Problem) as caught, caller.admitted():
        pass
    assert told(caught) == (429, "rate_limit_exceeded") and caught.value.headers["Retry-After"] == "30"
    clock.now += 30
    with caller.admitted():
        pass


def test_requests_at_a_time(clock: Clock) -> None:
    caller = Caller(Key("anna", b"", parallel=1), clock)
    with pytest.raises(ZeroDivisionError), caller.admitted():
        with pytest.raises(Problem) as caught, caller.admitted():
            pass
        assert caught.value.status == 429
        raise ZeroDivisionError
    with caller.admitted():
        pass


def test_tokens_a_minute(clock: Clock) -> None:
    caller = Caller(Key("anna", b"", tokens=100), clock)
    caller.charge_prompt(60)
    caller.tokens.take(90)  # the answer
    with pytest.raises(Problem) as caught:
        caller.charge_prompt(10)
    assert caught.value.headers["Retry-After"] == "36"


# ---- live


@pytest.fixture(scope="module")
def guarded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("access") / "keys"
    path.write_text(line("anna", "sk-anna") + line("tom", "sk-tom", "requests=1") + line("lily", "sk-lily", "tokens=8"))
    with start(keys=Keys(path)) as live:
        yield live


def ask(live: Live, key: str | None, path: str = "/v1/models") -> tuple[int, dict[str, str], Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    status, found, body = live.call("GET", path, headers=headers)
    return status, found, body


def test_a_key_opens_the_door_and_its_name_is_logged(guarded: Live) -> None:
    assert ask(guarded, None)[0] == ask(guarded, "sk-x")[0] == 401
    status, headers, _ = ask(guarded, "sk-anna")
    assert status == 200
    guarded.wait_until(lambda: guarded.log[-1]["key"] == "anna")
    assert headers["x-request-id"] == guarded.log[-1]["id"]
    assert "sk-" not in json.dumps(guarded.log)


@pytest.mark.parametrize(
    ("path", "status"), [("/metrics", 401), ("/health", 200), ("/ready", 200), ("/v1/models/small", 401)]
)
def test_what_needs_a_key(guarded: Live, path: str, status: int) -> None:
    assert ask(guarded, None, path)[0] == status
    assert ask(guarded, "sk-anna", path)[0] == 200


def test_too_many_requests_are_told_when_to_come_again(guarded: Live) -> None:
    assert ask(guarded, "sk-tom")[0] == 200
    status, headers, body = ask(guarded, "sk-tom")
    assert status == 429 and 0 < int(headers["retry-after"]) <= 60
    assert json.loads(body)["error"]["type"] == "rate_limit_error"


def test_tokens_of_prompt_and_answer_count(guarded: Live) -> None:
    body = {"model": "small", "prompt": [40, 41], "max_tokens": 6, "temperature": 0, "logit_bias": {"60": 100}}
    headers = {"Authorization": "Bearer sk-lily"}
    assert guarded.call("POST", "/v1/completions", body, headers)[0] == 200
    status, found, _ = guarded.call("POST", "/v1/completions", body, headers)
    assert status == 429 and int(found["retry-after"]) >= 1
