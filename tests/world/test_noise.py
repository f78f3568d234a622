"""Careless typing: it changes how a task is asked, never what is right to answer."""

from __future__ import annotations

import re
import unicodedata
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world import example, noise, preference, sample
from instructgpt.world.core import Example, Family, Language, ask
from instructgpt.world.families import BY_NAME, FAMILIES
from instructgpt.world.noise import HABITS, disturbed, is_held_out, widened

HABIT = {habit.name: habit for habit in HABITS}
LANGUAGES: tuple[Language, ...] = ("en", "zh")


def typings(habit: str, text: str, kept: tuple[str, ...] = ()) -> set[str]:
    """All that the habit may make of a text."""
    return {HABIT[habit].strike(text, way, Random(seed), kept) for way in HABIT[habit].ways for seed in range(40)}


@pytest.mark.parametrize(
    ("habit", "text", "typed"),
    [
        ("space after", "Add 3 and 4.", {"Add 3 and 4. ", "Add 3 and 4.  ", "Add 3 and 4.\t", "Add 3 and 4.\u3000"}),
        ("line end after", "Hi", {"Hi\n", "Hi\r", "Hi\r\n", "Hi\n\n"}),
        ("space before", "Hi", {" Hi", "  Hi", "\tHi", "\nHi", "\u3000Hi"}),
        ("doubled space", "to be it", {"to  be it", "to   be it", "to be  it", "to be   it"}),
        ("doubled space", "你好。", {"你好。"}),
        ("no final mark", "Why?", {"Why"}),
        ("no final mark", "计算 3 + 4。", {"计算 3 + 4"}),
        ("no final mark", "Sort: 3 1 2", {"Sort: 3 1 2"}),
        ("doubled final mark", "Why?", {"Why??", "Why???"}),
        ("space before a mark", "Why? It is so.", {"Why ? It is so.", "Why? It is so ."}),
        ("space before a mark", "It is 9:30", {"It is 9:30"}),
        ("no space after a mark", "a hat, a cat: 3", {"a hat,a cat: 3", "a hat, a cat:3"}),
        ("lower case at the start", "What is it, Anna?", {"what is it, Anna?"}),
        ("lower case at the start", "JSON with Anna", {"JSON with Anna"}),
        ("lower case", "Translate to French: The Hat", {"translate to french: the hat"}),
        ("other line ends", "a\nb\nc", {"a\r\nb\r\nc", "a\rb\rc", "a \nb \nc", "a\n\nb\n\nc"}),
        ("no spaces around a sign", "What is 12 + 3 - 4?", {"What is 12+3-4?"}),
        ("no spaces around a sign", "12 3 4", {"12 3 4"}),
        ("no space beside Chinese", "把 12 3 和 JSON 用。", {"把12 3和JSON用。"}),
        ("no space beside Chinese", "去掉球：球 车站", {"去掉球：球 车站"}),
        ("digits of full width", "计算 12 + 3 = ?", {"计算 １２ ＋ ３ ＝ ?"}),
        ("marks of the other width", "问题：谁，谁？", {"问题:谁,谁?", "问题：谁，谁？"}),
        ("marks of the other width", "3 + 4 = ?", {"3 + 4 = ?", "3 + 4 = ？"}),
    ],
)  # fmt: skip
def test_each_habit_by_hand(habit: str, text: str, typed: set[str]) -> None:
    assert typings(habit, text) == typed


def test_what_is_kept_is_not_touched() -> None:
    assert typings("doubled space", "Upper case: A b", ("A b",)) == {"Upper  case: A b", "Upper   case: A b"} | {
        "Upper case:  A b",
        "Upper case:   A b",
    }
    assert typings("lower case", "Upper case: A b", ("A b",)) == {"upper case: A b"}
    assert typings("no final mark", "大写：A b.", ("A b.",)) == {"大写：A b."}
    assert typings("space after", "Upper case: A b", ("A b",)) == typings("space after", "Upper case: A b")


def test_digits_of_full_width() -> None:
    assert widened("12+30=42, a-b") == "１２＋３０＝４２, a－b"
    assert unicodedata.normalize("NFKC", widened("0123456789+-=")) == "0123456789+-="


def words(messages: list[dict[str, str]]) -> list[str]:
    """What messages say, however they are typed: words, numbers, Chinese characters."""
    text = "\n".join(message["content"] for message in messages)
    return re.findall("[^\\W\\d_\u4e00-\u9fff]+|[0-9]+|[\u4e00-\u9fff]", unicodedata.normalize("NFKC", text).lower())


def prompt(drawn: Example) -> str:
    return drawn.messages[-1]["content"]


