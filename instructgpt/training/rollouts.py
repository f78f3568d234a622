"""Rollouts: answers sampled from the policy of the moment, and what is known about each of their tokens.

    prompts ──► sample_answers ──► pack ──► answer_tokens, under policy and reference ──► Rollout ──► loss

Old log-probabilities come from the very forward that training repeats: the same rows in the same packing, dropout off,
same number format. The generation engine's own would differ in the last digits, for it computes with a cache and in
other shapes, and the first ratio would not be 1. That is also why a minibatch is packed once and kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from instructgpt.data.batch import Batch, moved
from instructgpt.data.packing import collate
from instructgpt.data.queries import Query
from instructgpt.data.tokens import Tokens
from instructgpt.generation.engine import Completion, generate_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.adapters import adapters_of, base_of
from instructgpt.model.transformer import Compiled, Transformer
from instructgpt.objectives.lm import Loss
from instructgpt.text.tokenizer import Tokenizer


class Answered(NamedTuple):
    """A prompt and an answer to it."""

    query: Query
    answer: Completion

    @property
    def ended(self) -> bool:
        """The model closed the answer itself; otherwise it was cut off."""
        return self.answer.finish == "end"


def sample_answers(
    policy: Transformer, tokenizer: Tokenizer, queries: Sequence[Query], n: int, max_new_tokens: int, seed: int,
    batch_size: int = 256,
) -> list[Answered]:  # fmt: skip
    """n answers to each query at temperature 1, those of the first query first; a pure function of weights and seed.

    Nothing but temperature 1 and all tokens would be the policy that the gradient is about.
    """
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=1.0)
    # Sample i of a query draws from its seed + i: n apart, no two answers share a seed.
    seeds = [seed + n * i for i in range(len(queries))]
    completions = generate_ids(policy, tokenizer, [q.ids for q in queries], config, n, seeds, batch_size)
    return [Answered(queries[i // n], completion) for i, completion in enumerate(completions)]


def as_tokens(each: Answered) -> Tokens:
    """The prompt with the very tokens that were sampled (encoding their text could give others), which are targets."""
    ids = np.array([*each.query.ids, *each.answer.ids], dtype=np.int32)
    return Tokens(ids, np.arange(len(ids)) >= len(each.query.ids))


def pack(answered: Sequence[Answered], row_length: int) -> Batch:
    """Prompts with their answers as a packed batch in which the answers are the targets, in the order given.

    Raises ValueError when one is longer than a row.
    """
    rows: list[list[Tokens]] = [[]]
    room = row_length
    for tokens in map(as_tokens, answered):
        if len(tokens) - 1 > room:
            rows.append([])
            room = row_length
        rows[-1].append(tokens)
        room -= len(tokens) - 1
    return collate([row for row in rows if row], row_length)


def answer_mask(answered: Sequence[Answered]) -> Tensor:
    """`is_answer` (A, L): the tokens of each answer from the left, L those of the longest."""
    lengths = torch.tensor([len(answer.ids) for _, answer in answered])
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]


def by_answer(flat: Tensor, is_answer: Tensor) -> Tensor:
    """Values (N,) of all answers' tokens as (A, L), zero after an answer's end; `table[is_answer]` is the way back."""
    table = flat.new_zeros(is_answer.shape)
    table[is_answer] = flat
    return table


class AnswerTokens(NamedTuple):
    """What a model makes of the N tokens of the answers in a batch."""

    logprobs: Tensor
    """(N,) float32"""
    entropy: Tensor
    """(N,) of the distribution each was drawn from."""
    hidden: Tensor
    """(N, C): the state before each token, which a value head reads."""


def answer_tokens(model: Transformer, batch: Batch) -> AnswerTokens:
    """One teacher-forced forward, dropout off; with gradients unless the caller forbids them."""
    model.eval()
    hidden = batch.at_targets(model.hidden(batch.ids, batch.positions, batch.documents))  # (N, C)
    logprobs, entropy = model.token_logprobs(hidden, batch.at_targets(batch.targets), with_entropy=True)
    return AnswerTokens(logprobs, entropy, hidden)


class Examined(NamedTuple):
    """A answers, packed, and what policy and reference make of their tokens; L is the longest answer."""

    batch: Batch
    is_answer: Tensor
    """(A, L), True on the tokens of each answer, in the order of the batch."""
    logprobs: Tensor
    """(A, L) under the policy; zero off the answers."""
    reference: Tensor
    """(A, L) under the reference model."""
    hidden: Tensor
    """(N, C): the policy's state before each of all N tokens."""


