"""The answers in a record, beside its prompt or with turns of their own before them, and which is the better one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from instructgpt.data.account import Account, Unusable, kind_of
from instructgpt.data.choices import label_of
from instructgpt.data.fields import Fields, is_filled, text, truth
from instructgpt.data.names import (
    ANSWER_FIELDS,
    CHOSEN_FIELDS,
    CLASS_FIELDS,
    MARK_FIELDS,
    PAIR_FIELDS,
    RANK_FIELD,
    RANKING_FIELDS,
    REJECTED_FIELDS,
    SCORE_FIELDS,
)
from instructgpt.data.turns import field_turns, is_transcript, looks_like_turns, message_text, parsed
from instructgpt.text.chat import Message

_TEXT_FIELDS = ("answer", "response", "text", "completion", "output", "content")
# Two answers in fields that differ in their ends, and the fields that say which is better.
_ENDS = (("1", "2"), ("a", "b"), ("0", "1"))
_NUMBERED = ("response", "answer", "completion", "output", "human_ref", "summary", "chosen", "conversation")
_NUMBERED_FIELDS = tuple(f"{base}_{ends[0]}" for base, ends in product(_NUMBERED, _ENDS))
_VERDICTS = (
    *("winner", "preferred", "preference", "choice", "better", "better_response", "better_response_id", "verdict"),
    *("label", "labels", "overall_preference", "preference_strength", "chosen"),
)


@dataclass(frozen=True)
class Answer:
    """What stands in one field as an answer."""

    text: str
    before: tuple[Message, ...] = ()
    """The turns that go before it, where it comes as the last of a conversation."""
    tied: int = 0
    """Answers of a record with the same number are not compared with each other."""


def best_answer(fields: Fields, account: Account) -> Answer | None:
    """The answer that is to be given; None where the record has none in a field of its own. Raises Unusable."""
    if (chosen := _chosen(fields)) is not None:
        return answer_in(fields, chosen, account)
    if _rejected(fields) is None and (ranked := _ranked(fields, account)):
        return ranked[0]
    name = fields.first(ANSWER_FIELDS)
    return None if name is None else answer_in(fields, name, account)


def compared_answers(fields: Fields, account: Account) -> list[Answer] | None:
    """The answers, the best first; None where nothing in the record says that one is better. Raises Unusable."""
    rejected = _rejected(fields)
    if rejected is None:
        return _ranked(fields, account) or None
    if (best := best_answer(fields, account)) is None:
        return None
    value = parsed(fields.peek(rejected))
    if isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
        fields.take(rejected)
        return [best, *(Answer(_not_blank(one), tied=1) for one in value)]
    return [best, answer_in(fields, rejected, account)]


def has_chosen(fields: Fields) -> bool:
    """Whether one of the record's answers is called the better one."""
    return _chosen(fields) is not None


def peeked_answers(fields: Fields) -> list[str]:
    """The text of the answer in a field of its own, if there is one; nothing is taken."""
    name = _chosen(fields) or fields.first(ANSWER_FIELDS)
    value = fields.peek(name) if name else None
    return [value] if isinstance(value, str) and value.strip() else []


def _chosen(fields: Fields) -> str | None:
    name = fields.first(CHOSEN_FIELDS)
    # `accepted: true` is a mark.
    sure = name == "chosen" or _rejected(fields) is not None
    return name if name and sure and not isinstance(fields.peek(name), bool) else None


def _rejected(fields: Fields) -> str | None:
    name = fields.first(REJECTED_FIELDS)
    return name if name and not isinstance(fields.peek(name), bool) else None


def answer_in(fields: Fields, name: str, account: Account) -> Answer:
    """The answer in a field: text, a message, a conversation that ends with it, or the first of several right ones."""
    value = parsed(fields.take(name))
    if value == []:
        raise Unusable("no answer", f"an empty list in {name!r}")
    if is_transcript(value) or looks_like_turns(value):
        turns = field_turns(fields, name, account, whole=False)
        if not turns or turns[-1]["role"] != "assistant":
            raise Unusable("a conversation that does not end with the assistant's turn")
        return Answer(turns[-1]["content"], tuple(turns[:-1]))
    if isinstance(value, list) and value and all(isinstance(one, (str, int, float)) for one in value):
        if len(value) > 1:
            kind = "the better" if name in PAIR_FIELDS else "the first"
            account.note(f"several answers in {name!r}, {kind} one taken")
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        if len(value) > 1:
            account.note(f"several answers in {name!r}, the first one taken")
        value = value[0]
    if isinstance(value, dict):
        inner = fields.inner(name, value)
        inner.take(inner.first(("role", "from")) or "")
        texts = inner.peek("text")
        if isinstance(texts, list) and texts and all(isinstance(one, str) for one in texts):  # SQuAD
            inner.take("text")
            return Answer(_not_blank(texts[0]))
        return Answer(_not_blank(message_text(inner)))
    return Answer(_not_blank(label_of(value, fields) or text(value, name)))


