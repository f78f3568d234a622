"""Rewriting: reverse a list, write in capitals, replace or remove a word, form the plural.

Lists are made of words or numbers separated by spaces, never of letters: the tokenizer hides the letters of a word.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import ADJECTIVES, NOUNS, PEOPLE, PLACES, Adjective, Entry, Noun
from instructgpt.world.translation import draw_thing, say

WORDS: tuple[Entry, ...] = (*NOUNS, *PLACES)
"""What lists of words are made of."""

Items = tuple[Entry, ...] | tuple[int, ...]


def draw_words(rng: Random) -> tuple[Entry, ...]:
    """Three to five different words."""
    return tuple(rng.sample(WORDS, rng.randint(3, 5)))


def shown(items: Items, language: str) -> str:
    """The items in a row, separated by spaces; numbers stay digits."""
    return " ".join(str(item) if isinstance(item, int) else item[language] for item in items)


def _items_key(items: Items) -> str:
    return shown(items, "en")


# --- reverse ----------------------------------------------------------------------------------------------------------


def _draw_items(rng: Random) -> Items:
    if rng.random() < 0.5:
        return draw_words(rng)
    digits = rng.random() < 0.5
    return tuple(rng.sample(range(10) if digits else range(10, 100), rng.randint(3, 5)))


def _reverse_question(items: Items, language: Language, rng: Random) -> Question:
    return Question({"list": shown(items, language)}, shown(items[::-1], language))


REVERSE = Family(
    "reverse",
    _draw_items,
    _reverse_question,
    {
        "en": Wordings(
            (
                "Reverse the order: {list}",
                "Reverse this list: {list}",
                "{list}\nWrite this list backwards.",
                "Write the list {list} in reverse order.",
                "{list}\nNow from the last to the first.",
                "From the last to the first: {list}",
            ),
            ("Reverse the order of this list: {list}", "{list}\nWrite this in reverse order."),
        ),
        "zh": Wordings(
            (
                "颠倒顺序：{list}",
                "把这一列倒过来：{list}",
                "{list}\n请倒过来写。",
                "请把 {list} 颠倒顺序。",
                "从最后一个写到第一个：{list}",
            ),
            ("把这一列颠倒顺序：{list}", "请把 {list} 倒过来写。"),
        ),
    },
    key=_items_key,
    weight=2,
)

# --- upper case -------------------------------------------------------------------------------------------------------


def _draw_text(rng: Random) -> str:
    """A thing or some words, in English or French, whatever the language of the question."""
    language = rng.choice(("en", "fr"))
    if rng.random() < 0.6:
        return say(draw_thing(rng), language)
    return shown(tuple(rng.sample(WORDS + PEOPLE, rng.randint(2, 3))), language)


def _upper_question(text: str, language: Language, rng: Random) -> Question:
    return Question({"text": text}, text.upper(), kept=(text,))


UPPER_CASE = Family(
    "upper_case",
    _draw_text,
    _upper_question,
    {
        "en": Wordings(
            (
                "Write in upper case: {text}",
                "Put this in capital letters: {text}",
                "{text}\nMake this upper case.",
                "Write {text} in capital letters.",
                "Upper case: {text}",
                "{text}\nNow all in capital letters.",
            ),
            ("Put {text} in upper case.", "{text}\nWrite this all in capital letters."),
        ),
        "zh": Wordings(
            (
                "用大写字母写：{text}",
                "改成大写：{text}",
                "{text}\n请全部大写。",
                "把 {text} 改成大写字母。",
                "大写：{text}",
            ),
            ("请用大写字母写 {text}。", "{text}\n请改成大写字母。"),
        ),
    },
    key=str,
    weight=1.5,
)

# --- replace and remove -----------------------------------------------------------------------------------------------


class Replacement(NamedTuple):
    """`words` in which the one at `place` becomes `new`."""

    words: tuple[Entry, ...]
    place: int
    new: Entry


def _draw_replacement(rng: Random) -> Replacement:
    *words, new = rng.sample(WORDS, rng.randint(4, 6))
    return Replacement(tuple(words), rng.randrange(len(words)), new)


def replaced(change: Replacement) -> tuple[Entry, ...]:
    """The words after the change."""
    return (*change.words[: change.place], change.new, *change.words[change.place + 1 :])


def _replacement_key(change: Replacement) -> str:
    return f"{shown(change.words, 'en')}: {change.place} {change.new.en}"


def _replace_question(change: Replacement, language: Language, rng: Random) -> Question:
    old = change.words[change.place]
    slots = {"list": shown(change.words, language), "old": old[language], "new": change.new[language]}
    return Question(slots, shown(replaced(change), language))


REPLACE = Family(
    "replace",
    _draw_replacement,
    _replace_question,
    {
        "en": Wordings(
            (
                "Replace {old} with {new}: {list}",
                "{list}\nReplace the word {old} with {new}.",
                "Change {old} to {new} in this list: {list}",
                "In {list}, write {new} and not {old}.",
                "{list}\nChange {old} to {new}.",
                "Replace {old} with {new} in {list}.",
            ),
            ("In this list, replace {old} with {new}: {list}", "{list}\nChange the word {old} to {new}."),
        ),
        "zh": Wordings(
            (
                "把{old}换成{new}：{list}",
                "{list}\n请把{old}换成{new}。",
                "将下面的{old}改为{new}：{list}",
                "在 {list} 里，用{new}代替{old}。",
                "{list}\n把{old}改为{new}。",
            ),
            ("请将{old}换成{new}：{list}", "在 {list} 里，把{old}改为{new}。"),
        ),
    },
    key=_replacement_key,
    weight=4,
)


class Removal(NamedTuple):
    """`words` from which the one at `place` goes."""

    words: tuple[Entry, ...]
    place: int


def _draw_removal(rng: Random) -> Removal:
    words = draw_words(rng)
    return Removal(words, rng.randrange(len(words)))


def removed(removal: Removal) -> tuple[Entry, ...]:
    """The words that stay."""
    return removal.words[: removal.place] + removal.words[removal.place + 1 :]


def _removal_key(removal: Removal) -> str:
    return f"{shown(removal.words, 'en')}: {removal.place}"


def _remove_question(removal: Removal, language: Language, rng: Random) -> Question:
    slots = {"list": shown(removal.words, language), "word": removal.words[removal.place][language]}
    return Question(slots, shown(removed(removal), language))


REMOVE = Family(
    "remove",
    _draw_removal,
    _remove_question,
    {
        "en": Wordings(
            (
                "Remove {word}: {list}",
                "{list}\nRemove the word {word}.",
                "Write this list without {word}: {list}",
                "Take {word} out of {list}.",
                "{list}\nWrite this without {word}.",
                "Take the word {word} out of this list: {list}",
            ),
            ("Remove the word {word} from this list: {list}", "{list}\nTake out {word}."),
        ),
        "zh": Wordings(
            (
                "去掉{word}：{list}",
                "{list}\n请去掉{word}这个词。",
                "不要{word}，写出：{list}",
                "从 {list} 里删除{word}。",
                "{list}\n删除{word}。",
            ),
            ("从 {list} 里去掉{word}。", "请删除{word}这个词：{list}"),
        ),
    },
    key=_removal_key,
    weight=3.5,
)

# --- plural -----------------------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """So many of a noun, which may have an adjective."""

    number: int
    adjective: Adjective | None
    noun: Noun


def _draw_amount(rng: Random) -> Amount:
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.6 else None
    return Amount(rng.randint(2, 99), adjective, rng.choice(NOUNS))


def _amount_key(amount: Amount) -> str:
    return f"{amount.number} {amount.adjective.en if amount.adjective else ''} {amount.noun.en}"


def _plural_question(amount: Amount, language: Language, rng: Random) -> Question:
    adjective = f"{amount.adjective.en} " if amount.adjective else ""
    slots = {"one": f"1 {adjective}{amount.noun.en}", "n": str(amount.number)}
    return Question(slots, f"{amount.number} {adjective}{amount.noun.plural}")


PLURAL = Family(
    "plural",
    _draw_amount,
    _plural_question,
    {
        "en": Wordings(
            (
                "Give the plural with {n}: {one}",
                "Change {one} to {n}.",
                "{one}\nNow make it {n}.",
                "Not {one}, but {n}. Write the plural.",
                "Plural: I have {one}, you have {n}. What do you have?",
                "What is the plural? {one}, {n} ...",
            ),
            ("{one}\nWrite the plural with {n}.", "I have {one}. Make it {n}."),
        ),
        "zh": Wordings(
            (
                "写出 {n} 个的英语复数：{one}",
                "把 {one} 改成 {n} 个。",
                "{one}\n如果有 {n} 个，英语怎么写？",
                "英语复数：{one} 变成 {n} 个。",
                "{one}，如果是 {n} 个呢？",
            ),
            ("{one}\n写出 {n} 个的复数。", "如果 {one} 变成 {n} 个，英语怎么写？"),
        ),
    },
    key=_amount_key,
    weight=0.7,
)

FAMILIES: tuple[Family, ...] = (REVERSE, UPPER_CASE, REPLACE, REMOVE, PLURAL)
