"""Wrong solutions that people wrote: none is judged right, single mistakes are named, and a crash is none of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.course.exercise import exercise, names
from instructgpt.course.judge import judge
from instructgpt.course.source import Source
from instructgpt.evaluation.scores import Interval
from instructgpt.objectives.lm import Loss
from instructgpt.training.muon import _POLYNOMIALS


def merged_once(order: Callable[[Any], Any]) -> Callable[..., list[str]]:
    def merged(pieces: Any, ranks: Any) -> list[str]:
        pieces = list(pieces)
        for first, second in order(ranks):
            at = 0
            while at + 1 < len(pieces):
                if (pieces[at], pieces[at + 1]) == (first, second):
                    pieces[at : at + 2] = [first + second]
                at += 1
        return pieces

    return merged


def top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Leaves out what stands behind more than p, not what stands behind p."""
    probabilities = logits.softmax(-1)
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    out = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, ranked.cumsum(-1) - ranked > p)
    return logits.masked_fill(out | (probabilities == 0), -math.inf)


def accumulate(tokens_of: Callable[[Any], Any]) -> Callable[..., dict[str, Tensor]]:
    """Right but for how the tokens of a batch are found."""

    def accumulate(self: Any, batches: Any) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for number in range(self._micro_batches * self._ranks.size):
            batch = next(batches)
            if number % self._ranks.size != self._ranks.rank:
                continue
            tokens = tokens_of(batch)
            with self._precision.context(self._device):
                loss = self._loss_fn(batch)
            if loss.total.requires_grad:
                (loss.total * self._scale if self._precision.scale_loss else loss.total).backward()
                self._optimizer.gather_gradients()
            numbers = {"total": loss.total.detach(), "weight": loss.weight, **loss.metrics, "tokens": tokens}
            for name, value in numbers.items():
                sums[name] = sums.get(name, self._zero) + value
        return sums

    return accumulate


def smoothed_over_the_others(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0, ignore_index: int = -100
) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_ignored = targets == ignore_index
    share = torch.full_like(wide, label_smoothing / (wide.size(-1) - 1))
    share.scatter_(-1, targets.masked_fill(is_ignored, 0)[:, None], 1 - label_smoothing)
    losses = -(share * wide.log_softmax(-1)).sum(-1) + z_loss * wide.logsumexp(-1) ** 2
    return losses.masked_fill(is_ignored, 0.0)


def weighed_twice(rewards: Tensor, pairs: Any) -> Loss:
    losses = F.softplus(rewards[pairs.worse] - rewards[pairs.better]) * pairs.weight
    return Loss((losses * pairs.weight).sum(), pairs.weight.sum())


def orthogonalized(dtype: torch.dtype, is_whole: bool, least: float = 1e-7) -> Callable[..., Tensor]:
    def orthogonalize(update: Tensor, iterations: int = 5) -> Tensor:
        x = update.to(dtype)
        x = x.mT if update.size(-2) > update.size(-1) else x
        x = x / (1.01 * (x.norm() if is_whole else x.norm(dim=(-2, -1), keepdim=True)) + least)
        for a, b, c in _POLYNOMIALS[:iterations]:
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return (x.mT if update.size(-2) > update.size(-1) else x).to(update.dtype)

    return orthogonalize


def wald(is_unbiased: bool, is_cut: bool) -> Callable[..., Interval]:
    def mean_interval(scores: Any) -> Interval:
        n = len(scores)
        if n == 0:
            raise ValueError("no scores")
        mean = sum(scores) / n
        if is_unbiased or any(0 < score < 1 for score in scores):
            variance = sum((score - mean) ** 2 for score in scores) / max(1, n - 1)
        else:
            variance = mean * (1 - mean)
        half = 1.96 * (variance / n) ** 0.5
        low, high = mean - half, mean + half
        return Interval(mean, max(low, 0.0) if is_cut else low, min(high, 1.0) if is_cut else high, n)

    return mean_interval


