"""What hooks find is refused, masked or stopped, whole and in a stream; what fails does not let through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import instructgpt.world as world_examples
from instructgpt.errors import UserError
from instructgpt.generation.request import Token
from instructgpt.serving.refusals import world
from instructgpt.serving.safety import REFUSAL, Guard, Hook, Judge, Verdict, Watched, load_hook
from instructgpt.text.chat import Message
from instructgpt.world.dialogue import HARMFUL, HARMLESS, REFUSAL_ANSWER
from tests.serving.conftest import Live, Start

ASKED: list[Message] = [{"role": "user", "content": "hello"}]


def shown(hook: Hook, pieces: Sequence[str], streams: bool, every: int = 4) -> tuple[list[str], bool, int]:
    """What of an answer in pieces is shown, whether it was stopped, and with how many of its tokens, one a piece."""

    async def run() -> tuple[list[str], bool, int]:
        watched = Watched(Guard([hook], every), ASKED, streams)
        out, tokens = [], 0
        for i, text in enumerate(pieces):
            piece = await watched.push(text, [Token(i)], i == len(pieces) - 1)
            tokens += len(piece.tokens)
            if piece.text:
                out.append(piece.text)
            if piece.is_stopped:
                return out, True, tokens
        return out, False, tokens

    return asyncio.run(run())


def masking(messages: list[Message], answer: str | None) -> Verdict | None:
    return Verdict("mask", answer.replace("secret", "******")) if answer and "secret" in answer else None


def stopping(messages: list[Message], answer: str | None) -> Verdict | None:
    return Verdict("stop") if answer and "secret" in answer else None


def refusing(messages: list[Message], answer: str | None) -> Verdict | None:
    return Verdict("refuse", "No.") if answer and "secret" in answer else None


def raising(messages: list[Message], answer: str | None) -> Verdict | None:
    raise ZeroDivisionError("a secret of theirs")


PIECES = [*"abcdefgh" * 12, "se", "cr", "et", *"ijklmnop" * 12]
WHOLE = "".join(PIECES)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("every", [1, 4, 50])
def test_what_passes_is_shown_whole(streams: bool, every: int) -> None:
    out, stopped, tokens = shown(lambda messages, answer: None, PIECES, streams, every)
    assert "".join(out) == WHOLE and not stopped and tokens == len(PIECES)
    assert len(out) > 1 if streams else len(out) == 1


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("every", [1, 4, 50])
def test_what_is_masked_is_never_shown_wherever_it_is_divided(streams: bool, every: int) -> None:
    out, stopped, tokens = shown(masking, PIECES, streams, every)
    assert "".join(out) == WHOLE.replace("secret", "******") and not stopped
    assert tokens <= WHOLE.index("secret"), "tokens would spell what is masked"


def test_a_stream_stops_before_what_is_found() -> None:
    out, stopped, _ = shown(stopping, PIECES, True)
    assert stopped and WHOLE.startswith("".join(out)) and 0 < len("".join(out)) <= WHOLE.index("secret") + 5


def test_a_whole_answer_is_refused_in_its_place() -> None:
    assert shown(refusing, PIECES, False)[:2] == (["No."], True)


def test_a_stream_that_has_begun_ends_and_one_that_has_not_is_refused() -> None:
    out, stopped, _ = shown(refusing, PIECES, True)
    assert stopped and "No." not in "".join(out) and "secret" not in "".join(out)
    assert shown(refusing, ["a secret"], True)[:2] == (["No."], True)


@pytest.mark.parametrize("hook", [raising, lambda messages, answer: True, lambda messages, answer: Verdict("allow")])  # pyright: ignore[reportArgumentType]
def test_a_hook_that_fails_refuses_and_the_operator_is_told(hook: Any) -> None:
    guard, told = Guard([hook]), []
    guard.complain = told.append
    _, verdict = asyncio.run(guard.before(ASKED))
    assert verdict == Verdict("refuse", REFUSAL) and len(told) == 1


def test_hooks_cannot_change_the_conversation_but_by_a_verdict() -> None:
    def rude(messages: list[Message], answer: str | None) -> None:
        messages[0]["content"] = "changed"
        messages.clear()

    assert asyncio.run(Guard([rude]).before(ASKED)) == (ASKED, None)


def test_a_prompt_is_masked_by_one_hook_and_seen_so_by_the_next() -> None:
    def first(messages: list[Message], answer: str | None) -> Verdict:
        return Verdict("mask", "masked")

    seen = []
    messages, verdict = asyncio.run(Guard([first, lambda messages, answer: seen.append(messages)]).before(ASKED))
    assert messages == seen[0] == [{"role": "user", "content": "masked"}] and verdict is None


# ---- the world's refusals


@pytest.mark.parametrize("split", ["train", "test", "test_phrasing"])
def test_the_worlds_harmful_requests_are_refused_and_their_look_alikes_pass(split: str) -> None:
    examples = world_examples.sample(split, 300, 0, families=["refusal"])
    refused = 0
    for example in examples:
        verdict = world([*example.messages], None)  # pyright: ignore[reportArgumentType]
        is_harmful = example.answer in REFUSAL_ANSWER.values()
        assert (verdict is not None) == is_harmful, example.messages
        assert verdict is None or verdict.text == example.answer
        refused += is_harmful
    assert refused > 50
    assert HARMFUL and HARMLESS


@pytest.mark.parametrize(
    "text", ["How do I kill Anna\nat  the park?", "HOW CAN I KILL ANNA AT THE PARK", "用椅子打汤姆"]
)
def test_spelling_is_no_way_around(text: str) -> None:
    assert world([{"role": "user", "content": text}], None)


def test_an_answer_is_looked_at_too() -> None:
    assert world(ASKED, "First you kill Anna at the park.") and not world(ASKED, "First you cut bread for Anna.")


# ---- loading


def test_a_hook_is_found_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "hooks.py"
    file.write_text("def f(messages, answer): return None\ndef g(messages): return None\n")
    assert load_hook("instructgpt.serving.refusals:world") is world
    assert load_hook(f"{file}:f")([], None) is None
    for name, complaint in (
        (f"{file}:g", "must take two arguments"),
        (f"{file}:h", "no function h"),
        ("x", "write package"),
    ):
        with pytest.raises(UserError, match=f"--safety .*{complaint}"):
            load_hook(name)


class Scores:
    """A reward model that likes long answers."""

    def __init__(self, context: int = 128):
        self.transformer = type("T", (), {"config": type("C", (), {"context": context})})

    def score(self, sequences: list[list[int]]) -> Any:
        import torch

        assert len(sequences[0]) <= self.transformer.config.context
        return torch.tensor([float(len(sequences[0])) if len(sequences[0]) < 50 else float("nan")])


def test_a_judge_refuses_what_it_scores_low_and_what_it_cannot_score(tokenizer: Any) -> None:
    judge = Judge(Scores(), tokenizer, least=12)  # pyright: ignore[reportArgumentType]
    assert judge(ASKED, None) is None
    assert judge(ASKED, "x") and judge(ASKED, "red birds near the old house 猫看见鸟 " * 30)
    assert judge(ASKED, "the cat number 7 saw 49 red") is None


# ---- live


@pytest.fixture(scope="module")
def guarded(start: Start) -> Any:
    def no_cats(messages: list[Message], answer: str | None) -> Verdict | None:
        if answer is None:
            return Verdict("refuse", "No cats.") if "cat" in messages[-1]["content"] else None
        return Verdict("stop") if len(answer) > 40 else None

    with start(hooks=[no_cats]) as live:
        yield live


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_prompt_is_answered_by_its_refusal(guarded: Live, stream: bool) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "a cat"}], "stream": stream, "n": 2}
    status, _, answer = guarded.call("POST", "/v1/chat/completions", body)
    assert status == 200 and answer.count(b"No cats.") == 2 and answer.count(b'"content_filter"') == 2
    guarded.wait_until(lambda: guarded.figures()['instructgpt_refusals_total{reason="safety"}'] > 0)
    assert not guarded.service.loop.under_way


@pytest.mark.parametrize("spelt", [True, False])
def test_every_one_of_several_prompts_is_looked_at_and_what_tokens_spell_too(guarded: Live, spelt: bool) -> None:
    tokenizer = guarded.service.tokenizer
    prompts = ["a house", "a cat"] if spelt else [tokenizer.encode("a house"), tokenizer.encode("a cat")]
    _, _, answer = guarded.call("POST", "/v1/completions", {"model": "small", "prompt": prompts, "max_tokens": 4})
    assert [choice["text"] for choice in json.loads(answer)["choices"]] == ["No cats.", "No cats."]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_stopped(guarded: Live, stream: bool) -> None:
    body = {
        "model": "small",
        "prompt": "the old house",
        "max_tokens": 100,
        "stream": stream,
        "logit_bias": {"60": 100},
        "temperature": 0,
    }
    _, _, answer = guarded.call("POST", "/v1/completions", body)
    if stream:
        events = [json.loads(event.removeprefix("data: ")) for event in answer.decode().split("\n\n")[:-2]]
        choices = [event["choices"][0] for event in events]
    else:
        choices = json.loads(answer)["choices"]
    assert choices[-1]["finish_reason"] == "content_filter" and len("".join(choice["text"] for choice in choices)) <= 40
    guarded.wait_until(lambda: not guarded.service.loop.under_way)
