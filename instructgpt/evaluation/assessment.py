"""What a policy is worth on held-out prompts of the world, by the true reward, a reward model, and its distance to SFT.

Answers are sampled at temperature 1: that is the distribution whose expected reward alignment raises and whose KL
divergence it holds down. What the model says greedily is measured beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from instructgpt.data.comparisons import ComparisonBatch, Ranked, collate_comparisons
from instructgpt.data.tokens import Tokens
from instructgpt.evaluation.instructions import evaluate_examples
from instructgpt.evaluation.scores import Interval, mean_interval
from instructgpt.generation.engine import generate_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.preference import answer_logprobs
from instructgpt.text.chat import Message, render_answer, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.core import Example
from instructgpt.world.dialogue import REFUSAL_ANSWER

_AT_ONCE = 64


@dataclass(frozen=True)
class Assessment:
    """One policy on one set of prompts; every list has an entry a prompt."""

    true_rewards: list[float]
    """The world's own check of a sampled answer, in [0, 1]."""
    scores: list[float] | None
    """The reward model's score of the same answer."""
    believed: list[float] | None
    """1 where the reward model puts the answer level with the right one or above it, else 0."""
    kl: list[float] | None
    """log π(y|x) - log π_SFT(y|x) of the same answer, in nats; its mean estimates the KL divergence."""
    lengths: list[int]
    """Tokens, the `end` included."""
    ended: list[float]
    """1 where the model ended its answer itself."""
    greedy: dict[str, Interval]
    """The true reward of greedy answers, by family."""
    right_refusals: Interval
    """Share of harmful requests that are refused, greedily."""
    wrong_refusals: Interval
    """Share of their harmless look-alikes that are refused, greedily."""

    @property
    def macro(self) -> float:
        """The mean over families of the greedy answers' true reward."""
        return float(np.mean([interval.mean for interval in self.greedy.values()]))

    @property
    def gap(self) -> float | None:
        """Share of answers that the reward model takes for right, less the true reward: how far it is fooled.

        Both are shares, so they can be subtracted; a reward model's own score has no scale.
        """
        return None if self.believed is None else float(np.mean(self.believed) - np.mean(self.true_rewards))


def assess(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    requests: Sequence[Example],
    reference: Transformer | None = None,
    reward_model: RewardModel | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
) -> Assessment:
    """One sampled and one greedy answer to each example, measured; the same seed draws the same answers.

    requests: of the family `refusal`, harmful ones and harmless look-alikes. reference: the SFT model, for the KL
    divergence. Runs under the caller's autocast; the models are left in evaluation mode.
    Raises UserError for a prompt that does not fit, and when there are no examples.
    """
    greedy = evaluate_examples(model, tokenizer, examples, max_new_tokens=max_new_tokens)
    prompts = [render_prompt(cast("list[Message]", example.messages), tokenizer) for example in examples]
    room = model.config.context - max(map(len, prompts))
    config = SamplingConfig(max_new_tokens=max(1, min(max_new_tokens, room)), temperature=1.0)
    seeds = [seed * len(prompts) + number for number in range(len(prompts))]
    answers = generate_ids(model, tokenizer, prompts, config, seeds=seeds, batch_size=128)

    said = [Ranked((_tokens(prompt, answer.ids),)) for prompt, answer in zip(prompts, answers)]
    right = [
        Ranked((_tokens(prompt, render_answer(example.answer, tokenizer)),))
        for prompt, example in zip(prompts, examples)
    ]
    scores = believed = kl = None
    if reward_model is not None:
        scores = _scores(reward_model, said)
        # Within rounding: an answer that is the right one may have been computed in another row.
        believed = (scores > _scores(reward_model, right) - 1e-3).astype(float)
    if reference is not None:
        kl = _logprobs(model, said) - _logprobs(reference, said)
    said_to_requests = evaluate_examples(model, tokenizer, requests, max_new_tokens=max_new_tokens).outcomes
    refused = [outcome.answer.strip() in REFUSAL_ANSWER.values() for outcome in said_to_requests]
    is_harmful = [request.answer in REFUSAL_ANSWER.values() for request in requests]
    return Assessment(
        true_rewards=[example.check(answer.text) for example, answer in zip(examples, answers)],
        scores=None if scores is None else scores.tolist(),
        believed=None if believed is None else believed.tolist(),
        kl=None if kl is None else kl.tolist(),
        lengths=[len(answer.ids) for answer in answers],
        ended=[float(answer.finish == "end") for answer in answers],
        greedy=greedy.families,
        right_refusals=_share(refused, is_harmful),
        wrong_refusals=_share(refused, [not harmful for harmful in is_harmful]),
    )


def _tokens(prompt: list[int], answer: list[int]) -> Tokens:
    ids = np.array(prompt + answer, dtype=np.int32)
    return Tokens(ids, np.arange(len(ids)) >= len(prompt))


def _batches(items: Sequence[Ranked], context: int, device: torch.device) -> Iterator[ComparisonBatch]:
    for start in range(0, len(items), _AT_ONCE):
        yield collate_comparisons(items[start : start + _AT_ONCE], context).to(device)


def _scores(model: RewardModel, items: Sequence[Ranked]) -> np.ndarray:
    """(S,) the reward of each answer."""
    model.eval()
    with torch.inference_mode():
        parts = [
            model(batch.rows.ids, batch.last, batch.rows.positions, batch.rows.documents)
            for batch in _batches(items, model.config.context, model.device)
        ]
    return torch.cat(parts).double().cpu().numpy()


def _logprobs(model: Transformer, items: Sequence[Ranked]) -> np.ndarray:
    """(S,) the log-probability of each answer."""
    model.eval()
    with torch.inference_mode():
        parts = [answer_logprobs(model, batch) for batch in _batches(items, model.config.context, model.device)]
    return torch.cat(parts).double().cpu().numpy()


def _share(values: Sequence[bool], chosen: Sequence[bool]) -> Interval:
    """Of the chosen ones, how many are True; 0 of 0 where none is chosen."""
    picked: list[Any] = [float(value) for value, is_chosen in zip(values, chosen) if is_chosen]
    return mean_interval(picked) if picked else Interval(0.0, 0.0, 1.0, 0)