def examine(policy: Transformer, reference: Transformer, answered: Sequence[Answered], row_length: int) -> Examined:
    """Packs a minibatch of answers, for good, and has both models read it, on the policy's device."""
    batch, is_answer = pack(answered, row_length).to(policy.device), answer_mask(answered).to(policy.device)
    # A compiled policy runs compiled where there are gradients, and what it says here is to be what training repeats.
    with torch.set_grad_enabled(policy.compiled != Compiled()):
        logprobs, _, hidden = (each.detach() for each in answer_tokens(policy, batch))
    others = answer_tokens(reference, batch)
    return Examined(batch, is_answer, by_answer(logprobs, is_answer), by_answer(others.logprobs, is_answer), hidden)


def frozen_copy(model: Transformer) -> Transformer:
    """What a model starts from, never to be trained: the model as it is now. Tensors that are not trained in it are
    shared, not copied; and of one with an adapter, which begins by changing nothing, all are: it is the base alone.
    """
    if adapters_of(model):
        return base_of(model).eval()
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


@dataclass(frozen=True)
class Rollout:
    """A minibatch of answers with all that its loss needs; A, L and N as in `Examined`."""

    batch: Batch
    """The conversations, packed; its targets are the answers."""
    is_answer: Tensor
    """(A, L), True on the tokens of each answer, in the order of the batch."""
    logprobs: Tensor
    """(A, L) under the policy that sampled."""
    reference: Tensor
    """(A, L) under the reference model."""
    advantages: Tensor
    """(A, L); zero off the answers."""
    values: Tensor | None = None
    """(A, L) of the value function at sampling time, where there is one."""
    returns: Tensor | None = None
    """(A, L): what the values should have been."""
    pretraining: Batch | None = None
    """Text that is mixed in (PPO-ptx)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Means over all answers of which these are a part."""

    @property
    def tokens(self) -> Tensor:
        return self.batch.tokens

    @property
    def answers(self) -> Tensor:
        """(N,) number of the answer that each token belongs to."""
        return self.is_answer.nonzero()[:, 0]

    @property
    def log_ratios(self) -> Tensor:
        """(A, L) log π - log π_ref; zero off the answers."""
        return self.logprobs - self.reference

    def to(self, device: torch.device) -> Rollout:
        return moved(self, device)


def with_metrics(loss: Loss, means: dict[str, float]) -> Loss:
    """The loss with these means in its log, which divides by the weight."""
    return Loss(loss.total, loss.weight, loss.metrics | {name: loss.weight * value for name, value in means.items()})


def split_evenly(items: Sequence[Any], parts: int, seed: int) -> list[list[Any]]:
    """`items` in an order drawn from `seed`, in `parts` parts as equal as can be; none is empty if there are enough."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[items[i] for i in order[part::parts]] for part in range(parts)]


class RolloutStream:
    """Minibatches of rollouts (a `BatchStream`): when the last is used up, the policy of that moment makes new ones.

    roll_out: number of the rollout, from 0 -> its minibatches in the order of training, all epochs.
    Its place can be restored where one rollout ends and the next begins; the rest of one that was left half trained on
    cannot be made again, for its policy is gone, and is passed over. `kept` is the stage's own state, JSON-able.
    """

    def __init__(
        self,
        roll_out: Callable[[int], list[Rollout]],
        context: Callable[[], AbstractContextManager[Any]],
        kept: dict[str, Any] | None = None,
    ):
        """`context`: the run's number format, in which the loss is computed, too."""
        self._roll_out, self._context, self.kept = roll_out, context, kept if kept is not None else {}
        self._number = 0
        self._waiting: list[Rollout] = []

    def __iter__(self) -> Iterator[Rollout]:
        return self

    def __next__(self) -> Rollout:
        if not self._waiting:
            with torch.no_grad(), self._context():
                self._waiting = self._roll_out(self._number)
            self._number += 1
        return self._waiting.pop(0)

    def state(self) -> dict[str, Any]:
        return {"rollout": self._number, "kept": dict(self.kept)}

    def restore(self, state: dict[str, Any]) -> None:
        self._number, self._waiting = state["rollout"], []
        self.kept.clear()
        self.kept.update(state["kept"])
