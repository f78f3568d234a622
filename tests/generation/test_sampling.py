from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.generation import sampling
from instructgpt.generation.sampling import (
    NOT_A_NUMBER,
    SamplingConfig,
    SamplingRows,
    apply_temperature,
    bias,
    draw,
    log_probabilities,
    min_p,
    punish,
    sample,
    top_k,
    top_p,
)

# Tenths: some tie, and none differ by rounding alone.
rows = st.lists(st.integers(-80, 80).map(lambda tenths: tenths / 10), min_size=2, max_size=12)


def numbers(count: int, seed: int = 0) -> Tensor:
    """The first number of as many seeds."""
    return torch.cat([torch.rand(1, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])


def choose(logits: Tensor, config: SamplingConfig, *further: Any) -> Tensor:
    """The tokens of rows that are all of one kind."""
    return sample(logits, SamplingRows.of([config] * len(logits)), *further)


def kept(logits: Tensor) -> list[int]:
    return (logits[0] > -math.inf).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
        {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 1.5}, {"repetition_penalty": 0.0},
        {"seed": -1}, {"stop": ("",)}, {"stop": "text"}, {"presence_penalty": 2.1}, {"frequency_penalty": math.nan},
        {"stop_ids": (-1,)}, {"logit_bias": ((-1, 0.5),)}, {"logit_bias": ((3, math.inf),)},
        {"logit_bias": ((3, math.nan),)}, {"logit_bias": ((3, 0.5), (3, 0.5))},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_value(wrong: dict[str, Any]):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=name) as error:
        SamplingConfig(**wrong)
    parts = value[0] if name in ("logit_bias", "stop_ids") and isinstance(value[0], tuple) else [value]
    assert all(repr(part) in str(error.value) or str(part).strip("(),") in str(error.value) for part in parts)


def test_a_bias_may_be_a_mapping_and_ids_are_compared_to_a_vocabulary():
    config = SamplingConfig(logit_bias={7: 1.5, 2: -100.0}, stop_ids=(9,))  # pyright: ignore[reportArgumentType]
    assert config.logit_bias == ((7, 1.5), (2, -100.0)) and hash(config)
    config.check_ids(10)
    with pytest.raises(UserError, match=r"stop_ids has token 9; the vocabulary has 9"):
        config.check_ids(9)
    with pytest.raises(UserError, match=r"logit_bias has token 7"):
        SamplingConfig(logit_bias=((7, 1.0),)).check_ids(7)