def _not_blank(words: str) -> str:
    if not words.strip():
        raise Unusable("empty answer")
    return words


# ---- rankings


def _ranked(fields: Fields, account: Account) -> list[Answer]:
    """Answers in an order of worth: a ranking, a list with ranks or scores, two texts, or two fields and a verdict."""
    for name in fields.present(RANKING_FIELDS):
        value = parsed(fields.peek(name))
        if found := _by_worth(fields, name, value, account):
            return found
        if name in ("ranking", "ranked") and value is not None:
            return _listed(fields, name, value, account)
    for name in fields.present(PAIR_FIELDS):
        value = parsed(fields.peek(name))
        if isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
            fields.take(name)
            return [Answer(_not_blank(one)) for one in value]
    return _by_verdict(fields, account)


def _listed(fields: Fields, name: str, value: Any, account: Account) -> list[Answer]:
    if not isinstance(value, list):
        raise Unusable(f"{kind_of(value)} where a list of answers should be, in {name!r}")
    fields.take(name)
    return [answer_in(Fields({name: one}), name, account) for one in value]


def _by_worth(fields: Fields, name: str, items: Any, account: Account) -> list[Answer]:
    """Objects that hold an answer and its rank or score, the best first; [] if this is something else."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or looks_like_turns(items):
        return []
    views = [Fields(item) for item in items]
    known = [
        field for field in (RANK_FIELD, *SCORE_FIELDS) if all(_number(view.peek(field)) is not None for view in views)
    ]
    worth_field = known[0] if views and known else None
    if worth_field is None or any(view.first(_TEXT_FIELDS) is None for view in views):
        return []
    sign = 1 if worth_field == RANK_FIELD else -1
    found: dict[float, Answer] = {}
    for view in (fields.inner(name, item) for item in items):
        worth = sign * (_number(view.take(worth_field)) or 0.0)
        field = view.first(_TEXT_FIELDS) or ""
        found.setdefault(worth, Answer(_not_blank(text(view.take(field), name))))
    if len(found) < len(items):
        account.note("answers that are worth the same, one of them kept")
    return [found[worth] for worth in sorted(found)]


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


# ---- two answers and a verdict


def _by_verdict(fields: Fields, account: Account) -> list[Answer]:
    if not fields.present(_NUMBERED_FIELDS):
        return []
    for base, ends in product(_NUMBERED, _ENDS):
        names = [f"{base}_{end}" for end in ends]
        if all(is_filled(fields.peek(name)) for name in names):
            better = _better(fields, ends)
            if better is None:
                raise Unusable("two answers, and nothing that says which is the better")
            both = [answer_in(fields, name, account) for name in names]
            return both if better == 0 else both[::-1]
    return []


def _better(fields: Fields, ends: tuple[str, str]) -> int | None:
    """Which of two answers, 0 or 1, the record calls the better one."""
    for score in SCORE_FIELDS:
        first, second = (_number(fields.peek(f"{score}_{end}")) for end in ends)
        if first is not None and second is not None and first != second:
            for end in ends:
                fields.take(f"{score}_{end}")
            return int(second > first)
    for prefix in ("winner", "winner_model", "is_better", "chosen"):
        first, second = (truth(fields.peek(f"{prefix}_{end}")) for end in ends)
        if first is not None and second is not None and first != second:
            for end in ends:
                fields.take(f"{prefix}_{end}")
            return int(second)
    for name in fields.present(_VERDICTS):
        if (found := _said(name, fields.peek(name), ends)) is not None:
            fields.take(name)
            return found
    return None


def _said(name: str, value: Any, ends: tuple[str, str]) -> int | None:
    if name == "preference_strength":  # HelpSteer: below 0 the first is better
        number = _number(value)
        return None if not number else int(number > 0)
    if name == "labels":  # SHP: 1 where the first is preferred
        said = truth(value)
        return None if said is None else int(not said)
    match = re.search(r"(?:^|[^a-z0-9])([ab012])$", str(value).strip().casefold())
    if match is None or isinstance(value, (list, dict, bool)):
        return None
    if match[1] in ends:
        return ends.index(match[1])
    return int(match[1]) if match[1] in ("0", "1") and ends == ("a", "b") else None


# ---- marks


def is_bad(fields: Fields, templated: bool = False) -> bool:
    """Whether the record says that its answer is a bad one (`label`, `kto_tag`, …: false, 0, "false", "bad" …).

    What templates have used is no mark, and where they say what is what, `label: 0` is a class: false and "false" alone
    say of such a name that it is a mark.
    """
    bad = False
    for name in fields.present(MARK_FIELDS):
        value = fields.peek(name)
        said = truth(value)
        if templated and (fields.is_taken(name) or (name in CLASS_FIELDS and not _is_truth_value(value))):
            continue
        if said is not None:
            fields.take(name)
            bad = bad or not said
    return bad


def _is_truth_value(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().casefold() in ("true", "false"))
