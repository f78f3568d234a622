"""Numbers: add, subtract, compare, count, sort, find the largest, continue a sequence.

Numbers stay below 100 and are written in digits in both languages. Lists are separated by spaces.
"""

from __future__ import annotations

from random import Random

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import THINGS, Entry

MOST = 99


def spaced(numbers: tuple[int, ...] | list[int]) -> str:
    """`5 12 37`: how the world writes a list of numbers."""
    return " ".join(map(str, numbers))


def _unordered(numbers: tuple[int, ...]) -> str:
    # The order is part of the wording: 3 + 4 in training would give 4 + 3 away.
    return repr(tuple(sorted(numbers)))


# --- add and subtract -------------------------------------------------------------------------------------------------


def draw_terms(rng: Random) -> tuple[int, int]:
    """Two numbers from 1 whose sum is at most 99."""
    a = rng.randint(1, MOST - 1)
    b = rng.randint(1, MOST - a)
    return (a, b) if rng.random() < 0.5 else (b, a)


def _draw_difference(rng: Random) -> tuple[int, int]:
    a, b = rng.randint(1, MOST), rng.randint(1, MOST)
    return max(a, b), min(a, b)


def _add_question(instance: tuple[int, int], language: Language, rng: Random) -> Question:
    a, b = instance
    return Question({"a": str(a), "b": str(b)}, str(a + b))


def _subtract_question(instance: tuple[int, int], language: Language, rng: Random) -> Question:
    a, b = instance
    return Question({"a": str(a), "b": str(b)}, str(a - b))


ADD = Family(
    "add",
    draw_terms,
    _add_question,
    {
        "en": Wordings(
            (
                "{a} + {b} = ?",
                "What is {a} + {b}?",
                "Compute {a} + {b}.",
                "Add {a} and {b}.",
                "What is the sum of {a} and {b}?",
                "How much is {a} plus {b}?",
                "Sum: {a} + {b}",
            ),
            ("Compute the sum of {a} and {b}.", "What is {a} plus {b}?", "How much is {a} + {b}?"),
        ),
        "zh": Wordings(
            (
                "{a} + {b} = ?",
                "{a} + {b} 等于多少？",
                "计算 {a} + {b}。",
                "把 {a} 和 {b} 相加。",
                "{a} 与 {b} 的和是多少？",
                "{a} 加 {b} 得多少？",
            ),
            ("计算 {a} 与 {b} 的和。", "{a} 加 {b} 等于多少？"),
        ),
    },
    key=_unordered,
    weight=5,
)

SUBTRACT = Family(
    "subtract",
    _draw_difference,
    _subtract_question,
    {
        "en": Wordings(
            (
                "{a} - {b} = ?",
                "What is {a} - {b}?",
                "Compute {a} - {b}.",
                "Subtract {b} from {a}.",
                "What is the difference of {a} and {b}?",
                "How much is {a} minus {b}?",
                "Difference: {a} - {b}",
            ),
            ("Compute the difference of {a} and {b}.", "What is {a} minus {b}?", "How much is {a} - {b}?"),
        ),
        "zh": Wordings(
            (
                "{a} - {b} = ?",
                "{a} - {b} 等于多少？",
                "计算 {a} - {b}。",
                "从 {a} 里减去 {b}。",
                "{a} 与 {b} 的差是多少？",
                "{a} 减 {b} 得多少？",
            ),
            ("计算 {a} 与 {b} 的差。", "{a} 减 {b} 等于多少？"),
        ),
    },
    weight=5,
)

# --- compare ----------------------------------------------------------------------------------------------------------

SIZES = {"en": {True: "larger", False: "smaller"}, "zh": {True: "大", False: "小"}}


def _draw_pair(rng: Random) -> tuple[int, int]:
    a = rng.randint(1, MOST)
    # Every other pair shares its tens or lies close: the cases that a glance at the first digit gets wrong.
    b = a + rng.choice((-1, 1)) * rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(1, MOST)
    return (a, b) if 1 <= b <= MOST and a != b else _draw_pair(rng)


def _compare_question(instance: tuple[int, int], language: Language, rng: Random) -> Question:
    a, b = instance
    larger = rng.random() < 0.5
    slots = {"a": str(a), "b": str(b), "size": SIZES[language][larger]}
    return Question(slots, str(max(a, b) if larger else min(a, b)))


COMPARE = Family(
    "compare",
    _draw_pair,
    _compare_question,
    {
        "en": Wordings(
            (
                "Which is {size}, {a} or {b}?",
                "{a} or {b}: which is {size}?",
                "Which of {a} and {b} is {size}?",
                "Give the {size} number: {a} {b}",
                "Compare {a} and {b}. Which number is {size}?",
                "{a} and {b}. Give the {size} of the two.",
            ),
            ("Which number is {size}, {a} or {b}?", "Compare {a} and {b}. Give the {size} number."),
        ),
        "zh": Wordings(
            (
                "{a} 和 {b} 哪个更{size}？",
                "哪个更{size}：{a} 还是 {b}？",
                "比较 {a} 和 {b}，给出更{size}的数。",
                "给出更{size}的数：{a} {b}",
                "{a} 还是 {b} 更{size}？",
            ),
            ("比较 {a} 和 {b}，哪个更{size}？", "哪个数更{size}：{a} 和 {b}？"),
        ),
    },
    key=_unordered,
    weight=1,
)

# --- count ------------------------------------------------------------------------------------------------------------


def _draw_count(rng: Random) -> tuple[Entry, tuple[Entry, ...]]:
    thing, *others = rng.sample(THINGS, 3)
    items = [thing] * rng.randint(1, 4) + rng.choices(others, k=rng.randint(1, 2))
    rng.shuffle(items)
    return thing, tuple(items)


