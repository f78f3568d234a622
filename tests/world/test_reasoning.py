"""Inferences hold: the facts are parsed again here and the conclusion is drawn from them."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world.reasoning import INFERENCE, RECOMMEND, Chain

seeds = st.integers(0, 2**32)
Pair = tuple[str, str]
MORE = ("taller", "older", "faster", "stronger", "高", "年长", "快", "强")
LESS = ("shorter", "younger", "slower", "weaker", "矮", "年轻", "慢", "弱")


def more_and_less(subject: str, word: str, other: str) -> Pair:
    assert word in MORE + LESS
    return (subject, other) if word in MORE else (other, subject)


def follows(facts: list[Pair], wanted: Pair) -> bool:
    """Whether two facts chain up to the wanted one."""
    return any(a == wanted[0] and b == c and d == wanted[1] for a, b in facts for c, d in facts)


def comparisons(text: str, question: str, chinese: bool) -> tuple[list[Pair], Pair]:
    if chinese:
        fact = rf"(\w+?)比(\w+?)({'|'.join(word for word in MORE + LESS if not word.isascii())})"
        told = [(a, word, b) for a, b, word in re.findall(rf"{fact}。", text)]
        ((a, b, word),) = re.findall(rf"{fact}吗？", question)
    else:
        told = re.findall(r"(\w+) is (\w+) than (\w+)\.", text)
        ((a, word, b),) = re.findall(r"Is (\w+) (\w+) than (\w+)\?", question)
    return [more_and_less(*fact) for fact in told], more_and_less(a, word, b)


def places(text: str, question: str, chinese: bool) -> tuple[Pair, dict[str, str], Pair]:
    """Thing and container, container to place, and what is asked."""
    if chinese:
        (inside,) = re.findall(r"(\w+)在(\w+)里。", text)
        where = dict(re.findall(r"(\w+)在(\w+)(?<!里)。", text))
        (asked,) = re.findall(r"(\w+)在(\w+)吗？", question)
    else:
        (inside,) = re.findall(r"The (\w+) is in the (\w+)\.", text)
        where = dict(re.findall(r"The (\w+) is at the (\w+)\.", text))
        (asked,) = re.findall(r"Is the (\w+) at the (\w+)\?", question)
    return inside, where, asked


def conclusion(answer: str, chinese: bool) -> tuple[str, str, bool]:
    """The steps, each with its full stop; what is asked again; whether it holds."""
    match = re.fullmatch(r"(.+)；(\w+)？(是|不是)。" if chinese else r"(.+); (\w+)\? (Yes|No)\.", answer)
    assert match
    return match[1] + ("。" if chinese else "."), match[2], match[3] in ("是", "Yes")


@given(seed=seeds)
def test_an_inference_takes_two_facts_and_no_more(seed: int) -> None:
    rng = Random(seed)
    instance = INFERENCE.instance(rng, "train")
    for language, is_chinese in (("en", False), ("zh", True)):
        question = INFERENCE.question(instance, language, rng)
        steps, again, holds = conclusion(question.answer, is_chinese)
        text = (question.slots["facts"], question.slots["question"], is_chinese)
        if isinstance(instance, Chain):
            told, wanted = comparisons(*text)
            assert len(told) == 2
            assert wanted not in told and wanted[::-1] not in told  # no single fact answers
            assert follows(told, wanted if holds else wanted[::-1])
            # The steps are the facts, from the one asked about on.
            said, _ = comparisons(steps, text[1], is_chinese)
            assert sorted(said) == sorted(told) and again in text[1]
            subject = steps.split("比" if is_chinese else " is ")[0]
            assert text[1].removeprefix("Is ").startswith(subject)
        else:
            (thing, container), where, (asked, place) = places(*text)
            assert asked == thing and thing not in where and len(where) == 2
            assert place in where.values()
            assert (where[container] == place) == holds
            assert places(steps, text[1], is_chinese)[:2] == ((thing, container), {container: where[container]})
            assert again == place


def test_yes_and_no_are_as_frequent_whichever_fact_comes_first() -> None:
    rng = Random(0)
    first_named: Counter[tuple[bool, bool]] = Counter()
    for _ in range(4000):
        instance = INFERENCE.instance(rng, "train")
        question = INFERENCE.question(instance, "en", rng)
        facts, asked = question.slots["facts"], question.slots["question"]
        # Whether the thing or person asked about is the first one named, which a glance can see.
        glance = facts.split(" is ")[0].removeprefix("The ") == asked.split()[1]
        first_named[glance, question.answer.endswith("Yes.")] += 1
    for glance in (True, False):
        share = first_named[glance, True] / (first_named[glance, True] + first_named[glance, False])
        assert 0.3 < share < 0.7


SHELVES = (
    "cat dog bird horse fish mouse cow sheep rabbit duck goose fox wolf pig",
    "song piano guitar drum violin",
    "cake apple soup bread rice cheese",
    "hat coat shirt shoe dress",
    "chair table lamp bed sofa",
)
SHELF_OF = {word: shelf for shelf, words in enumerate(SHELVES) for word in words.split()}


@given(seed=seeds)
def test_exactly_one_offer_is_like_what_was_liked(seed: int) -> None:
    rng = Random(seed)
    instance = RECOMMEND.instance(rng, "train")
    english, chinese = (RECOMMEND.question(instance, language, rng) for language in ("en", "zh"))
    liked = english.slots["liked"].split(", ")
    offers = re.split(r", | or ", english.slots["offers"])
    (shelf,) = {SHELF_OF[word] for word in liked}
    assert [word for word in offers if SHELF_OF[word] == shelf] == [english.answer]
    assert len(offers) == 3 and english.answer not in liked
    # In Chinese the same offer is right.
    position = offers.index(english.answer)
    assert re.split("、|还是", chinese.slots["offers"])[position] == chinese.answer


def test_the_place_of_the_right_offer_says_nothing() -> None:
    rng = Random(0)
    places = Counter(
        instance.offers.index(instance.fitting) for instance in (RECOMMEND.instance(rng, "train") for _ in range(3000))
    )
    assert sorted(places) == [0, 1, 2]
    assert all(900 < count < 1100 for count in places.values())
