"""Rewriting: examples by hand, and what each rule keeps."""

from __future__ import annotations

from random import Random

from instructgpt.world import rewriting
from instructgpt.world.core import Family, Language, exact
from instructgpt.world.lexicon import ADJECTIVES, NOUNS, PLACES

WORDS = {entry.en: entry for entry in (*NOUNS, *PLACES, *ADJECTIVES)}
CAT, DOG, HAT, PARK = (WORDS[word] for word in ("cat", "dog", "hat", "park"))


def answer_in(family: Family, instance: object, language: Language) -> str:
    return family.question(instance, language, Random(0)).answer


def test_reverse_by_hand() -> None:
    assert answer_in(rewriting.REVERSE, (CAT, HAT, PARK), "en") == "park hat cat"
    assert answer_in(rewriting.REVERSE, (CAT, HAT, PARK), "zh") == "公园 帽子 猫"
    assert answer_in(rewriting.REVERSE, (1, 20, 3), "zh") == "3 20 1"


def test_upper_case_by_hand() -> None:
    assert answer_in(rewriting.UPPER_CASE, "l'hôtel gris", "en") == "L'HÔTEL GRIS"
    assert answer_in(rewriting.UPPER_CASE, "a red hat", "zh") == "A RED HAT"


def test_replace_and_remove_by_hand() -> None:
    change = rewriting.Replacement((CAT, HAT, PARK), 1, DOG)
    assert answer_in(rewriting.REPLACE, change, "en") == "cat dog park"
    assert rewriting.REPLACE.question(change, "zh", Random(0)).slots == {
        "list": "猫 帽子 公园",
        "old": "帽子",
        "new": "狗",
    }
    assert answer_in(rewriting.REMOVE, rewriting.Removal((CAT, HAT, PARK), 0), "zh") == "帽子 公园"


def test_plural_by_hand() -> None:
    amounts = {
        (3, None, "cat"): "3 cats",
        (12, "red", "mouse"): "12 red mice",
        (5, "big", "knife"): "5 big knives",
        (2, None, "sheep"): "2 sheep",
        (44, "white", "goose"): "44 white geese",
        (7, None, "box"): "7 boxes",
    }
    for (number, adjective, noun), plural in amounts.items():
        amount = rewriting.Amount(number, WORDS[adjective] if adjective else None, WORDS[noun])
        assert answer_in(rewriting.PLURAL, amount, "en") == plural
        assert exact(plural)(f"{number} {adjective or ''} {noun}") in (0.0, float(noun == "sheep" and not adjective))


def test_words_are_never_lost_or_doubled() -> None:
    rng = Random(0)
    languages: tuple[Language, ...] = ("en", "zh")
    for i in range(500):
        language = languages[i % 2]
        for family, change in ((rewriting.REVERSE, 0), (rewriting.REPLACE, 0), (rewriting.REMOVE, -1)):
            question = family.question(family.draw(rng), language, rng)
            before, after = question.slots["list"].split(" "), question.answer.split(" ")
            assert len(after) == len(before) + change
            assert len(set(after)) == len(after)
            assert after != before
            kept = [word for word in before if word not in (question.slots.get("word"), question.slots.get("old"))]
            order = kept[::-1] if family is rewriting.REVERSE else kept
            assert [word for word in after if word != question.slots.get("new")] == order


def test_capitals_leave_nothing_small() -> None:
    rng = Random(1)
    for _ in range(300):
        question = rewriting.UPPER_CASE.question(rewriting.UPPER_CASE.draw(rng), "zh", rng)
        assert question.answer.isupper()
        assert question.answer.casefold() == question.slots["text"].casefold()
        assert question.answer != question.slots["text"]
