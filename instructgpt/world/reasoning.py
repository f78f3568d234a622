"""Reasoning: a yes/no inference in two steps, and an item that fits what somebody liked before.

The answer to an inference says its two steps first, and again what was asked beside what was found, so that each next
word is one look at the facts (Wei et al. 2022, "Chain-of-Thought Prompting Elicits Reasoning in Large Language
Models").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import ANIMALS, PEOPLE, PLACES, THINGS, Noun, Person, Place

# --- two steps --------------------------------------------------------------------------------------------------------

_RELATIONS = (
    (("taller", "高"), ("shorter", "矮")),
    (("older", "年长"), ("younger", "年轻")),
    (("faster", "快"), ("slower", "慢")),
    (("stronger", "强"), ("weaker", "弱")),
)
VERDICTS: Mapping[Language, tuple[str, str]] = {"en": ("No", "Yes"), "zh": ("不是", "是")}
"""Index: whether it holds."""


def _conclusion(steps: Sequence[str], asked: str, holds: bool, language: Language) -> str:
    """Steps, and whether they lead to what was asked."""
    verdict = VERDICTS[language][holds]
    if language == "zh":
        return f"{'。'.join(steps)}；{asked}？{verdict}。"
    return f"{'. '.join(steps)}; {asked}? {verdict}."


def _sentences(clauses: Sequence[str], language: Language) -> str:
    return f"{'。'.join(clauses)}。" if language == "zh" else f"{'. '.join(clauses)}."


class Chain(NamedTuple):
    """`people[0]` is more than `people[1]`, who is more than `people[2]`; the first and the last are compared."""

    people: tuple[Person, ...]
    relation: int
    told: tuple[bool, bool]
    """True for each step told from the greater one's side: Anna is taller than Tom, not Tom is shorter than Anna."""
    swapped: bool
    """The second step is told first."""
    asks_greater: bool
    """`is … taller?`, else `is … shorter?`"""
    holds: bool

    def text(self, language: Language) -> tuple[str, str]:
        """The two facts, and the question."""
        steps = [
            self._compare(greater, lesser, from_greater, language)
            for greater, lesser, from_greater in zip(self.people, self.people[1:], self.told)
        ]
        if self.swapped:
            steps.reverse()
        subject, _, other = self._from_subject()
        word = self._word(self.asks_greater, language)
        if language == "zh":
            return _sentences(steps, language), f"{subject.zh}比{other.zh}{word}吗？"
        return _sentences(steps, language), f"Is {subject.en} {word} than {other.en}?"

    def answer(self, language: Language) -> str:
        """From the one asked about over the one between to the other, told from that side."""
        line = self._from_subject()
        falls = line == self.people
        steps = [
            self._compare(*((a, b) if falls else (b, a)), from_greater=falls, language=language)
            for a, b in pairwise(line)
        ]
        return _conclusion(steps, self._word(self.asks_greater, language), self.holds, language)

    def _from_subject(self) -> tuple[Person, ...]:
        """The three people in their order, starting with whom the question is about."""
        return self.people if self.asks_greater == self.holds else self.people[::-1]

    def _compare(self, greater: Person, lesser: Person, from_greater: bool, language: Language) -> str:
        word = self._word(from_greater, language)
        subject, other = (greater, lesser) if from_greater else (lesser, greater)
        if language == "zh":
            return f"{subject.zh}比{other.zh}{word}"
        return f"{subject.en} is {word} than {other.en}"

    def _word(self, is_greater: bool, language: Language) -> str:
        return _RELATIONS[self.relation][0 if is_greater else 1][1 if language == "zh" else 0]


class Containment(NamedTuple):
    """`thing` is in `inside`, which is at `where`; a decoy is `elsewhere`. At which of the two places is `thing`?"""

    thing: Noun
    inside: Noun
    where: Place
    decoy: Noun
    elsewhere: Place
    order: tuple[int, ...]
    holds: bool

    def text(self, language: Language) -> tuple[str, str]:
        """The three facts, and the question."""
        if language == "zh":
            question = f"{self.thing.zh}在{self._asked.zh}吗？"
        else:
            question = f"Is the {self.thing.en} at the {self._asked.en}?"
        facts = self._facts(language)
        return _sentences([facts[i] for i in self.order], language), question

    def answer(self, language: Language) -> str:
        """In what the thing is, and where that is."""
        return _conclusion(self._facts(language)[:2], self._asked[language], self.holds, language)

    @property
    def _asked(self) -> Place:
        return self.where if self.holds else self.elsewhere

    def _facts(self, language: Language) -> tuple[str, str, str]:
        if language == "zh":
            return (
                f"{self.thing.zh}在{self.inside.zh}里",
                f"{self.inside.zh}在{self.where.zh}",
                f"{self.decoy.zh}在{self.elsewhere.zh}",
            )
        return (
            f"The {self.thing.en} is in the {self.inside.en}",
            f"The {self.inside.en} is at the {self.where.en}",
            f"The {self.decoy.en} is at the {self.elsewhere.en}",
        )


