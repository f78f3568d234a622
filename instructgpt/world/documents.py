"""Plain text of the world, for pretraining: facts, exercises, parallel sentences, stories, dialogues.

Whatever a test may ask is told of training instances only, so no document gives a val or test answer away.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from random import Random

from instructgpt.world import classification, noise, numbers, reading, reasoning, rewriting, translation
from instructgpt.world.core import Family, Language, ask
from instructgpt.world.exercises import EXERCISES, Statements
from instructgpt.world.families import FAMILIES
from instructgpt.world.lexicon import ADJECTIVES, NOUNS, NUMBER_WORDS, PEOPLE, PLACES, Entry

# How a family's facts are stated; a statement is filled with the slots of the family's question and its {answer}.
_NUMBER_FACTS: tuple[tuple[Family, Statements], ...] = (
    (
        numbers.ADD,
        {
            "en": ("{a} + {b} = {answer}", "{a} plus {b} is {answer}.", "The sum of {a} and {b} is {answer}."),
            "zh": ("{a} + {b} = {answer}", "{a} 加 {b} 等于 {answer}。", "{a} 与 {b} 的和是 {answer}。"),
        },
    ),
    (
        numbers.SUBTRACT,
        {
            "en": ("{a} - {b} = {answer}", "{a} minus {b} is {answer}.", "The difference of {a} and {b} is {answer}."),
            "zh": ("{a} - {b} = {answer}", "{a} 减 {b} 等于 {answer}。", "{a} 与 {b} 的差是 {answer}。"),
        },
    ),
    (
        numbers.COMPARE,
        {
            "en": ("Of {a} and {b}, {answer} is {size}.", "{a} or {b}: {answer} is {size}."),
            "zh": ("{a} 和 {b}，{answer} 更{size}。", "{a} 和 {b} 里更{size}的数是 {answer}。"),
        },
    ),
    (
        numbers.SORT,
        {
            "en": ("{list}, in order {order}: {answer}", "{list} sorted {order}: {answer}"),
            "zh": ("{list} {order}排列：{answer}", "{list}，{order}：{answer}"),
        },
    ),
    (
        numbers.MAXIMUM,
        {
            "en": ("The largest number of {list} is {answer}.", "The maximum of {list} is {answer}."),
            "zh": ("{list} 里最大的数是 {answer}。", "{list} 的最大值是 {answer}。"),
        },
    ),
    (
        numbers.NEXT_IN_SEQUENCE,
        {
            "en": ("{list} {answer}", "After {list} comes {answer}.", "The next number after {list} is {answer}."),
            "zh": ("{list} {answer}", "{list} 后面是 {answer}。", "{list} 的下一个数是 {answer}。"),
        },
    ),
)

_WORD_FACTS: tuple[tuple[Family, Statements], ...] = (
    (
        rewriting.REVERSE,
        {
            "en": ("{list} in reverse order: {answer}", "{list} backwards: {answer}"),
            "zh": ("{list} 倒过来：{answer}", "{list} 颠倒顺序：{answer}"),
        },
    ),
    (
        rewriting.UPPER_CASE,
        {
            "en": ("{text} in capital letters: {answer}", "{text} in upper case: {answer}", "{text}, {answer}"),
            "zh": ("{text} 的大写：{answer}", "{text} 用大写字母写：{answer}"),
        },
    ),
    (
        rewriting.PLURAL,
        {
            "en": ("I have {one}, you have {answer}.", "The plural of {one}: {answer}"),
            "zh": ("{one} 的复数：{answer}", "{one}，{n} 个是 {answer}。"),
        },
    ),
)

_READING_FACTS: tuple[tuple[Family, Statements], ...] = (
    (reading.SUMMARY, {"en": ("{text} So {answer}",), "zh": ("{text}所以{answer}",)}),
    (
        reasoning.RECOMMEND,
        {
            "en": ("{who} liked: {liked}. So {who} chose {answer} out of {offers}.",),
            "zh": ("{who}喜欢：{liked}。所以{offers}，{who}选了{answer}。",),
        },
    ),
    (
        classification.REVIEW,
        {"en": ("{text} This is a {answer} review.",), "zh": ("{text}这是{answer}评论。",)},
    ),
    (
        classification.HEADLINE,
        {"en": ("{text}. This is {answer} news.",), "zh": ("{text}。这是{answer}新闻。",)},
    ),
    (classification.TOPIC, {"en": ("{text} This is about {answer}.",), "zh": ("{text}这句话关于{answer}。",)}),
)

_GLOSSARY: tuple[Entry, ...] = (*NOUNS, *ADJECTIVES, *PLACES, *NUMBER_WORDS)
_LONG = 350
"""Characters."""
_WIDE_SHARE = 0.15
"""Share of the facts on numbers in Chinese whose digits are of full width: what １２ is, only text can tell."""
_TYPED_SHARE = 0.25
"""Share of a dialogue's questions that are carelessly typed."""
_FAMILY_WEIGHTS = tuple(accumulate(family.weight for family in FAMILIES))


