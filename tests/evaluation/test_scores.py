from __future__ import annotations

import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.evaluation.scores import (
    Interval,
    accuracy_and_macro_f1,
    bleu_chrf,
    exact_match,
    has_sacrebleu,
    macro_interval,
    mean_interval,
    ratio_interval,
    token_accuracy,
)

needs_sacrebleu = pytest.mark.skipif(not has_sacrebleu(), reason="sacrebleu (extra `eval`) is not installed")


def test_exact_match_ignores_outer_white_space_only():
    assert exact_match([" a b\n", "a  b", "A b", ""], ["a b"] * 4) == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError):
        exact_match(["a"], [])


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # As printed in Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(right: int, n: int, low: float, high: float):
    interval = mean_interval([1.0] * right + [0.0] * (n - right))
    assert interval.mean == pytest.approx(right / n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert interval.n == n


def test_normal_interval_of_scores_in_between():
    # Mean 0.5, variance (0.25² + 0 + 0.25²)/2 = 0.0625, so 1.96·0.25/√3 on either side.
    interval = mean_interval([0.25, 0.5, 0.75])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.217104, 0.782896), abs=1e-6)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_stays_in_range(scores: list[float]):
    interval = mean_interval(scores)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


def test_the_mean_of_nothing_is_refused():
    for function in (mean_interval, macro_interval):
        with pytest.raises(ValueError, match="no scores"):
            function([])


def test_macro_interval_adds_the_arms_in_squares():
    macro = macro_interval([Interval(0.5, 0.2, 0.9, 20), Interval(1.0, 0.6, 1.0, 10)])
    # Below: sqrt(0.3² + 0.4²)/2; above: sqrt(0.4² + 0²)/2.
    assert (macro.mean, macro.low, macro.high) == pytest.approx((0.75, 0.5, 0.95))
    assert macro.n == 30 and macro.half_width == pytest.approx(0.225)


def test_macro_interval_of_one_part_is_that_part():
    part = mean_interval([1.0, 0.0, 1.0])
    macro = macro_interval([part])
    assert (macro.mean, macro.low, macro.high, macro.n) == pytest.approx((part.mean, part.low, part.high, part.n))


def test_accuracy_and_macro_f1_by_hand():
    references = ["up", "up", "up", "down", "down", "flat"]
    answers = ["up", "up", "down", " down ", "up", "no idea"]
    scores = accuracy_and_macro_f1(answers, references)
    assert scores.accuracy == pytest.approx(3 / 6)
    # up: 2·2/(3 said + 3 true) = 2/3; down: 2·1/(2 + 2) = 1/2; flat: 0. What is no label is no class of its own.
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.unknown == 1
    # Always "up": F1 of up = 2·3/(6 + 3) = 2/3, of the others 0.
    assert (scores.majority_label, scores.majority_accuracy) == ("up", 0.5)
    assert scores.majority_macro_f1 == pytest.approx(2 / 9)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_right_answers_score_1_and_the_majority_scores_as_told(references: list[str]):
    perfect = accuracy_and_macro_f1(references, references)
    assert (perfect.accuracy, perfect.macro_f1, perfect.unknown) == (1.0, 1.0, 0)
    constant = accuracy_and_macro_f1([perfect.majority_label] * len(references), references)
    assert constant.accuracy == constant.majority_accuracy == perfect.majority_accuracy
    assert constant.macro_f1 == constant.majority_macro_f1 == perfect.majority_macro_f1


@needs_sacrebleu
def test_bleu_by_hand():
    # Precisions 5/6, 3/5, 1/4, 0/3 smoothed (exp) to 1/(2·3); equal lengths, so no brevity penalty.
    scores = bleu_chrf(["the cat sat on a mat"], ["the cat sat in a mat"])
    assert scores.bleu == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25, abs=1e-3)
    assert "tok:13a" in scores.signature


@needs_sacrebleu
def test_right_translations_score_100():
    texts = ["the cat sat on the mat", "a red bird sings"]
    assert bleu_chrf(texts, texts).bleu == pytest.approx(100)
    assert bleu_chrf(texts, texts).chrf == pytest.approx(100)


@needs_sacrebleu
def test_chinese_is_split_into_characters():
    scores = bleu_chrf(["我喜欢红色的猫"], ["我喜欢红色的狗"])
    assert "tok:zh" in scores.signature and scores.bleu > 50


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert not has_sacrebleu()
    with pytest.raises(UserError, match=r"instructgpt\[eval\]"):
        bleu_chrf(["a"], ["a"])


@needs_sacrebleu
def test_answers_without_references_are_refused():
    with pytest.raises(ValueError, match="2 answers for 1 references"):
        bleu_chrf(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("said", "right", "share"),
    [
        ([[1, 2, 3]], [[1, 2, 3]], 1.0),
        ([[1, 2]], [[1, 2, 3, 4]], 0.5),  # what is missing is wrong
        ([[1, 2, 3, 4]], [[1, 2]], 0.5),  # and so is what goes on
        ([[9, 1, 2, 3]], [[1, 2, 3]], 0.0),  # one token too many moves all others
        ([[], [5]], [[7], [5]], 0.5),
    ],
)
def test_token_accuracy_is_place_by_place(said: list[list[int]], right: list[list[int]], share: float):
    assert token_accuracy(said, right) == share


def test_the_token_accuracy_of_nothing_is_none():
    with pytest.raises(ValueError, match="of nothing"):
        token_accuracy([[]], [[]])


def test_a_ratio_is_that_of_the_sums_and_its_interval_over_documents() -> None:
    found = ratio_interval([10.0, 30.0, 20.0], [10.0, 20.0, 20.0])
    # Sums 60 and 50; residuals 10 - 12, 30 - 24, 20 - 24: squares 56, times 3/2, the root over 50.
    assert found.mean == pytest.approx(1.2) and found.n == 3
    assert found.half_width == pytest.approx(1.959964 * math.sqrt(84) / 50)
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]).half_width == 0


def test_the_ratios_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(400):
        sizes = [draw.uniform(50, 500) for _ in range(100)]
        found = ratio_interval([size * draw.uniform(0.5, 1.5) for size in sizes], sizes)
        hits += found.low <= 1.0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize("amounts, sizes", [([], []), ([1.0], [1.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_there_is_no_ratio_of_nothing(amounts: list[float], sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="the ratio of"):
        ratio_interval(amounts, sizes)
