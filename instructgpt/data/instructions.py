"""Instruction files to conversations that end with the assistant's turn.

| format | a record | becomes |
|---|---|---|
| Alpaca, Dolly | instruction, input or context, output or response (system, history) | one turn and its answer |
| the same in two languages | en_instruction, …, instruction, … | two conversations |
| chat, ShareGPT | messages: [{role, content}], conversations: [{from, value}] (and system) | as it is |
| self-instruct, SQuAD | instruction, instances: [{input, output}] | a conversation for each instance |
| question and answer | prompt or question, answer or response or completion | one turn and its answer |
| preferences | what `data/preferences` reads | the chosen one |
| good and bad (KTO) | one of these and label or kto_tag: true or false | the good ones |
| parallel text | two columns, two languages | the first is the prompt, the second the answer |
| anything else | any fields | what templates make of them |

Which names mean what is in `data/names`, how conversations are written in `data/turns`, what wraps records in
`data/shapes`. A turn of the assistant marked `weight: 0`, `train: false` or the like is read and not learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from instructgpt.data.account import Account, Unusable
from instructgpt.data.data_file import DataFile
from instructgpt.data.exchanges import Exchange, answered, no_answer
from instructgpt.data.fields import Fields
from instructgpt.data.records import convert_files
from instructgpt.data.templates import Templates
from instructgpt.data.turns import turn
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, is_learnt

KNOWN = (
    "Alpaca (instruction, output), chat (messages), ShareGPT (conversations), self-instruct (instances), prompt or "
    "question with answer, and two columns of parallel text; name others with --prompt and --answer, as in '{text}'"
)


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


def _conversations(record: Fields, templates: Templates, account: Account) -> Iterator[list[Message] | Unusable]:
    for exchange in answered(record, templates, account, KNOWN):
        yield exchange if isinstance(exchange, Unusable) else conversation(exchange, record, account)


def conversation(exchange: Exchange, record: Fields, account: Account) -> list[Message] | Unusable:
    """The prompt and its answer, up to the last turn that is to be learnt."""
    if exchange.is_bad:
        return Unusable("labelled as a bad answer")
    turns = [*exchange.prompt, *(turn("assistant", answer, exchange.learn) for answer in exchange.answers[:1])]
    last = max((i for i, one in enumerate(turns) if is_learnt(one)), default=None)
    if last is None:
        answers = any(one["role"] == "assistant" for one in turns)
        return Unusable("no answer that is to be learnt") if answers else no_answer(record)
    if last + 1 < len(turns):
        account.note(
            "an unanswered last turn, left out"
            if last + 2 == len(turns)
            else "turns after the last that is to be learnt, left out"
        )
    return turns[: last + 1]
