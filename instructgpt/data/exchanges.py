"""A record as prompts and answers to them, the same for every stage: instructions, preferences and queries read these.

record ──► prompt_turns (data/prompts) ──┐
       └─► answers      (data/answers) ──┴─► Exchange ──► conversation, preference or query
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from instructgpt.data.account import Account, OtherFormat, Unusable, names_of
from instructgpt.data.answers import (
    Answer,
    answer_in,
    best_answer,
    compared_answers,
    has_chosen,
    is_bad,
    peeked_answers,
)
from instructgpt.data.fields import Fields, is_filled
from instructgpt.data.languages import is_language, parallel_columns
from instructgpt.data.names import ANSWER_FIELDS, CHOSEN_FIELDS, HISTORY_FIELD, PROMPT_FIELDS, TURN_FIELDS
from instructgpt.data.prompts import plain, prompt_turns, repeats, text_in, turn_field
from instructgpt.data.templates import Template, Templates
from instructgpt.data.turns import field_turns, joined, looks_like_turns, turn
from instructgpt.text.chat import Message

_ANSWERS = (*ANSWER_FIELDS, *CHOSEN_FIELDS)


@dataclass(frozen=True)
class Exchange:
    """A prompt and what stands in the data as answers to it."""

    prompt: list[Message]
    """It ends with the user's turn."""
    answers: tuple[str, ...] = ()
    """The best first; none, where the data have only the prompt."""
    is_bad: bool = False
    """The data say that the answer is a bad one."""
    learn: bool = True
    """False where the data say that the answer is context only."""


def answered(
    fields: Fields, templates: Templates, account: Account, known: str, needs_answer: bool = True
) -> list[Exchange | Unusable]:
    """The prompt of a record with its answer, or the best of them; two of each if it is in two languages.

    What the templates make comes first; the rest is found by the record's format.
    known: the formats, to be told where the record has none of them.
    needs_answer: a record is of none of them, too, if it has but a text that could be a prompt.
    """
    if templates.prompt:
        answers = [templates.better] if templates.better else []
        made = _templated(fields, templates.prompt, answers, account)
        found: list[Exchange | Unusable] = [replace(made, is_bad=is_bad(fields, templated=True))]
    else:
        found = _each(fields, lambda view: [_answered(view, account, known, needs_answer)])
    return _with_system(found, fields, templates)


def compared(fields: Fields, templates: Templates, account: Account, known: str) -> list[Exchange | Unusable]:
    """The prompt of a record with two answers or more, the best first; see `answered`.

    Where several answers are worse than one, but not compared with each other, each makes a pair with it.
    """
    if templates.prompt and templates.better and templates.rejected:
        both = _templated(fields, templates.prompt, [templates.better, templates.rejected], account)
        found = [_ranking(both.prompt, both.answers)]
    else:
        found = _each(fields, lambda view: _compared(view, account, known))
    return _with_system(found, fields, templates)


def _each(fields: Fields, make: Callable[[Fields], Sequence[Exchange | Unusable]]) -> list[Exchange | Unusable]:
    """For a record in one language, or for each language that the names of its fields begin with."""
    patterns = _languages(fields)
    if not patterns:
        return list(make(fields))
    return [found for pattern in patterns for found in _attempt(make, fields.within(pattern))]


def _attempt(make: Callable[[Fields], Sequence[Exchange | Unusable]], view: Fields) -> Sequence[Exchange | Unusable]:
    """One bad half does not spoil the other."""
    try:
        return make(view)
    except Unusable as unusable:
        return [unusable]


def _languages(fields: Fields) -> list[str]:
    """`en_{}` where there are `en_instruction` and `en_output`, and `{}` if there is `instruction` too."""
    there = _patterns(fields.names)
    found = [one for one in there if fields.within(one).first(PROMPT_FIELDS) and fields.within(one).first(_ANSWERS)]
    return [*found, "{}"] if found and fields.first(PROMPT_FIELDS) is not None else found


