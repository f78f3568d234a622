"""Preference files to pairs, or rankings, of answers to the same prompt.

Records have `chosen` and `rejected`, as text, as a message or as a whole list of messages, beside a prompt: Alpaca's
fields, `prompt` (text or messages), `messages`, or ShareGPT's `conversations`. Without `chosen`, Alpaca's `output` is
the chosen one. Without a prompt, they are transcripts as in HH-RLHF (Bai et al. 2022), or lists of messages, that have
all turns but the last in common. A `ranking`, a list of answers beside a prompt, has the best one first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instructgpt.data.account import Account, Unusable, kind_of
from instructgpt.data.conversation import (
    ANSWER_FIELDS,
    PROMPT_FIELDS,
    convert_files,
    field_turns,
    is_transcript,
    prompt_turns,
    reply_text,
    text_of,
    transcript_turns,
    unknown_format,
)
from instructgpt.data.fields import Fields
from instructgpt.text.chat import Message

_KNOWN = "prompt or instruction or messages with chosen and rejected, and HH-RLHF transcripts (chosen, rejected)"
_KNOWN_RANKINGS = f"{_KNOWN}, and prompts with a ranking"


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt."""

    messages: list[Message]
    """The prompt; it ends with the user's turn."""
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Ranking:
    """Two or more answers to one prompt, the best first (Ouyang et al. 2022 collected 4 to 9)."""

    messages: list[Message]
    """The prompt; it ends with the user's turn."""
    answers: tuple[str, ...]
    """No two alike."""


def read_preferences(
    paths: Iterable[str | Path],
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    account: Account | None = None,
    strict: bool = False,
) -> Iterator[Preference]:
    """The pairs in the files, in order, streamed; arguments and errors are those of `read_instructions`."""
    counts = account if account is not None else Account()
    return convert_files(paths, columns, encoding, counts, strict, lambda record: [_preference(record, counts)])


def read_rankings(
    paths: Iterable[str | Path],
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    account: Account | None = None,
    strict: bool = False,
) -> Iterator[Ranking]:
    """The rankings and the pairs in the files, pairs as rankings of two, in order, streamed; see `read_preferences`."""
    counts = account if account is not None else Account()
    return convert_files(paths, columns, encoding, counts, strict, lambda record: [_ranking(record, counts)])


def _ranking(record: Fields, account: Account) -> Ranking:
    if "ranking" not in record:
        pair = _preference(record, account, _KNOWN_RANKINGS)
        return Ranking(pair.messages, (pair.chosen, pair.rejected))
    answers = record.take("ranking")
    if not isinstance(answers, list):
        raise Unusable(f"{kind_of(answers)} where a list of answers should be, in 'ranking'")
    texts = tuple(reply_text(Fields({"ranking": answer}), "ranking") for answer in answers)
    if len(texts) < 2:
        raise Unusable("a ranking of fewer than two answers")
    if len(set(texts)) < len(texts):
        raise Unusable("two equal answers in a ranking")
    return Ranking(prompt_turns(record, account), texts)


def _preference(record: Fields, account: Account, known: str = _KNOWN) -> Preference:
    chosen_field = record.first(("chosen", *ANSWER_FIELDS))
    if chosen_field is None or "rejected" not in record:
        raise unknown_format(record, known)
    if record.first((*PROMPT_FIELDS, "messages", "conversations")) is None:
        messages, chosen, rejected = _conversations(record, account)
    else:
        messages = prompt_turns(record, account)
        chosen, rejected = reply_text(record, chosen_field), reply_text(record, "rejected")
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    return Preference(messages, chosen, rejected)


def _conversations(record: Fields, account: Account) -> tuple[list[Message], str, str]:
    """Prompt and answers of two whole conversations that differ in the last turn."""
    halves = []
    for field in ("chosen", "rejected"):
        value = record.peek(field)
        if is_transcript(value):
            turns = transcript_turns(text_of(record, field), account)
        elif isinstance(value, list):
            turns = field_turns(record, field, account)
        elif isinstance(value, str):
            raise unknown_format(record, _KNOWN)
        else:
            turns = field_turns(Fields({field: [value]}), field, account)
        if not turns or turns[-1]["role"] != "assistant":
            raise Unusable("a conversation that does not end with the assistant's turn")
        halves.append(turns)
    chosen, rejected = halves
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("different prompts in the two halves")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]