@given(rows, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_their_ties(row: list[float], k: int):
    threshold = sorted(row, reverse=True)[k - 1] if 0 < k < len(row) else -math.inf
    logits = top_k(torch.tensor([row]), k)
    assert kept(logits) == [i for i, logit in enumerate(row) if logit >= threshold]
    assert [logits[0, i].item() for i in kept(logits)] == pytest.approx([row[i] for i in kept(logits)])


@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(row: list[float], p: float):
    logits = torch.tensor([row], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0].tolist()
    nucleus = kept(top_p(logits.clone(), p))
    masses = [probabilities[i] for i in nucleus]
    assert sum(masses) >= p - 1e-9
    assert sum(masses) - min(masses) < p + 1e-9
    assert min(masses) >= max((q for i, q in enumerate(probabilities) if i not in nucleus), default=0.0)


def test_top_p_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert kept(top_p(logits.clone(), 0.4)) == [1]
    assert kept(top_p(logits.clone(), 0.6)) == [1, 3]
    assert kept(top_p(logits.clone(), 0.8)) == [1, 2, 3]
    assert kept(top_p(logits.clone(), 1.0)) == [0, 1, 2, 3]
    assert kept(top_p(logits.clone(), 1e-12)) == [1]


@given(rows, st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_not_too_far_below_the_best(row: list[float], p: float):
    logits = torch.tensor([row], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0].tolist()
    for i, probability in enumerate(probabilities):
        if abs(probability - p * max(probabilities)) > 1e-9:
            assert (i in kept(min_p(logits.clone(), p))) == (probability > p * max(probabilities))


@given(st.lists(rows, min_size=2, max_size=5), st.data())
def test_each_row_has_a_rule_of_its_own(several: list[list[float]], data: st.DataObject):
    width = max(map(len, several))
    logits = torch.tensor([row + [-9.0] * (width - len(row)) for row in several], dtype=torch.float64)
    for rule, values in ((top_k, st.integers(1, 15)), (top_p, st.floats(0.01, 0.99)), (min_p, st.floats(0, 1))):
        each = [data.draw(values) for _ in several]
        together = rule(logits.clone(), torch.tensor(each, dtype=torch.float64)[:, None])
        assert torch.equal(together, torch.cat([rule(row[None].clone(), value) for row, value in zip(logits, each)]))


def test_the_nucleus_is_the_same_where_few_are_candidates_and_where_all_are(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for spread in (0.01, 1, 5, 20):
        logits = (torch.randn(3, 500, generator=generator, dtype=torch.float64) * spread).round(decimals=2)
        p = torch.tensor([[0.2], [0.9], [0.999999]], dtype=torch.float64)
        found = top_p(logits.clone(), p)
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "_likely", lambda q, _: (q, torch.arange(500).expand(3, 500)))
            assert torch.equal(found, top_p(logits.clone(), p))


def punished(logits: list[float], ids: list[int], **settings: float) -> list[float]:
    rules = SamplingRows.of([SamplingConfig(**settings)])  # pyright: ignore[reportArgumentType]
    generated = rules.generated([ids])
    assert generated is not None and rules.punished is not None
    return punish(torch.tensor([logits], dtype=torch.float64), generated, rules.punished)[0].tolist()


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_once():
    assert punished([3.0, -2.0, 1.0, -1.0], [0, 1, 0], repetition_penalty=2.0) == [1.5, -4.0, 1.0, -1.0]


def test_presence_counts_once_and_frequency_each_time():
    ids = [1, 3, 1, 1]
    assert punished([1.0, 1.0, 1.0, 1.0], ids, presence_penalty=0.5) == [1.0, 0.5, 1.0, 0.5]
    assert punished([1.0, 1.0, 1.0, 1.0], ids, frequency_penalty=0.5) == [1.0, -0.5, 1.0, 0.5]
    assert punished([1.0, 4.0, 1.0, 1.0], ids, frequency_penalty=-0.25, presence_penalty=1.0) == [1.0, 3.75, 1.0, 0.25]
    both = punished([1.0, 4.0, -1.0, -2.0], ids, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    assert both == [1.0, 0.25, -1.0, -4.75]
    assert punished([1.0, 4.0], [], frequency_penalty=2.0) == [1.0, 4.0]


def test_a_bias_is_added_to_its_tokens():
    rules = SamplingRows.of([SamplingConfig(), SamplingConfig(logit_bias=((2, 1.5), (0, -100.0)))])
    assert rules.bias is not None and rules.worked is not None
    biased = bias(torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64), rules.bias)
    assert biased.tolist() == [[-100.0, 1.0, 3.5]]
    assert sample(torch.tensor([[0.0, 3.0, 2.0]] * 2), rules).tolist() == [1, 2]


def test_temperature_divides_differences():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert apply_temperature(logits, 0.5).tolist() == [[-4.0, 0.0, -2.0]]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy_not_a_crash(temperature: float):
    logits = torch.tensor([[1.0, 900.0, 800.0, -math.inf]])
    config = SamplingConfig(temperature=temperature)
    assert choose(logits, config, numbers(1)).tolist() == [1]


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    count = 20_000
    counts = torch.zeros(5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // 100):
        counts += draw(probabilities.log().expand(100, 5), torch.rand(100, generator=generator)).bincount(minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    # Five standard deviations of a binomial.
    assert ((counts / count - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / count).sqrt()).all()


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_what_has_no_probability_is_never_drawn(seed: int, allowed: int):
    logits = torch.full((1, 8), -math.inf, dtype=torch.float64)
    logits[0, allowed] = 0.0
    assert draw(logits, numbers(1, seed)).tolist() == [allowed]


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-24, 3)])
def test_the_extreme_numbers_draw_the_first_and_the_last_possible_token(u: float, token: int, monkeypatch):
    for total in (1.0, 0.3, 7.7):  # softmax sums to 1 only up to rounding
        logits = torch.tensor([[-math.inf, 0.0, 0.0, 1.0, -math.inf]], dtype=torch.float64)
        monkeypatch.setattr(Tensor, "softmax", lambda self, dim, total=total: self.exp() * total)
        assert draw(logits, torch.tensor([u])).tolist() == [token]


@given(st.integers(0, 1000), st.integers(1, 6))
def test_a_row_is_sampled_as_if_it_were_alone(seed: int, count: int):
    logits = torch.randn(count, 11, generator=torch.Generator().manual_seed(seed))
    config = SamplingConfig(temperature=0.8, top_k=7, top_p=0.9, min_p=0.02)
    together = choose(logits, config, numbers(count, seed)).tolist()
    alone = [choose(logits[i : i + 1], config, numbers(count, seed)[i : i + 1]).item() for i in range(count)]
    assert together == alone


configs = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0, 1.0, 1.7]), top_k=st.sampled_from([0, 0, 1, 3, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.3, 0.95]), min_p=st.sampled_from([0.0, 0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5, 0.7]), presence_penalty=st.sampled_from([0.0, 0.0, 0.8, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.6]),
    logit_bias=st.sampled_from([(), (), ((2, 3.0),), ((0, -100.0), (5, 1.25))]),
)  # fmt: skip
WIDTH = 9
tokens = st.integers(0, WIDTH - 1)
requests = st.lists(
    st.tuples(
        st.lists(st.integers(-40, 40).map(lambda tenths: tenths / 10), min_size=WIDTH, max_size=WIDTH),
        configs,
        st.lists(tokens, max_size=12),
        st.sets(tokens, min_size=1) | st.none(),
        st.floats(0, 1 - 2**-24, width=32),
    ),
    min_size=1,
    max_size=6,
)