@given(
    family=st.sampled_from(FAMILIES), language=st.sampled_from(LANGUAGES), seed=st.integers(0, 2**32),
    trained=st.booleans(),
)  # fmt: skip
def test_a_typist_says_the_same(family: Family, language: Language, seed: int, trained: bool) -> None:
    clean = ask(family, language, Random(seed), "train")
    typed = disturbed(clean, Random(seed), trained)
    assert typed == disturbed(clean, Random(seed), trained)
    assert prompt(typed) != prompt(clean)
    assert words(typed.messages) == words(clean.messages)
    assert all(part in prompt(typed) for part in clean.kept)
    assert (typed.answer, typed.family, typed.split, typed.check(clean.answer)) == (
        clean.answer, clean.family, "train", 1.0,
    )  # fmt: skip
    for before, after in zip(clean.messages, typed.messages, strict=True):
        assert before["role"] == after["role"]
        assert before["role"] == "user" or before == after


def test_only_what_the_user_types_is_disturbed() -> None:
    """With turns before the question, of both sides, and with a system message."""
    for seed in range(100):
        clean = ask(BY_NAME["follow_up" if seed % 2 else "identity"], "en", Random(seed), "train")
        typed = disturbed(clean, Random(seed), trained=False)
        for before, after in zip(clean.messages, typed.messages, strict=True):
            assert before["role"] == "user" or before == after


def test_every_habit_occurs_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    struck: set[str] = set()
    for habit in HABITS:
        monkeypatch.setattr(noise, "HABITS", (habit,))
        drawn = (ask(BY_NAME["add"], "zh", Random(seed), "train") for seed in range(40))
        others = (ask(BY_NAME["passage"], "en", Random(seed), "train") for seed in range(40))
        if any(prompt(disturbed(clean, Random(0), trained=True)) != prompt(clean) for clean in (*drawn, *others)):
            struck.add(habit.name)
    assert struck == set(HABIT)


def test_text_in_capitals_is_repeated_as_it_stands() -> None:
    """The one family whose answer has every space and mark of its input."""
    for seed in range(200):
        clean = ask(BY_NAME["upper_case"], "en" if seed % 2 else "zh", Random(seed), "train")
        (text,) = clean.kept
        assert text.upper() == clean.answer
        assert text in prompt(disturbed(clean, Random(seed), trained=False))


# --- where it is used -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", (0, 5))
def test_the_split_is_test_carelessly_typed(seed: int) -> None:
    for clean, typed in zip(sample("test", 150, seed), sample("test_noise", 150, seed), strict=True):
        assert (typed.family, typed.language, typed.answer) == (clean.family, clean.language, clean.answer)
        assert (clean.split, typed.split) == ("test", "test_noise")
        assert prompt(typed) != prompt(clean) and words(typed.messages) == words(clean.messages)
    families = ["add", "sort"]
    assert [e.answer for e in sample("test_noise", 9, seed, families)] == [
        e.answer for e in sample("test", 9, seed, families)
    ]
    assert sample("test_noise", 9, seed)[0] == example("test_noise", 0, seed)


def test_a_share_of_training_is_disturbed_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = ("train", "val", "test", "test_phrasing", "test_composition")
    drawn = {split: [example(split, i) for i in range(1000 if split == "train" else 60)] for split in splits}
    pairs = [preference("train", i).messages for i in range(300)]
    share = noise.SHARE
    monkeypatch.setattr(noise, "SHARE", 0.0)
    clean = {split: [example(split, i) for i in range(len(drawn[split]))] for split in splits}
    changed = sum(one != other for one, other in zip(drawn["train"], clean["train"]))
    assert abs(changed / 1000 - share) < 0.05
    assert all(drawn[split] == clean[split] for split in splits[1:])
    assert abs(sum(one != preference("train", i).messages for i, one in enumerate(pairs)) / 300 - share) < 0.1
    assert preference("test", 0).messages[-1]["content"].strip() == preference("test", 0).messages[-1]["content"]


def test_some_combinations_are_tested_and_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So some of what `test_noise` asks is new in kind, not only in its words."""
    for size, least, most in ((1, 0.0, 0.0), (2, 0.15, 0.35), (3, 0.15, 0.35)):
        together = list(combinations(HABIT, size))
        assert least <= sum(map(is_held_out, together)) / len(together) <= most
    monkeypatch.setattr(noise, "SHARE", 1.0)
    typists: list[dict] = []
    draw = noise.draw_typist
    monkeypatch.setattr(noise, "draw_typist", lambda *given: typists.append(draw(*given)) or typists[-1])

    def typed(*drawn: object) -> dict:
        """The last one drawn is the one who typed."""
        return typists[-1]

    trained = [typed(preference("train", i)) for i in range(200)] + [typed(example("train", i)) for i in range(200)]
    assert not any(map(is_held_out, trained))
    tested = [typed(example("test_noise", i)) for i in range(200)]
    assert 20 < sum(map(is_held_out, tested)) < 60
    assert {len(typist) for typist in tested} == {len(typist) for typist in trained} == {1, 2, 3}


def test_no_test_prompt_is_trained_on_however_it_is_typed() -> None:
    trained = {" ".join(words(example("train", index).messages)) for index in range(4000)}
    assert not trained & {" ".join(words(e.messages)) for e in sample("test_noise", 500)}
