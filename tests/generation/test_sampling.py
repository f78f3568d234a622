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
from instructgpt.generation.logits import bias
from instructgpt.generation.sampling import SamplingConfig, SamplingRows, sample


def numbers(count: int, seed: int = 0) -> Tensor:
    """The first number of as many seeds."""
    return torch.cat([torch.rand(1, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])


def choose(logits: Tensor, config: SamplingConfig, *further: Any) -> Tensor:
    """The tokens of rows that are all of one kind."""
    return sample(logits, SamplingRows.of([config] * len(logits)), *further)


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


def test_a_bias_is_added_to_its_tokens():
    rules = SamplingRows.of([SamplingConfig(), SamplingConfig(logit_bias=((2, 1.5), (0, -100.0)))])
    assert rules.bias is not None and rules.worked is not None
    biased = bias(torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64), rules.bias)
    assert biased.tolist() == [[-100.0, 1.0, 3.5]]
    assert sample(torch.tensor([[0.0, 3.0, 2.0]] * 2), rules).tolist() == [1, 2]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy_not_a_crash(temperature: float):
    logits = torch.tensor([[1.0, 900.0, 800.0, -math.inf]])
    config = SamplingConfig(temperature=temperature)
    assert choose(logits, config, numbers(1)).tolist() == [1]


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
    top_p=st.sampled_from([1.0, 1.0, 0.3137, 0.951]), min_p=st.sampled_from([0.0, 0.0, 0.137]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5, 0.7]), presence_penalty=st.sampled_from([0.0, 0.0, 0.75, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.625]),
    logit_bias=st.sampled_from([(), (), ((2, 3.0),), ((0, -100.0), (5, 1.25))]),
)  # fmt: skip
WIDTH = 9
tokens = st.integers(0, WIDTH - 1)
requests = st.lists(
    st.tuples(
        st.lists(st.integers(-32, 32).map(lambda eighths: eighths / 8), min_size=WIDTH, max_size=WIDTH),
        configs,
        st.lists(tokens, max_size=12),
        st.sets(tokens, min_size=1) | st.none(),
        st.integers(0, 1008).map(lambda k: (k + 0.5) / 1009),  # no sum of shares but by chance
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


@given(requests, st.sampled_from([1, 2 * WIDTH, 1 << 16]))
def test_a_batch_of_unlike_rows_chooses_what_each_would_alone_and_what_the_rules_say(asked, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_PART", part)
        together = by_rules(asked)
    assert together == [by_rules([each])[0] for each in asked]
    assert together == [plainly(*each) for each in asked]


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
