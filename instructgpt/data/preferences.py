"""Preference files to pairs, or rankings, of answers to the same prompt.

Records have `chosen` and `rejected`, as text, as a message or as a whole list of messages, beside a prompt: Alpaca's
fields, `prompt` (text or messages), `messages`, or ShareGPT's `conversations`. Without `chosen`, Alpaca's `output` is
the chosen one. Without a prompt, they are transcripts as in HH-RLHF (Bai et al. 2022), or lists of messages, that have
all turns but the last in common. A `ranking`, a list of answers beside a prompt, has the best one first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    templated_answer,
    templated_prompt,
    text_of,
    transcript_turns,
    unknown_format,
    with_system,
)
from instructgpt.data.data_file import DataFile
from instructgpt.data.fields import Fields
from instructgpt.data.templates import Templates
from instructgpt.errors import UserError
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
    files: Iterable[DataFile | str | Path], account: Account | None = None, strict: bool = False, unique: bool = False
) -> Iterator[Preference]:
    """The pairs in the files, in order, streamed; arguments and errors are those of `read_instructions`."""
    counts, files = account if account is not None else Account(), _checked(files)
    return convert_files(
        files, counts, strict, lambda record, templates: [_preference(record, templates, counts)], unique
    )


def read_rankings(
    files: Iterable[DataFile | str | Path], account: Account | None = None, strict: bool = False, unique: bool = False
) -> Iterator[Ranking]:
    """The rankings and the pairs in the files, pairs as rankings of two, in order, streamed; see `read_preferences`."""
    counts, files = account if account is not None else Account(), _checked(files)
    return convert_files(files, counts, strict, lambda record, templates: [_ranking(record, templates, counts)], unique)


def _checked(files: Iterable[DataFile | str | Path]) -> list[DataFile]:
    """The files. Raises UserError for templates that make no pair."""
    found = [DataFile.of(file) for file in files]
    for file in found:
        if file.templates.prompt and not (file.templates.better and file.templates.rejected):
            raise UserError("--prompt, --chosen and --rejected go together: give all three, or none", file.path)
    return found


def _ranking(record: Fields, templates: Templates, account: Account) -> Ranking:
    if "ranking" not in record or templates.prompt:
        pair = _preference(record, templates, account, _KNOWN_RANKINGS)
        return Ranking(pair.messages, (pair.chosen, pair.rejected))
    answers = record.take("ranking")
    if not isinstance(answers, list):
        raise Unusable(f"{kind_of(answers)} where a list of answers should be, in 'ranking'")
    texts = tuple(reply_text(Fields({"ranking": answer}), "ranking") for answer in answers)
    if len(texts) < 2:
        raise Unusable("a ranking of fewer than two answers")
    if len(set(texts)) < len(texts):
        raise Unusable("two equal answers in a ranking")
    return Ranking(with_system(prompt_turns(record, account), record, templates), texts)


def _preference(record: Fields, templates: Templates, account: Account, known: str = _KNOWN) -> Preference:
    if templates.prompt and templates.better and templates.rejected:
        messages = templated_prompt(record, templates.prompt, account)
        chosen, rejected = (templated_answer(record, each) for each in (templates.better, templates.rejected))
    else:
        messages, chosen, rejected = _found(record, account, known)
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    return Preference(with_system(messages, record, templates), chosen, rejected)


def _found(record: Fields, account: Account, known: str) -> tuple[list[Message], str, str]:
    """Prompt and answers as a record's own format says."""
    chosen_field = record.first(("chosen", *ANSWER_FIELDS))
    if chosen_field is None or "rejected" not in record:
        raise unknown_format(record, known)
    if record.first((*PROMPT_FIELDS, "messages", "conversations")) is None:
        return _conversations(record, account)
    return prompt_turns(record, account), reply_text(record, chosen_field), reply_text(record, "rejected")


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