@lru_cache(1024)
def _patterns(names: tuple[str, ...]) -> list[str]:
    """Languages that these names begin or end with."""
    found: set[str] = set()
    for name in names:
        before, _, last = name.rpartition("_")
        first, _, after = name.partition("_")
        found |= {f"{before}_{{}}"} if last in PROMPT_FIELDS and is_language(before) else set()
        found |= {f"{{}}_{after}"} if first in PROMPT_FIELDS and is_language(after) else set()
    return sorted(found)


# ---- one answer


def _answered(fields: Fields, account: Account, known: str, needs_answer: bool) -> Exchange:
    turns = prompt_turns(fields, account, peeked_answers(fields))
    bad = is_bad(fields)
    if turns and turns[-1]["role"] == "assistant" and not has_chosen(fields):
        return Exchange(turns[:-1], (turns[-1]["content"],), bad, turns[-1].get("learn", True))
    answer = best_answer(fields, account)
    if _has_user(turns) or (answer is not None and answer.before):
        if answer is not None:
            return Exchange(_whole(turns, answer, account), (answer.text,), bad)
        if not needs_answer or _is_asked(fields):
            return Exchange(turns)
    elif (pair := _translated(fields)) is not None:
        return pair
    elif answer is not None:
        if fields.first(PROMPT_FIELDS) is not None:
            raise Unusable("empty prompt")
        raise Unusable("no prompt", f"it has {names_of(fields)}, none of {', '.join(PROMPT_FIELDS)}")
    elif any(name in fields for name in TURN_FIELDS):
        raise no_answer(fields)
    raise OtherFormat("none of the known formats", f"it has {names_of(fields)}; known are {known}")


def _has_user(turns: list[Message]) -> bool:
    return any(one["role"] == "user" for one in turns)


def _is_asked(fields: Fields) -> bool:
    """Whether there is a prompt by its name, and not merely a text that could be one."""
    return turn_field(fields) is not None or fields.first((*PROMPT_FIELDS, HISTORY_FIELD)) is not None


def no_answer(fields: Fields) -> Unusable:
    return Unusable("no answer", f"it has {names_of(fields)}, none of {', '.join(ANSWER_FIELDS[:5])}")


def _translated(fields: Fields) -> Exchange | None:
    """A text and its translation, in fields of the record or of an object in it."""
    view = fields
    pair = parallel_columns(fields)
    if pair is None:
        objects = [name for name in fields.filled() if isinstance(fields.peek(name), dict)]
        inner = [name for name in objects if parallel_columns(Fields(fields.peek(name))) is not None]
        if len(inner) != 1:
            return None
        view = fields.inner(inner[0], fields.peek(inner[0]))
        pair = parallel_columns(view)
    assert pair is not None
    text, translation = (text_in(view, name) if is_filled(view.peek(name)) else "" for name in pair)
    if not text.strip() or not translation.strip():
        raise Unusable("empty answer" if text.strip() else "empty prompt")
    return Exchange([turn("user", text)], (translation,))


# ---- several answers


def _compared(fields: Fields, account: Account, known: str) -> list[Exchange | Unusable]:
    answers = compared_answers(fields, account)
    turns = prompt_turns(fields, account, [answer.text for answer in answers or ()])
    has_prompt = answers is not None and (_has_user(turns) or bool(answers[0].before))
    if answers is not None and not has_prompt and fields.first(PROMPT_FIELDS) is not None:
        raise Unusable("empty prompt")
    if answers is None or not has_prompt:
        raise OtherFormat("none of the known formats", f"it has {names_of(fields)}; known are {known}")
    if len(answers) < 2:
        raise Unusable("a ranking of fewer than two answers")
    prompts = [_whole(turns, answer, account) for answer in answers]
    if any(prompt != prompts[0] for prompt in prompts):
        raise Unusable("different prompts in the two halves")
    texts = [answer.text for answer in answers]
    if answers[1].tied:
        return [_ranking(prompts[0], [texts[0], worse]) for worse in texts[1:]]
    return [_ranking(prompts[0], texts)]