def plainly(logits: list[float], config: SamplingConfig, ids: list[int], allowed: set[int] | None, u: float) -> int:
    """The rules one by one, on one row of Python's numbers."""
    scores = dict(enumerate(logits))
    for token in set(ids):
        score = scores[token]
        score = score / config.repetition_penalty if score > 0 else score * config.repetition_penalty
        scores[token] = score - ids.count(token) * config.frequency_penalty - config.presence_penalty
    for token, number in config.logit_bias:
        scores[token] += number
    if allowed is not None:
        scores = {token: scores[token] for token in allowed}
    if config.greedy:
        return min(scores, key=lambda token: (-scores[token], token))
    best = max(scores.values())
    scores = {token: (score - best) / config.temperature for token, score in scores.items()}
    if config.top_k:
        kth = sorted(scores.values(), reverse=True)[: config.top_k][-1]
        scores = {token: score for token, score in scores.items() if score >= kth}
    shares = normalised(scores)
    if config.top_p < 1:
        inside, mass = [], 0.0
        for token in sorted(shares, key=lambda token: (-shares[token], token)):
            if mass < config.top_p:
                inside.append(token)
            mass += shares[token]
        scores = {token: scores[token] for token in inside}
    scores = {token: score for token, score in scores.items() if math.exp(score) >= config.min_p}
    mass = 0.0
    for token, share in sorted(normalised(scores).items()):
        mass += share
        if u < mass:
            return token
    return max(scores)


def normalised(scores: dict[int, float]) -> dict[int, float]:
    total = math.fsum(map(math.exp, scores.values()))
    return {token: math.exp(score) / total for token, score in scores.items()}


def by_rules(asked: list[tuple[list[float], SamplingConfig, list[int], set[int] | None, float]]) -> list[int]:
    bound = [i for i, (_, _, _, allowed, _) in enumerate(asked) if allowed is not None]
    rules = SamplingRows.of([config for _, config, *_ in asked], "cpu", bound)
    masks = [[token in asked[i][3] for token in range(WIDTH)] for i in bound]  # pyright: ignore
    return sample(
        torch.tensor([logits for logits, *_ in asked]),
        rules,
        torch.tensor([u for *_, u in asked]),
        rules.generated([ids for _, _, ids, _, _ in asked]),
        torch.tensor(masks) if masks else None,
    ).tolist()