def tokens_by_ids(batch: Any) -> Any:
    return batch.ids.numel()


@pytest.mark.parametrize(
    ("name", "function", "says"),
    [
        (
            "byte_pairs",
            merged_once(lambda ranks: sorted(ranks, key=ranks.get)),
            "one of them makes may need an earlier",
        ),
        ("byte_pairs", merged_once(sorted), "by the alphabet"),
        ("byte_pairs", merged_once(list), "through the table once, in the order that it has"),
        ("top_p", top_p, "one more stays where those before it have p already"),
        ("accumulation", accumulate(lambda batch: 0), "tokens are not counted"),
        ("accumulation", accumulate(lambda batch: batch.tokens), "a batch that does not count its tokens is an error"),
        ("accumulation", accumulate(tokens_by_ids), ""),
        ("accumulation", accumulate(lambda batch: batch["ids"]), ""),
        ("cross_entropy", smoothed_over_the_others, "spread over the other tokens alone"),
        ("reward_loss", weighed_twice, "by its weight twice"),
        ("muon", orthogonalized(torch.bfloat16, is_whole=False), "computes in 16 bits"),
        ("muon", orthogonalized(torch.float16, is_whole=False), "computes in 16 bits"),
        ("muon", orthogonalized(torch.float64, is_whole=True), "that of the whole stack"),
        ("muon", orthogonalized(torch.float64, is_whole=False, least=1e-3), "not small beside it"),
        ("interval", wald(is_unbiased=False, is_cut=False), "nothing is cut off: take Wilson's"),
        ("interval", wald(is_unbiased=False, is_cut=True), "p(1 - p) / n is sure of itself"),
        ("interval", wald(is_unbiased=True, is_cut=False), "taken for all scores, and not cut off"),
        ("interval", wald(is_unbiased=True, is_cut=True), "the normal approximation is sure of itself"),
    ],
)
def test_it_is_wrong_and_its_mistake_is_named(name: str, function: Callable[..., Any], says: str) -> None:
    verdict = judge(exercise(name), function)
    assert verdict.failure is not None
    assert says in verdict.mistake and bool(says) == bool(verdict.mistake)


@pytest.mark.parametrize("name", [name for name in names() if exercise(name).place < 800])
def test_a_crash_of_their_own_is_no_known_mistake(name: str) -> None:
    """Whatever is raised: the error's name is not enough."""
    what = exercise(name)
    ours = Source.of(what.target).function
    for error in (AttributeError, TypeError, IndexError, RuntimeError, ValueError):

        def crashes(*given: Any, error: type[Exception] = error, **named: Any) -> Any:
            raise error("of my own")

        crashes.__name__ = ours.__name__
        assert judge(what, crashes).mistake == ""


@pytest.mark.parametrize(
    ("pieces", "ranks", "right"),
    [
        ("abc", {("a", "bc"): 0, ("b", "c"): 1}, ["abc"]),
        ("abcd", {("ab", "cd"): 0, ("c", "d"): 1, ("a", "b"): 2}, ["abcd"]),
    ],
)
def test_a_merge_that_waits_for_one_of_a_higher_rank(pieces: str, ranks: Any, right: list[str]) -> None:
    ours = Source.of(exercise("byte_pairs").target).function
    assert ours(list(pieces), ranks) == right != merged_once(lambda ranks: sorted(ranks, key=ranks.get))(pieces, ranks)


@pytest.mark.parametrize(("count", "p", "kept"), [(2, 0.5, 1), (4, 0.25, 1), (4, 0.5, 2), (4, 0.75, 3)])
def test_the_nucleus_ends_where_p_is_reached(count: int, p: float, kept: int) -> None:
    ours = Source.of(exercise("top_p").target).function
    logits = torch.zeros(1, count, dtype=torch.float64)
    assert int(ours(logits.clone(), p).isfinite().sum()) == kept == int(top_p(logits, p).isfinite().sum()) - 1
