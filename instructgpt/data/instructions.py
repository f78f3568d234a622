"""Instruction files to conversations that end with the assistant's turn.

| format | a record | becomes |
|---|---|---|
| Alpaca | instruction, input, output (and system, history) | one turn and its answer |
| the same in two languages | en_instruction, …, instruction, … | two conversations |
| chat, ShareGPT | messages: [{role, content}], conversations: [{from, value}] | as it is |
| self-instruct | instruction, instances: [{input, output}] | a conversation for each instance |
| question and answer | prompt or question, answer or response or completion | one turn and its answer |
| preferences | chosen, rejected beside one of these, or HH-RLHF transcripts | the chosen one |
| good and bad (KTO) | one of these and label: true or false | the good ones |
| parallel text | two columns | the first is the prompt, the second the answer |
| anything else | any fields | what templates make of them |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from instructgpt.data.account import Account, Unusable, kind_of, names_of
from instructgpt.data.conversation import (
    ANSWER_FIELDS,
    PROMPT_FIELDS,
    alpaca_prompt,
    attempt,
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

_KNOWN = (
    "Alpaca (instruction, output), chat (messages), ShareGPT (conversations), self-instruct (instances), prompt or "
    "question with answer, and two columns of parallel text; name others with --prompt and --answer, as in '{text}'"
)
_PARALLEL_COLUMNS = (("1", "2"), ("source", "target"), ("src", "tgt"))
_LANGUAGES = frozenset(("en", "zh", "fr", "de", "es", "english", "chinese", "french", "german", "spanish"))
_PREFIXES = ("en_", "zh_", "")


def read_instructions(
    files: Iterable[DataFile | str | Path], account: Account | None = None, strict: bool = False, unique: bool = False
) -> Iterator[list[Message]]:
    """The conversations in the files, in order, streamed; `account` counts what was read, dropped and why.

    strict: stop at the first unusable record, instead of dropping and counting it.
    unique: leave out what is exactly equal to a conversation before, by `account.seen`.

    Raises UserError, with FILE:LINE where there is one, for what `read_records` refuses, a file in which nothing is
    usable (the complaint is that of its first record), and templates that make no answer or name what no record has.
    """
    files = [DataFile.of(file) for file in files]
    for file in files:
        if file.templates.prompt and not file.templates.better:
            raise UserError("--prompt and --answer go together: give both, or neither", file.path)
    counts = account if account is not None else Account()
    return convert_files(
        files, counts, strict, lambda record, templates: _conversations(record, templates, counts), unique
    )


def _conversations(record: Fields, templates: Templates, account: Account) -> list[list[Message] | Unusable]:
    if templates.prompt and templates.better:
        prompt = templated_prompt(record, templates.prompt, account)
        answer = templated_answer(record, templates.better)
        return [with_system([*prompt, {"role": "assistant", "content": answer}], record, templates)]
    found = _found(record, account)
    return [each if isinstance(each, Unusable) else with_system(each, record, templates) for each in found]


def _found(record: Fields, account: Account) -> list[list[Message] | Unusable]:
    """What a record's own format says."""
    if record.take("label") is False:
        raise Unusable("labelled as a bad answer")
    if "instances" in record:
        return _instances(record, account)
    if any(f"{prefix}instruction" in record for prefix in ("en_", "zh_")):
        present = [prefix for prefix in _PREFIXES if f"{prefix}instruction" in record]
        return [attempt(_alpaca, record, account, prefix) for prefix in present]
    return [_conversation(record, account)]


def _conversation(record: Fields, account: Account) -> list[Message]:
    for field in ("messages", "conversations"):
        if field in record and "chosen" not in record:
            return _answered(field_turns(record, field, account), account)
    if is_transcript(record.peek("chosen")) and record.first(PROMPT_FIELDS) is None:
        return _answered(transcript_turns(record.take("chosen"), account), account)
    if record.first((*PROMPT_FIELDS, "messages", "conversations")) is not None:
        return [*prompt_turns(record, account), {"role": "assistant", "content": _answer(record)}]
    pair = _parallel_columns(record)
    if pair is None:
        raise unknown_format(record, _KNOWN)
    return _exchange(text_of(record, pair[0]), text_of(record, pair[1]))


def _instances(record: Fields, account: Account) -> list[list[Message] | Unusable]:
    instances = record.take("instances")
    if not isinstance(instances, list) or not instances:
        raise Unusable(f"{kind_of(instances) if instances else 'nothing'} where a list of instances should be")
    instruction = text_of(record, "instruction")

    def conversation(instance: object) -> list[Message]:
        if not isinstance(instance, dict):
            raise Unusable(f"{kind_of(instance)} where an instance should be")
        return _alpaca(record.inner("instances", {**instance, "instruction": instruction}), account)

    return [attempt(conversation, instance) for instance in instances]


def _alpaca(record: Fields, account: Account, prefix: str = "") -> list[Message]:
    return _exchange(alpaca_prompt(record, account, prefix), _answer(record, prefix))


def _answer(record: Fields, prefix: str = "") -> str:
    field = record.first([prefix + name for name in (*ANSWER_FIELDS, "chosen")])
    if field is None:
        raise Unusable("no answer", f"it has {names_of(record)}, none of {', '.join(ANSWER_FIELDS)}")
    return reply_text(record, field)


def _answered(turns: list[Message], account: Account) -> list[Message]:
    """Up to the assistant's last turn."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise Unusable("no answer", "the conversation has no turn of the assistant")
    if turns[-1]["role"] != "assistant":
        account.note("an unanswered last turn, left out")
        return turns[:-1]
    return turns


def _exchange(prompt: str, answer: str) -> list[Message]:
    if not prompt.strip():
        raise Unusable("empty prompt")
    if not answer.strip():
        raise Unusable("empty answer")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _parallel_columns(record: Fields) -> tuple[str, str] | None:
    for pair in _PARALLEL_COLUMNS:
        if pair[0] in record and pair[1] in record:
            return pair
    languages = [name for name in record.filled() if name.lower() in _LANGUAGES]
    return (languages[0], languages[1]) if len(languages) == 2 else None
