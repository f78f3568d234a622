"""The records in an entry of a file, where they are not simply its objects.

| an entry | its records |
|---|---|
| a list of messages | one, with these messages; of a list of such lists one for each |
| `{"data": [{…}, …]}`, `{"instruction": …, "instances": [{…}, …]}` | the objects, each with what is beside the list |
| `{"instruction": ["a", "b"], "output": ["c", "d"]}` | one for each place in the lists; `{"0": "a", …}` is a list too |
| `{"7": {…}, "8": {…}}`, `{"row_idx": 0, "row": {…}}` | the objects |
| `{"columns": ["a", "b"], "data": [[…], …]}` | one for each row |
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from instructgpt.data.fields import Fields, is_filled
from instructgpt.data.languages import is_language
from instructgpt.data.names import (
    ANSWER_FIELDS,
    CHOSEN_FIELDS,
    PASSAGE_FIELDS,
    PROMPT_FIELDS,
    RANKING_FIELDS,
    REJECTED_FIELDS,
    TURN_FIELDS,
    USER_FIELDS,
)
from instructgpt.data.turns import looks_like_turns

_ANSWERS = (*ANSWER_FIELDS, *CHOSEN_FIELDS, *REJECTED_FIELDS, *RANKING_FIELDS)
_TEXTS = (*PROMPT_FIELDS, *USER_FIELDS, *PASSAGE_FIELDS, *_ANSWERS, "source", "src")
_DEEPEST = 8  # wrappers within wrappers


def records_in(entry: Any, depth: int = _DEEPEST) -> Iterator[Any]:
    """The records in an entry of a file; what is none of the shapes above is the record itself."""
    if isinstance(entry, list):
        if looks_like_turns(entry):
            yield {"messages": entry}
        elif entry and depth and all(isinstance(item, (dict, list)) for item in entry):
            for item in entry:
                yield from records_in(item, depth - 1)
        else:
            yield entry
    elif isinstance(entry, dict) and entry and depth and (inner := _inner(entry)) is not None:
        for item in inner:
            yield from records_in(item, depth - 1)
    else:
        yield entry


def _inner(entry: dict[str, Any]) -> list[Any] | None:
    return _rows(entry) or _columns(entry) or _wrapped(entry) or _boxed(entry) or _indexed(entry)


def _rows(entry: dict[str, Any]) -> list[dict[str, Any]] | None:
    names, rows = entry.get("columns"), entry.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return None
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    return [dict(zip(map(str, names), row)) for row in rows]


def _columns(entry: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of equally long lists, of which one at least is called by what it would hold, and holds texts."""
    columns = {name: _column(value) for name, value in entry.items() if is_filled(value)}
    lists = {name: column for name, column in columns.items() if column is not None}
    length = {len(column) for column in lists.values()}
    if len(lists) < 2 or len(length) > 1 or any(_is_known(name, _TEXTS) for name in columns.keys() - lists.keys()):
        return None
    if not any(_is_text_column(name, column) for name, column in lists.items()):
        return None
    beside = {name: value for name, value in entry.items() if name not in lists}
    return [{**beside, **dict(zip(lists, row))} for row in zip(*lists.values())]


def _column(value: Any) -> list[Any] | None:
    if isinstance(value, dict) and all(key == str(i) for i, key in enumerate(value)):
        return list(value.values())
    return value if isinstance(value, list) else None


def _is_text_column(name: str, column: list[Any]) -> bool:
    """Whether a column has a prompt, or a text in a language, in each row: then the others have what belongs to it."""
    asks = _is_known(name, (*PROMPT_FIELDS, *USER_FIELDS, "source", "src")) or is_language(name)
    return asks and all(one is None or isinstance(one, (str, int, float)) for one in column)


def _wrapped(entry: dict[str, Any]) -> list[Any] | None:
    """The objects of the one list that holds records, each with the fields beside that it has not itself."""
    if Fields(entry).present(_ANSWERS):
        return None
    lists = [name for name, value in entry.items() if _holds_records(name, value)]
    if len(lists) != 1:
        return None
    beside = {name: value for name, value in entry.items() if name != lists[0]}
    return [{**beside, **item} if isinstance(item, dict) else item for item in entry[lists[0]]]


def _holds_records(name: str, value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if _is_known(name, TURN_FIELDS) and isinstance(value[0], list):
        return looks_like_turns(value[0])
    if looks_like_turns(value) or _is_known(name, PASSAGE_FIELDS):
        return looks_like_records(value, "qas")
    return looks_like_records(value)


def looks_like_records(items: list[Any], *more: str) -> bool:
    """Whether the first of the items that is no null is an object with a field that a reader knows, or wraps some."""
    first = next((item for item in items if item is not None), None)
    if isinstance(first, list):
        return looks_like_turns(first)
    if not isinstance(first, dict) or looks_like_turns(items):
        return False
    if Fields(first).first((*PROMPT_FIELDS, *USER_FIELDS, *TURN_FIELDS, *_ANSWERS, *more)) is not None:
        return True
    if sum(map(is_language, first)) >= 2:
        return True
    return any(
        looks_like_records([value]) if isinstance(value, dict) else _holds_records(key, value)
        for key, value in first.items()
    )


def _boxed(entry: dict[str, Any]) -> list[Any] | None:
    """The record that is the one object in another, with the fields beside: `{"row_idx": 0, "row": {…}}`."""
    objects = [name for name, value in entry.items() if isinstance(value, dict)]
    if (
        len(objects) != 1
        or Fields(entry).present((*_TEXTS, *TURN_FIELDS))
        or not looks_like_records([entry[objects[0]]])
    ):
        return None
    return [{**{name: value for name, value in entry.items() if name != objects[0]}, **entry[objects[0]]}]


def _indexed(entry: dict[str, Any]) -> list[Any] | None:
    """The objects of an object that has nothing else, as those that are called by their number."""
    values = list(entry.values())
    if len(values) < 2 or not all(isinstance(value, dict) for value in values):
        return None
    return values if looks_like_records(values) and not any(_is_known(name, _TEXTS) for name in entry) else None


@lru_cache(4096)
def _is_known(name: str, names: tuple[str, ...]) -> bool:
    return bool(Fields({name: 0}).present(names))
