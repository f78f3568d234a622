"""JSON as an expression of bytes (`grammar.py`): any, its parts, and numbers within bounds.

Of what JSON allows a part is taken that is enough to say everything: characters are themselves where they may be,
numbers have at most 15 digits before the point, white space is that of usual printing.
"""

from __future__ import annotations

from functools import lru_cache

from instructgpt.generation.grammar import (
    EMPTY,
    NEVER,
    Expression,
    Repeat,
    choice,
    literal,
    one_of,
    optional,
    sequence,
    span,
)
from instructgpt.generation.regex import ALL, Ranges, utf8, without

# ---- JSON's parts

NESTED = 64
"""Arrays and objects within one another, of any JSON: other readers give up at some depth, too."""
_DIGIT = span(ord("0"), ord("9"))
_SPACE = choice(EMPTY, literal(" "), sequence(literal("\n"), Repeat(literal(" "), 0, 24)))
COMMA = sequence(literal(","), _SPACE)
COLON = sequence(literal(":"), _SPACE)
_QUOTE = literal('"')
INTEGER = sequence(optional(literal("-")), choice(literal("0"), sequence(span(49, 57), Repeat(_DIGIT, 0, 14))))
NUMBER = sequence(
    INTEGER,
    optional(sequence(literal("."), Repeat(_DIGIT, 1, 15))),
    optional(sequence(choice(literal("e"), literal("E")), choice(EMPTY, literal("-"), literal("+")),
                      Repeat(_DIGIT, 1, 2))),
)  # fmt: skip
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
ESCAPED = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
"""Characters that JSON's strings have only as escapes."""


@lru_cache(maxsize=256)
def in_string(ranges: Ranges) -> Expression:
    """One character of a set within a string."""
    options = [utf8(plain)] if (plain := without(ranges, ESCAPED)) else []
    for low, high in ranges:
        codes = [*range(low, min(high, 0x1F) + 1), *(i for i in (0x22, 0x5C) if low <= i <= high)]
        options += [literal(_SHORT_ESCAPES.get(chr(code), f"\\u{code:04x}")) for code in codes]
    return choice(*options) if options else NEVER


@lru_cache(maxsize=1)
def character() -> Expression:
    return in_string(ALL)


def string(content: Expression) -> Expression:
    return sequence(_QUOTE, content, _QUOTE)


@lru_cache(maxsize=1)
def any_string() -> Expression:
    return string(Repeat(character(), 0, None))


def listed(item: Expression, least: int, most: int | None) -> Expression:
    """So many items with commas between."""
    if most is not None and most < max(least, 1):
        return EMPTY if most >= least else NEVER
    more = Repeat(sequence(COMMA, item), max(least - 1, 0), None if most is None else most - 1)
    found = sequence(item, more)
    return found if least else optional(found)


def between(opening: str, content: Expression, closing: str) -> Expression:
    return sequence(literal(opening), _SPACE, content, _SPACE, literal(closing))


@lru_cache(maxsize=NESTED + 1)
def any_json(nested: int = NESTED) -> Expression:
    """Any value, with arrays and objects in it so many levels deep."""
    return choice(*simple_types().values(), *(any_array(nested), any_object(nested)) if nested else ())


def simple_types() -> dict[str, Expression]:
    return {"string": any_string(), "number": NUMBER, "boolean": one_of([b"true", b"false"]), "null": literal("null")}


@lru_cache(maxsize=NESTED + 1)
def any_array(nested: int) -> Expression:
    return between("[", listed(any_json(nested - 1), 0, None), "]")


@lru_cache(maxsize=NESTED + 1)
def any_object(nested: int) -> Expression:
    return between("{", listed(sequence(any_string(), COLON, any_json(nested - 1)), 0, None), "}")


# ---- numbers within bounds

MOST = 10**15 - 1
"""The largest number before the point, where no bound asks for more."""


def _digits(low: str, high: str, point: int = 0) -> Expression:
    """Digits from `low` to `high`, as long as both, with a point before the last `point` ones."""
    if point and len(low) == point:
        return sequence(literal("."), _digits(low, high))
    if not low:
        return EMPTY
    if set(low) == {"0"} and set(high) == {"9"}:
        behind = sequence(literal("."), Repeat(_DIGIT, point, point)) if point else EMPTY
        return sequence(Repeat(_DIGIT, len(low) - point, len(low) - point), behind)
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    if first == last:
        return sequence(literal(low[0]), _digits(low[1:], high[1:], point))
    options = [sequence(literal(low[0]), _digits(low[1:], "9" * rest, point))]
    if last - first > 1:
        options.append(sequence(span(49 + first, 47 + last), _digits("0" * rest, "9" * rest, point)))
    options.append(sequence(literal(high[0]), _digits("0" * rest, high[1:], point)))
    return choice(*options)


def numbers_between(low: int, high: int, decimals: int = 0) -> list[Expression]:
    """Numbers from low / 10^decimals to high / 10^decimals, with so many digits behind the point."""
    found: list[Expression] = []
    if low < 0:
        found += [sequence(literal("-"), each) for each in numbers_between(max(1, -high), -low, decimals)]
    least, shortest = max(low, 0), decimals + 1
    for length in range(shortest, len(str(max(high, 0))) + 1 if high >= 0 else 0):
        a, b = max(least, 10 ** (length - 1) if length > shortest else 0), min(high, 10**length - 1)
        if a <= b:
            found.append(_digits(str(a).zfill(length), str(b).zfill(length), decimals))
    if high >= 0 and len(str(high)) < shortest and least <= high:
        found.append(_digits(str(least).zfill(shortest), str(high).zfill(shortest), decimals))
    return found
