"""Labels follow from the words: they are worked out again here from the text alone."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world.classification import HEADLINE, REVIEW, TOPIC
from instructgpt.world.core import Language

seeds = st.integers(0, 2**32)


def asked(family, seed: int, language: Language) -> tuple[str, str]:
    rng = Random(seed)
    question = family.question(family.instance(rng, "train"), language, rng)
    return question.slots["text"], question.answer


GOOD = {"en": ["good", "great", "perfect", "excellent", "lovely"], "zh": ["好", "棒", "完美", "出色", "令人满意"]}


@pytest.mark.parametrize(("language", "label"), [("en", "positive"), ("zh", "正面")])
@given(seed=seeds)
def test_the_last_clause_of_a_review_decides(language: Language, label: str, seed: int) -> None:
    text, answer = asked(REVIEW, seed, language)
    last = re.split(r" and |, but |，", text.rstrip(".。"))[-1]
    is_denied = "不" in last or " not " in last
    is_good = any(last.endswith(word) for word in GOOD[language])
    assert (answer == label) == (is_good != is_denied), text


def test_a_good_word_does_not_make_a_review_good() -> None:
    rng = Random(0)
    texts = [asked(REVIEW, rng.getrandbits(32), "en") for _ in range(2000)]
    for word in GOOD["en"]:
        labels = [label for text, label in texts if word in text]
        assert 0.45 < labels.count("positive") / len(labels) < 0.75, word


WELCOME = ("profit", "sales", "income", "orders", "利润", "销售额", "收入", "订单")
UNWELCOME = ("costs", "debt", "losses", "fines", "成本", "债务", "亏损", "罚款")
UP = (" up ", "rising", "growing", "上涨", "上升", "增长")
DOWN = (" down ", "falling", "shrinking", "下跌", "下降", "减少")


@pytest.mark.parametrize(
    ("language", "labels"), [("en", ("positive", "neutral", "negative")), ("zh", ("正面", "中性", "负面"))]
)
@given(seed=seeds)
def test_a_rise_is_good_for_profit_and_bad_for_costs(language: Language, labels: tuple[str, ...], seed: int) -> None:
    text, answer = asked(HEADLINE, seed, language)
    welcome, unwelcome = (any(word in text for word in words) for words in (WELCOME, UNWELCOME))
    rise, fall = (any(word in text for word in words) for words in (UP, DOWN))
    assert welcome != unwelcome and not (rise and fall)
    expected = labels[1] if not (rise or fall) else labels[0] if welcome == rise else labels[2]
    assert answer == expected, text


TOPIC_WORDS = {
    "sports": "match team goal coach race",
    "food": "soup bread rice cheese cook",
    "weather": "rain snow wind storm sun",
    "music": "song piano guitar drum band",
    "health": "doctor nurse pill fever cough",
    "travel": "train plane ticket trip tour",
}


@given(seed=seeds)
def test_both_words_are_of_the_topic(seed: int) -> None:
    text, answer = asked(TOPIC, seed, "en")
    words = re.findall(r"\w+", text)
    found = {topic: sum(word in words for word in named.split()) for topic, named in TOPIC_WORDS.items()}
    assert found.pop(answer) == 2
    assert not any(found.values())


@pytest.mark.parametrize("family", (REVIEW, HEADLINE, TOPIC), ids=lambda family: family.name)
def test_both_languages_ask_the_same(family) -> None:
    rng = Random(0)
    pairs = set()
    for _ in range(300):
        instance = family.instance(rng, "train")
        pairs.add(tuple(family.question(instance, language, rng).answer for language in ("en", "zh")))
    # Each English label goes with one Chinese label, and the other way round.
    assert len(pairs) == len({en for en, _ in pairs}) == len({zh for _, zh in pairs})