def _ranking(prompt: list[Message], texts: Sequence[str]) -> Exchange | Unusable:
    if len(set(texts)) == len(texts):
        return Exchange(prompt, tuple(texts))
    return Unusable("chosen equals rejected" if len(texts) == 2 else "two equal answers in a ranking")


# ---- templates


def _templated(fields: Fields, prompt: Template, answers: Sequence[Template], account: Account) -> Exchange:
    """What templates make of a record."""
    turns = _templated_prompt(fields, prompt, account)
    return Exchange(turns, tuple(_templated_answer(fields, answer, account) for answer in answers))


def _templated_prompt(fields: Fields, template: Template, account: Account) -> list[Message]:
    """The turns that --prompt makes of a record; a field that is a list of messages is taken as such."""
    only = template.only
    value = only.value(fields) if only else None
    if only and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        turns = field_turns(Fields({only.path: value}), only.path, account)
    else:
        turns = joined([turn("user", template.fill(fields))], account)
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user's turn")
    return turns


def _templated_answer(fields: Fields, template: Template, account: Account) -> str:
    """The answer that a template makes of a record; of a message or a list of them, the last one's text."""
    only = template.only
    value = only.value(fields) if only else None
    if only and (isinstance(value, dict) or looks_like_turns(value)):
        return answer_in(Fields({only.path: value}), only.path, account).text
    if not (text := template.fill(fields)).strip():
        raise Unusable("empty answer")
    return text


def _with_system(found: list[Exchange | Unusable], fields: Fields, templates: Templates) -> list[Exchange | Unusable]:
    """Exchanges behind the system message that --system makes, if there is one: it takes the place of theirs."""
    system = templates.system.fill(fields) if templates.system else ""
    if not system.strip():
        return found

    def behind(one: Exchange | Unusable) -> Exchange | Unusable:
        if isinstance(one, Unusable):
            return one
        rest = [said for said in one.prompt if said["role"] != "system"]
        return replace(one, prompt=[turn("system", system), *rest])

    return [behind(one) for one in found]


# ---- a prompt and the turns before an answer


def _whole(turns: list[Message], answer: Answer, account: Account) -> list[Message]:
    """The prompt with the turns that the answer brings along, each of them once."""
    before = [one for one in answer.before if one["role"] != "system"]
    asked = [one for one in turns if one["role"] != "system"]
    if asked and asked[-1]["role"] == "assistant" and (before or plain(asked[-1]["content"]) == plain(answer.text)):
        asked = asked[:-1]  # `messages` that have an answer themselves
    system: list[str] = []
    for one in (*turns, *answer.before):
        if one["role"] == "system" and not repeats(system, one["content"]):
            system.append(one["content"])
    both = _merged(asked, before)
    result = joined([turn("system", "\n\n".join(system)), *both], account)
    if not result or result[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user's turn")
    return result


def _merged(first: list[Message], second: list[Message]) -> list[Message]:
    """Two lists of turns as one, where the first may be a part of the second, or end as the second begins."""
    for start in range(len(second) - len(first) + 1 if first else 0):
        if all(map(_same, first, second[start:])):
            middle = map(_fuller, first, second[start:])
            return [*second[:start], *middle, *second[start + len(first) :]]
    for shared in range(min(len(first), len(second)), 0, -1):
        if all(map(_same, first[-shared:], second)):
            return [*first[:-shared], *map(_fuller, first[-shared:], second), *second[shared:]]
    return [*first, *second]


def _same(one: Message, other: Message) -> bool:
    """Whether two turns are one, of which one may have a passage besides."""
    texts = sorted((one["content"], other["content"]), key=len)
    return one["role"] == other["role"] and (
        repeats([texts[1]], texts[0]) or plain(texts[0]) in map(plain, texts[1].split("\n\n"))
    )


def _fuller(one: Message, other: Message) -> Message:
    return max(one, other, key=lambda each: len(plain(each["content"])))