def _count_key(instance: tuple[Entry, tuple[Entry, ...]]) -> str:
    thing, items = instance
    return f"{thing.en}: {' '.join(item.en for item in items)}"


def _count_question(instance: tuple[Entry, tuple[Entry, ...]], language: Language, rng: Random) -> Question:
    thing, items = instance
    words = " ".join(item[language] for item in items)
    return Question({"word": thing[language], "list": words}, str(items.count(thing)))


COUNT = Family(
    "count",
    _draw_count,
    _count_question,
    {
        "en": Wordings(
            (
                "How many times is {word} in this list? {list}",
                "Count the word {word}: {list}",
                "{list}\nHow often do you see {word}?",
                "In the list {list}, how often is {word} there?",
                "{list}\nCount how many times {word} is there.",
                "How many times do you see {word} here? {list}",
            ),
            ("Count how often you see {word} in this list: {list}", "{list}\nHow many times is {word} there?"),
        ),
        "zh": Wordings(
            (
                "{word}出现了几次？{list}",
                "数一数{word}：{list}",
                "{list}\n这里{word}出现了几次？",
                "在“{list}”里，{word}出现几次？",
                "数一数下面{word}有几次：{list}",
            ),
            ("数一数{word}出现了几次：{list}", "{list}\n{word}出现几次？"),
        ),
    },
    key=_count_key,
    weight=3,
)

# --- sort and maximum -------------------------------------------------------------------------------------------------

_ORDERS = {
    "en": {False: "from small to large", True: "from large to small"},
    "zh": {False: "从小到大", True: "从大到小"},
}


def draw_numbers(rng: Random) -> tuple[int, ...]:
    """Three or four different numbers below 100."""
    return tuple(rng.sample(range(1, MOST + 1), rng.randint(3, 4)))


def _sort_question(instance: tuple[int, ...], language: Language, rng: Random) -> Question:
    falling = rng.random() < 0.5
    slots = {"list": spaced(instance), "order": _ORDERS[language][falling]}
    return Question(slots, spaced(sorted(instance, reverse=falling)))


SORT = Family(
    "sort",
    draw_numbers,
    _sort_question,
    {
        "en": Wordings(
            (
                "Sort {order}: {list}",
                "Sort these numbers {order}: {list}",
                "{list}\nSort this list {order}.",
                "Put the numbers {list} in order {order}.",
                "Put in order, {order}: {list}",
                "{list}\nWrite these numbers {order}.",
            ),
            ("Put these numbers in order {order}: {list}", "Write this list {order}: {list}"),
        ),
        "zh": Wordings(
            (
                "{order}排序：{list}",
                "把这些数{order}排列：{list}",
                "{list}\n请{order}排列这些数。",
                "把 {list} {order}排序。",
                "请{order}写出：{list}",
            ),
            ("请把这些数{order}排序：{list}", "{list}\n把这些数{order}写出。"),
        ),
    },
    key=_unordered,
    weight=2.5,
)


def _maximum_question(instance: tuple[int, ...], language: Language, rng: Random) -> Question:
    return Question({"list": spaced(instance)}, str(max(instance)))


MAXIMUM = Family(
    "maximum",
    draw_numbers,
    _maximum_question,
    {
        "en": Wordings(
            (
                "What is the largest number? {list}",
                "Give the largest of {list}.",
                "{list}\nWhich number is the largest?",
                "Find the maximum: {list}",
                "What is the maximum of {list}?",
                "{list}\nGive the maximum.",
            ),
            ("Find the largest number: {list}", "{list}\nWhat is the maximum of these numbers?"),
        ),
        "zh": Wordings(
            (
                "最大的数是多少？{list}",
                "给出最大的数：{list}",
                "{list}\n哪个数最大？",
                "求最大值：{list}",
                "{list} 的最大值是多少？",
            ),
            ("求最大的数：{list}", "{list}\n最大值是多少？"),
        ),
    },
    key=_unordered,
    weight=1,
)

# --- next in a sequence -----------------------------------------------------------------------------------------------

_SHOWN = 4


def _draw_sequence(rng: Random) -> tuple[int, int]:
    """The first number and the step, such that the shown numbers and the next lie in 1..99."""
    step = rng.choice((-1, 1)) * rng.randint(1, 10)
    travel = _SHOWN * step
    return rng.randint(max(1, 1 - travel), min(MOST, MOST - travel)), step


def _sequence_question(instance: tuple[int, int], language: Language, rng: Random) -> Question:
    start, step = instance
    *shown, following = (start + step * i for i in range(_SHOWN + 1))
    return Question({"list": spaced(shown)}, str(following))


NEXT_IN_SEQUENCE = Family(
    "next_in_sequence",
    _draw_sequence,
    _sequence_question,
    {
        "en": Wordings(
            (
                "What number comes next? {list}",
                "Continue the sequence: {list}",
                "{list}\nWhat is the next number?",
                "The sequence is {list}. Give the next number.",
                "Which number comes after {list} in the sequence?",
                "{list} ...\nContinue with one number.",
            ),
            ("Give the next number of the sequence: {list}", "{list}\nWhich number comes next?"),
        ),
        "zh": Wordings(
            (
                "下一个数是多少？{list}",
                "继续这个数列：{list}",
                "{list}\n接下来是哪个数？",
                "数列是 {list}，给出下一个数。",
                "{list} 后面是哪个数？",
            ),
            ("给出这个数列的下一个数：{list}", "{list}\n接下来的数是多少？"),
        ),
    },
    weight=3.5,
)

FAMILIES: tuple[Family, ...] = (ADD, SUBTRACT, COMPARE, COUNT, SORT, MAXIMUM, NEXT_IN_SEQUENCE)