_CONTAINERS = tuple(noun for noun in THINGS if noun.en in {"box", "bag", "car"})
_CONTENTS = tuple(noun for noun in THINGS if noun.en in {"book", "ball", "cup", "key", "knife", "hat", "watch"})
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def _draw_inference(rng: Random) -> Chain | Containment:
    holds = rng.random() < 0.5
    if rng.random() < 0.5:
        thing = rng.choice(_CONTENTS)
        inside, decoy = rng.sample(_CONTAINERS, 2)
        where, elsewhere = rng.sample(PLACES, 2)
        return Containment(thing, inside, where, decoy, elsewhere, rng.choice(_ORDERS), holds)
    told = (rng.random() < 0.75, rng.random() < 0.75)
    return Chain(
        tuple(rng.sample(PEOPLE, 3)),
        rng.randrange(len(_RELATIONS)),
        told,
        swapped=rng.random() < 0.3,
        asks_greater=rng.random() < 0.75,
        holds=holds,
    )


def _inference_question(instance: Chain | Containment, language: Language, rng: Random) -> Question:
    facts, asked = instance.text(language)
    return Question({"facts": facts, "question": asked}, instance.answer(language))


def _inference_key(instance: Chain | Containment) -> str:
    facts, asked = instance.text("en")
    # The order of the facts is no part of what decides the answer.
    return " ".join([*sorted(facts.removesuffix(".").split(". ")), asked])


INFERENCE = Family(
    "inference",
    _draw_inference,
    _inference_question,
    {
        "en": Wordings(
            (
                "{facts} {question}",
                "{facts}\n{question} Yes or no?",
                "{facts}\nAnswer yes or no: {question}",
                "Yes or no? {facts} {question}",
                "{question} {facts}",
                "Think: {facts} {question}",
            ),
            ("Think. {facts}\nYes or no: {question}", "{facts} Answer with yes or no. {question}"),
        ),
        "zh": Wordings(
            (
                "{facts}{question}",
                "{facts}\n{question}是还是不是？",
                "{facts}\n请回答是或不是：{question}",
                "是还是不是？{facts}{question}",
                "{question}{facts}",
            ),
            ("请想一想，是还是不是：{facts}{question}", "{facts}请回答：{question}"),
        ),
    },
    key=_inference_key,
    weight=3.5,
)

# --- recommendation ---------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """Something to like, as it stands in a list."""

    en: str
    zh: str

    def to(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


def _items(nouns: tuple[Noun, ...], *words: str) -> tuple[Item, ...]:
    return tuple(Item(noun.en, noun.zh) for noun in nouns if not words or noun.en in words)


_SHELVES: tuple[tuple[Item, ...], ...] = (
    _items(ANIMALS),
    (Item("song", "歌曲"), Item("piano", "钢琴"), Item("guitar", "吉他"), Item("drum", "鼓"), Item("violin", "小提琴")),
    (
        *_items(THINGS, "cake", "apple"),
        Item("soup", "汤"),
        Item("bread", "面包"),
        Item("rice", "米饭"),
        Item("cheese", "奶酪"),
    ),
    (*_items(THINGS, "hat", "coat"), Item("shirt", "衬衫"), Item("shoe", "鞋"), Item("dress", "裙子")),
    (*_items(THINGS, "chair", "table", "lamp"), Item("bed", "床"), Item("sofa", "沙发")),
)
"""Each shelf holds what belongs together; a word stands on one shelf only."""


class Taste(NamedTuple):
    """What somebody liked, and three offers of which one is from the same shelf."""

    person: Person
    liked: tuple[Item, ...]
    offers: tuple[Item, ...]
    fitting: Item


def _draw_taste(rng: Random) -> Taste:
    shelf, *others = rng.sample(_SHELVES, 3)
    fitting, *liked = rng.sample(shelf, rng.randint(3, 4))
    offers = [fitting, *(rng.choice(other) for other in others)]
    rng.shuffle(offers)
    return Taste(rng.choice(PEOPLE), tuple(liked), tuple(offers), fitting)


def _taste_question(taste: Taste, language: Language, rng: Random) -> Question:
    comma = "、" if language == "zh" else ", "
    offers = [offer.to(language) for offer in taste.offers]
    slots = {
        "who": taste.person[language],
        "liked": comma.join(item.to(language) for item in taste.liked),
        "offers": comma.join(offers[:-1]) + (f"还是{offers[-1]}" if language == "zh" else f" or {offers[-1]}"),
    }
    return Question(slots, taste.fitting.to(language))


RECOMMEND = Family(
    "recommend",
    _draw_taste,
    _taste_question,
    {
        "en": Wordings(
            (
                "{who} liked: {liked}. What will {who} like too: {offers}?",
                "{who} bought: {liked}. Recommend one: {offers}.",
                "Recommend to {who} {offers}. {who} liked: {liked}.",
                "History: {liked}. Which one fits: {offers}?",
                "Which one fits {who}: {offers}? History: {liked}.",
            ),
            (
                "History of {who}: {liked}. Recommend one: {offers}.",
                "{who} liked: {liked}. Which one fits too: {offers}?",
            ),
        ),
        "zh": Wordings(
            (
                "{who}喜欢：{liked}。{who}还会喜欢什么：{offers}？",
                "{who}买过：{liked}。请推荐一个：{offers}。",
                "请给{who}推荐：{offers}？{who}喜欢：{liked}。",
                "历史：{liked}。哪个合适：{offers}？",
                "哪个适合{who}：{offers}？历史：{liked}。",
            ),
            ("{who}的历史：{liked}。请推荐一个：{offers}。", "{who}喜欢：{liked}。哪个也合适：{offers}？"),
        ),
    },
    # Who asks, and in which order the things stand, decides nothing.
    key=lambda taste: f"{sorted(item.en for item in taste.liked)} {sorted(item.en for item in taste.offers)}",
    weight=2,
)

FAMILIES: tuple[Family, ...] = (INFERENCE, RECOMMEND)