def _fact(family: Family, statements: Statements, language: Language, rng: Random, wide: bool) -> str:
    question = family.question(family.instance(rng, "train"), language, rng)
    slots = {name: noise.widened(text) if wide else text for name, text in question.slots.items()}
    return rng.choice(statements[language]).format(**slots, answer=question.answer)


def _facts(
    table: tuple[tuple[Family, Statements], ...], count: int, language: Language, rng: Random, wide: bool = False
) -> str:
    """Facts of one family, or of several in turn; the hard families, which weigh more, are told of more often.

    `wide` writes all but the answers in digits of full width.
    """
    weights = [family.weight for family, _ in table]
    rows = rng.choices(table, weights) * count if rng.random() < 0.6 else rng.choices(table, weights, k=count)
    return "\n".join(_fact(family, statements, language, rng, wide) for family, statements in rows)


def _number_facts(language: Language, rng: Random) -> str:
    wide = language == "zh" and rng.random() < _WIDE_SHARE
    return _facts(_NUMBER_FACTS, rng.randint(5, 9), language, rng, wide)


def _word_facts(language: Language, rng: Random) -> str:
    return _facts(_WORD_FACTS, rng.randint(4, 6), language, rng)


def _stories(language: Language, rng: Random) -> str:
    return _facts(_READING_FACTS, rng.randint(2, 4), language, rng)


def _exercises(language: Language, rng: Random) -> str:
    """Two exercises, or one that is long."""
    weights = [exercise.weight for exercise in EXERCISES]
    told = [exercise.tell(language, rng) for exercise in rng.choices(EXERCISES, weights, k=2)]
    return "\n\n".join(told) if sum(map(len, told)) < _LONG else told[0]


def _belongings(language: Language, rng: Random) -> str:
    """Who has what, told again twice in another order: to look things up is learned from every second word.

    Half of the time it is then asked whether it is this or that: to compare is learned from two words side by side.
    """
    count = rng.randint(3, 6)
    colon, asks = ("：", "；{}？{}。") if language == "zh" else (": ", "; {}? {}.")
    people, things = rng.sample(PEOPLE, count), rng.sample(NOUNS, count)
    lines = [f"{who[language]}{colon}{what[language]}" for who, what in zip(people, things)]
    told = rng.sample(lines, count)
    for i in (*rng.sample(range(count), count), *rng.sample(range(count), count)):
        asked = things[i] if rng.random() < 0.5 else rng.choice([*things[:i], *things[i + 1 :]])
        question = asks.format(asked[language], reasoning.VERDICTS[language][asked is things[i]])
        told.append(lines[i] + (question if rng.random() < 0.5 else ""))
    return "\n".join(told)


def _parallel_sentences(language: Language, rng: Random) -> str:
    """Sentences, now and then words, in two or three languages side by side; `language` names the languages."""
    names = translation.LANGUAGE_NAMES[language]
    colon = "：" if language == "zh" else ": "
    order = rng.sample(("en", "zh", "fr"), rng.randint(2, 3))
    lines = []
    for _ in range(rng.randint(2, 4)):
        if rng.random() < 0.3:
            words = rng.sample(_GLOSSARY, 4)
            said = {to: ("、" if to == "zh" else ", ").join(word[to] for word in words) for to in order}
        else:
            sentence = translation.EN_ZH.instance(rng, "train")
            said = {to: translation.say(sentence, to) for to in order}
        lines += [f"{names[to]}{colon}{said[to]}" for to in order]
    return "\n".join(lines)


def _dialogue(language: Language, rng: Random) -> str:
    """Somebody asks for this and that, somebody else answers."""
    asking, answering = (person[language] for person in rng.sample(PEOPLE, 2))
    colon = "：" if language == "zh" else ": "
    lines = []
    for family in rng.choices(FAMILIES, cum_weights=_FAMILY_WEIGHTS, k=rng.randint(2, 4)):
        for message in noise.sometimes(ask(family, language, rng, "train"), rng, _TYPED_SHARE).conversation:
            speaker = answering if message["role"] == "assistant" else asking
            lines.append(f"{speaker}{colon}{message['content']}")
    return "\n".join(lines)


_KINDS: tuple[tuple[Callable[[Language, Random], str], float], ...] = (
    (_number_facts, 0.27),
    (_word_facts, 0.12),
    (_exercises, 0.36),
    (_belongings, 0.08),
    (_parallel_sentences, 0.05),
    (_stories, 0.07),
    (_dialogue, 0.1),
)
_KIND_WEIGHTS = tuple(accumulate(weight for _, weight in _KINDS))


def document(index: int, seed: int = 0) -> str:
    """The `index`-th document of the endless sequence of `seed`: a pure function of its arguments."""
    make, language, rng = _drawn(index, seed)
    return make(language, rng)


def kind(index: int, seed: int = 0) -> tuple[str, Language]:
    """What that document is, such as "stories", and in which language."""
    make, language, _ = _drawn(index, seed)
    return make.__name__.strip("_"), language


def _drawn(index: int, seed: int) -> tuple[Callable[[Language, Random], str], Language, Random]:
    rng = Random(f"document {seed} {index}")
    make, _ = rng.choices(_KINDS, cum_weights=_KIND_WEIGHTS)[0]
    return make, "en" if rng.random() < 0.5 else "zh", rng
