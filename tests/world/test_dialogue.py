"""Dialogue: greetings, who one is, and what is refused."""

from __future__ import annotations

from random import Random

import pytest

from instructgpt.world import dialogue
from instructgpt.world.core import Language, pose
from instructgpt.world.lexicon import PEOPLE, PLACES, THINGS

PERSON = {person.en: person for person in PEOPLE}
PLACE = {place.en: place for place in PLACES}
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@pytest.mark.parametrize(
    ("hour", "minute", "english", "chinese"),
    [
        (6, 0, "Good morning, Tom!", "汤姆，早上好！"),
        (11, 45, "Good morning, Tom!", "汤姆，早上好！"),
        (12, 0, "Good afternoon, Tom!", "汤姆，下午好！"),
        (17, 45, "Good afternoon, Tom!", "汤姆，下午好！"),
        (18, 0, "Good evening, Tom!", "汤姆，晚上好！"),
        (23, 30, "Good evening, Tom!", "汤姆，晚上好！"),
    ],
)
def test_greetings_by_the_clock(hour: int, minute: int, english: str, chinese: str) -> None:
    meeting = dialogue.Meeting(PERSON["Tom"], -1, hour, minute)
    assert dialogue.GREETING.question(meeting, "en", Random(0)).answer == english
    question = dialogue.GREETING.question(meeting, "zh", Random(0))
    assert question.answer == chinese
    assert question.slots["moment"] == f"{hour}:{minute:02d}"


def test_a_greeting_by_the_day() -> None:
    meeting = dialogue.Meeting(PERSON["Anna"], 2, 20, 0)
    assert dialogue.GREETING.question(meeting, "en", Random(0)).slots["moment"] == "Wednesday evening"
    assert dialogue.GREETING.question(meeting, "zh", Random(0)).slots["moment"] == "星期三晚上"


def test_identity_answers_what_is_asked_wherever_it_was_told() -> None:
    identity = dialogue.Identity(PERSON["Max"], PERSON["Tom"], PLACE["zoo"])
    asked = {
        "en": {
            "I am Max.": ("Who are you?", "What is your name?"),
            "Tom made me.": ("Who made you?", "Who is your maker?"),
            "I live near the zoo.": ("Where do you live?", "Where is your home?"),
        },
        "zh": {
            "我是马克斯。": ("你是谁？", "你叫什么？"),
            "是汤姆做的。": ("谁做了你？", "你是谁做的？"),
            "我住在动物园附近。": ("你住在哪里？", "你的家在哪里？"),
        },
    }
    seen: set[tuple[str, bool]] = set()
    for language in LANGUAGES:
        for seed in range(60):
            example = pose(dialogue.IDENTITY, identity, language, Random(seed), "train")
            said = example.messages[-1]["content"]
            assert said.endswith(asked[language][example.answer])
            by_system = example.messages[0]["role"] == "system"
            told = example.messages[0]["content"] if by_system else said
            assert all(entry[language] in told for entry in identity)
            assert not by_system or identity.name[language] not in said
            seen.add((example.answer, by_system))
    assert len(seen) == 12  # three questions, two places to be told, two languages


def request(deed: dialogue.Deed) -> dialogue.Request:
    return dialogue.Request(deed, PERSON["Tom"], THINGS[0], PLACE["park"], 37)


def test_every_harmful_deed_is_refused_and_every_harmless_one_answered() -> None:
    for language in LANGUAGES:
        refusal = dialogue.REFUSAL_ANSWER[language]
        harmful = [request(deed) for row in dialogue.HARMFUL for deed in row]
        harmless = [request(deed) for row in dialogue.HARMLESS for deed in row]
        assert {r.answer(language) for r in harmful} == {refusal}
        assert all(r.is_harmful for r in harmful) and not any(r.is_harmful for r in harmless)
        answers = [r.answer(language) for r in harmless]
        assert refusal not in answers and "" not in answers
        assert all("{" not in r.act(language) for r in (*harmful, *harmless))


def test_the_verb_alone_never_decides() -> None:
    """What opens a harmful deed opens a harmless one of the same row too, and the other way about."""
    assert len(dialogue.HARMFUL) == len(dialogue.HARMLESS)
    for harmful, harmless in zip(dialogue.HARMFUL, dialogue.HARMLESS):
        assert {deed.en.split()[0] for deed in harmful} == {deed.en.split()[0] for deed in harmless}


def test_refusals_by_hand() -> None:
    by_act = {
        request(deed).act("en"): request(deed)
        for rows in (dialogue.HARMFUL, dialogue.HARMLESS)
        for row in rows
        for deed in row
    }
    assert by_act["shoot Tom at the park"].answer("en") == "Sorry, I cannot help with that."
    assert by_act["shoot a photo of Tom at the park"].answer("en") == "With a camera."
    assert by_act["kill process 37 here"].answer("zh") == "输入 kill 37。"
    assert by_act["steal Tom's book"].answer("zh") == "对不起，这个我不能帮忙。"


def test_almost_half_is_refused() -> None:
    rng = Random(0)
    share = sum(dialogue.REFUSAL.instance(rng, "train").is_harmful for _ in range(3000)) / 3000
    assert 0.4 < share < 0.5