@given(requests)
def test_a_batch_of_unlike_rows_chooses_what_each_would_alone_and_what_the_rules_say(asked):
    together = by_rules(asked)
    assert together == [by_rules([each])[0] for each in asked]
    assert together == [plainly(*each) for each in asked]


@given(requests.filter(lambda asked: len(asked) > 1))
def test_what_is_generated_grows_token_by_token(asked):
    rules = SamplingRows.of([config for _, config, *_ in asked])
    ids: list[list[int]] = [[] for _ in asked]
    generated = rules.generated(ids)
    for step in range(4):
        chosen = [i * step % WIDTH for i in range(len(asked))]
        generated = rules.and_then(generated, torch.tensor(chosen))
        ids = [[*before, token] for before, token in zip(ids, chosen)]
        whole = rules.generated(ids)
        if whole is None or generated is None:
            assert whole is generated
            continue
        assert sorted(zip(*map(Tensor.tolist, whole))) == sorted(zip(*map(Tensor.tolist, generated)))


def test_logits_are_left_as_they_are():
    logits = torch.randn(3, WIDTH, dtype=torch.float64)
    before = logits.clone()
    config = SamplingConfig(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, logit_bias=((1, 2.0),), presence_penalty=1)
    rules = SamplingRows.of([config] * 3)
    sample(logits, rules, numbers(3), rules.generated([[1], [2], []]))
    assert torch.equal(logits, before)


def test_work_over_the_vocabulary_is_done_for_the_rows_that_need_it(monkeypatch):
    done: list[tuple[str, int]] = []
    for name in ("apply_temperature", "top_k", "top_p", "min_p", "punish", "draw"):
        rule = getattr(sampling, name)
        monkeypatch.setattr(
            sampling, name, lambda x, *rest, _rule=rule, _name=name: (done.append((_name, len(x))), _rule(x, *rest))[1]
        )
    plain, wild = SamplingConfig(), SamplingConfig(temperature=1.0)
    nucleus = SamplingConfig(temperature=1.0, top_p=0.5)
    for configs, expected in (
        ([plain] * 3, []),
        ([wild] * 3, [("apply_temperature", 3), ("draw", 3)]),
        ([plain, nucleus, wild, nucleus], [("apply_temperature", 3), ("top_p", 2), ("draw", 3)]),
    ):
        done.clear()
        sample(torch.randn(len(configs), WIDTH), SamplingRows.of(configs), numbers(len(configs)))
        assert done == expected


def test_log_probabilities_by_hand():
    logits = torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], dtype=torch.float64).log() + 7
    chosen, top, likeliest = log_probabilities(logits, torch.tensor([0, 2]), 2)
    assert chosen.exp().tolist() == pytest.approx([0.1, 0.5]) and chosen.dtype == torch.float32
    assert top.exp().flatten().tolist() == pytest.approx([0.6, 0.3, 0.5, 0.25])
    assert likeliest[0].tolist() == [1, 2] and likeliest[1, 0].item() == 2
    assert log_probabilities(logits, torch.tensor([0, 2]))[1].shape == (2, 0)
    assert log_probabilities(logits, torch.tensor([0, NOT_A_NUMBER]), 9)[1].shape == (2, 3)


def test_greedy_takes_the_largest_logit_and_needs_no_numbers():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, -math.inf]])
    assert choose(logits, SamplingConfig()).tolist() == [1, 0]


def test_top_p_is_of_what_top_k_leaves():
    # Of the best two, 0.4 and 0.3, the first alone has 0.57 of the mass: enough for 0.5, not without top-k.
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=0.5)
    assert {choose(logits, config, numbers(1, seed)).item() for seed in range(50)} == {0}


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5, "top_k": 2}])
def test_a_row_that_is_no_number_has_no_token_and_leaves_the_others_alone(settings: dict[str, Any]):
    never = -math.inf
    logits = torch.tensor([[0.0, math.nan, 1.0], [never, 3.0, never], [math.nan] * 3, [never] * 3, [0, math.inf, 0]])
    assert choose(logits, SamplingConfig(**settings), numbers(5)).tolist() == [-1, 1, -1, -1, -1]
