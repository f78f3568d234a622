"""Translation between English, Chinese and French of sentences built from parts, and a second turn: "And in French?"

A sentence is one structure put into three languages, so that each translation is the only one the world knows.
Every direction shares one group of buckets: what is tested in one direction is trained on in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import (
    ADJECTIVES,
    NOUNS,
    NUMBER_WORDS,
    PEOPLE,
    PLACES,
    VERBS,
    Adjective,
    Entry,
    Noun,
    Place,
    Verb,
    a,
)

GROUP = "translation"


class Sentence(Protocol):
    """Something that can be said in all three languages."""

    @property
    def en(self) -> str: ...
    @property
    def zh(self) -> str: ...
    @property
    def fr(self) -> str: ...


def say(sentence: Sentence, language: str) -> str:
    """The sentence in `en`, `zh` or `fr`."""
    return getattr(sentence, language)


# --- noun phrases -----------------------------------------------------------------------------------------------------


def french_the(noun: Noun | Place, word: str) -> str:
    """The definite article before `word`: le, la or l' (every h of the lexicon is mute)."""
    if word[0] in "aeiouéèêh":
        return f"l'{word}"
    return f"le {word}" if noun.gender == "m" else f"la {word}"


def french_at(place: Place) -> str:
    """`au parc`, `à la gare`, `à l'école`: à and le contract."""
    the = french_the(place, place.fr)
    return f"au {place.fr}" if the.startswith("le ") else f"à {the}"


@dataclass(frozen=True, slots=True)
class Thing:
    """`the red hat`, `a hat`."""

    noun: Noun
    adjective: Adjective | None
    definite: bool

    @property
    def en(self) -> str:
        words = f"{self.adjective.en} {self.noun.en}" if self.adjective else self.noun.en
        return f"the {words}" if self.definite else a(words)

    @property
    def zh(self) -> str:
        adjective = self.adjective.zh_attribute if self.adjective else ""
        return f"{'这' if self.definite else '一'}{self.noun.measure}{adjective}{self.noun.zh}"

    @property
    def fr(self) -> str:
        noun, words = self.noun, self.noun.fr
        if self.adjective:
            agreed = self.adjective.fr if noun.gender == "m" else self.adjective.fr_feminine
            words = f"{agreed} {words}" if self.adjective.fr_precedes else f"{words} {agreed}"
        if self.definite:
            return french_the(noun, words)
        return f"un {words}" if noun.gender == "m" else f"une {words}"


# --- sentences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deed:
    """Anna bought a red hat."""

    who: Entry
    verb: Verb
    what: Thing

    @property
    def en(self) -> str:
        return f"{self.who.en} {self.verb.past} {self.what.en}."

    @property
    def zh(self) -> str:
        return f"{self.who.zh}{self.verb.zh}{self.what.zh}。"

    @property
    def fr(self) -> str:
        return f"{self.who.fr} a {self.verb.participle} {self.what.fr}."


@dataclass(frozen=True, slots=True)
class Gift:
    """Anna gave the hat to Tom."""

    who: Entry
    what: Thing
    whom: Entry

    @property
    def en(self) -> str:
        return f"{self.who.en} gave {self.what.en} to {self.whom.en}."

    @property
    def zh(self) -> str:
        return f"{self.who.zh}把{self.what.zh}给了{self.whom.zh}。"

    @property
    def fr(self) -> str:
        return f"{self.who.fr} a donné {self.what.fr} à {self.whom.fr}."


@dataclass(frozen=True, slots=True)
class Stay:
    """Anna and Tom are at the park; Anna is going to the park."""

    who: tuple[Entry, ...]
    where: Place
    moves: bool

    @property
    def en(self) -> str:
        be = "is" if len(self.who) == 1 else "are"
        return f"{' and '.join(w.en for w in self.who)} {be} {'going to' if self.moves else 'at'} the {self.where.en}."

    @property
    def zh(self) -> str:
        return f"{'和'.join(w.zh for w in self.who)}{'去' if self.moves else '在'}{self.where.zh}。"

    @property
    def fr(self) -> str:
        goes, stays = ("va", "est") if len(self.who) == 1 else ("vont", "sont")
        return f"{' et '.join(w.fr for w in self.who)} {goes if self.moves else stays} {french_at(self.where)}."


@dataclass(frozen=True, slots=True)
class Quality:
    """The hat is red."""

    noun: Noun
    adjective: Adjective

    @property
    def en(self) -> str:
        return f"The {self.noun.en} is {self.adjective.en}."

    @property
    def zh(self) -> str:
        return f"这{self.noun.measure}{self.noun.zh}{self.adjective.zh_predicate}。"

    @property
    def fr(self) -> str:
        the = french_the(self.noun, self.noun.fr)
        agreed = self.adjective.fr if self.noun.gender == "m" else self.adjective.fr_feminine
        return f"{the[0].upper()}{the[1:]} est {agreed}."


@dataclass(frozen=True, slots=True)
class Possession:
    """Anna has three hats."""

    who: Entry
    number: Entry
    noun: Noun

    @property
    def en(self) -> str:
        return f"{self.who.en} has {self.number.en} {self.noun.plural}."

    @property
    def zh(self) -> str:
        return f"{self.who.zh}有{self.number.zh}{self.noun.measure}{self.noun.zh}。"

    @property
    def fr(self) -> str:
        return f"{self.who.fr} a {self.number.fr} {self.noun.fr_plural}."


def draw_thing(rng: Random) -> Thing:
    """A noun with its article, every other time with an adjective."""
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.5 else None
    return Thing(rng.choice(NOUNS), adjective, definite=rng.random() < 0.5)


def draw_sentence(rng: Random) -> Sentence:
    """A sentence of any of the five kinds, now and then a noun phrase alone."""
    kind = rng.random()
    if kind < 0.1:
        return draw_thing(rng)
    if kind < 0.47:
        return Deed(rng.choice(PEOPLE), rng.choice(VERBS), draw_thing(rng))
    if kind < 0.6:
        who, whom = rng.sample(PEOPLE, 2)
        # Definite, because 把 wants a thing that is known.
        return Gift(who, Thing(rng.choice(NOUNS), None, definite=True), whom)
    if kind < 0.75:
        return Stay(tuple(rng.sample(PEOPLE, rng.randint(1, 2))), rng.choice(PLACES), moves=rng.random() < 0.5)
    if kind < 0.87:
        return Quality(rng.choice(NOUNS), rng.choice(ADJECTIVES))
    return Possession(rng.choice(PEOPLE), rng.choice(NUMBER_WORDS), rng.choice(NOUNS))


def _sentence_key(sentence: Sentence) -> str:
    return sentence.en


# --- the four directions ----------------------------------------------------------------------------------------------

LANGUAGE_NAMES: Mapping[str, Mapping[str, str]] = {
    "en": {"en": "English", "zh": "Chinese", "fr": "French"},
    "zh": {"en": "英语", "zh": "中文", "fr": "法语"},
}

_WORDINGS: Mapping[Language, Wordings] = {
    "en": Wordings(
        (
            "Translate to {to}: {text}",
            "{text}\nTranslate this into {to}.",
            "How do you say this in {to}? {text}",
            "Say this in {to}: {text}",
            "Write this {source} text in {to}: {text}",
            "{text}\nWhat is the {to} for this?",
            "{to} translation: {text}",
            "Translate from {source} into {to}: {text}",
        ),
        (
            "Translate this {source} text to {to}: {text}",
            "{text}\nHow do you write this in {to}?",
            "What is this in {to}? {text}",
        ),
    ),
    "zh": Wordings(
        (
            "翻译成{to}：{text}",
            "{text}\n请翻译成{to}。",
            "这个用{to}怎么说？{text}",
            "请用{to}说：{text}",
            "把这段{source}写成{to}：{text}",
            "{text}\n这个的{to}是什么？",
            "{to}翻译：{text}",
        ),
        ("请把这段{source}翻译成{to}：{text}", "{text}\n这个用{to}怎么写？"),
    ),
}


def _direction(source: str, target: str, weight: float) -> Family:
    def question(sentence: Sentence, language: Language, rng: Random) -> Question:
        names = LANGUAGE_NAMES[language]
        slots = {"source": names[source], "to": names[target], "text": say(sentence, source)}
        return Question(slots, say(sentence, target))

    return Family(
        f"translate_{source}_{target}",
        draw_sentence,
        question,
        _WORDINGS,
        key=_sentence_key,
        weight=weight,
        group=GROUP,
    )


EN_ZH = _direction("en", "zh", weight=1)
ZH_EN = _direction("zh", "en", weight=1)
EN_FR = _direction("en", "fr", weight=1)
FR_EN = _direction("fr", "en", weight=1)

# --- a second turn ----------------------------------------------------------------------------------------------------

_FIRST_TURN: Mapping[Language, tuple[str, ...]] = {
    "en": ("Translate to {to}: {text}", "{text}\nTranslate this into {to}.", "Say this in {to}: {text}"),
    "zh": ("翻译成{to}：{text}", "{text}\n请翻译成{to}。", "请用{to}说：{text}"),
}


def _follow_up_question(sentence: Sentence, language: Language, rng: Random) -> Question:
    others = ["zh", "fr"] if language == "en" else ["en", "fr"]
    rng.shuffle(others)
    first, second = others
    names = LANGUAGE_NAMES[language]
    asked = rng.choice(_FIRST_TURN[language]).format(to=names[first], text=say(sentence, language))
    history = ({"role": "user", "content": asked}, {"role": "assistant", "content": say(sentence, first)})
    return Question({"to": names[second]}, say(sentence, second), history=history)


FOLLOW_UP = Family(
    "follow_up",
    draw_sentence,
    _follow_up_question,
    {
        "en": Wordings(
            (
                "And in {to}?",
                "Now in {to}.",
                "What is it in {to}?",
                "How do you say it in {to}?",
                "Say it in {to} too.",
                "Please translate it into {to} too.",
            ),
            ("And what is it in {to}?", "Now say it in {to}."),
        ),
        "zh": Wordings(
            ("{to}呢？", "用{to}怎么说？", "再用{to}说一次。", "那么{to}是什么？", "也翻译成{to}。"),
            ("那么用{to}怎么说？", "再翻译成{to}。"),
        ),
    },
    key=_sentence_key,
    weight=1,
    group=GROUP,
)

FAMILIES: tuple[Family, ...] = (EN_ZH, ZH_EN, EN_FR, FR_EN, FOLLOW_UP)
