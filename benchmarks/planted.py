"""Mistakes that people make in tuning language models, each put into the product from outside while it runs.

The product has no switch for being wrong. A mistake here is a context in which one of its functions is another one: it
takes what the right one gives and spoils it, as code with that mistake would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from instructgpt.data import comparisons, packing
from instructgpt.data.batch import Batch
from instructgpt.data.comparisons import ComparisonBatch, Pairs
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import FittedPrompt
from instructgpt.evaluation import instructions
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Transformer
from instructgpt.objectives import policy as objectives
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.policy import Advantages
from instructgpt.stages import dpo, grpo, ppo, sft
from instructgpt.training import rollouts
from instructgpt.training.rollouts import Examined, answer_tokens, by_answer

Road = Literal["sft", "use", "reward", "dpo", "ppo", "grpo"]
"""What is trained with the mistake. `use` trains nothing: what `sft` tuned right is asked, or measured, wrongly."""
Plant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Layout:
    """What a mistake and its right version have in common, beyond the recipe."""

    plant: Plant = nullcontext
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the stage; those under `fit` are of its optimizer."""


@dataclass(frozen=True)
class Mistake:
    """One way to be wrong."""

    road: Road
    plant: Plant = nullcontext
    """The context in which the product is wrong."""
    rates: dict[str, float] = field(default_factory=dict)
    """What settings of the optimizer are multiplied with, where these are what is wrong."""
    layout: str = "right"
    """Its name in LAYOUTS; the right version in that layout is what the mistake is compared with."""
    teacher_forced: bool = False
    """The score is read off a teacher-forced pass: what it says is not what it is worth."""


def swapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Plant:
    """A context in which `owner.name` is what `make` makes of it."""
    return lambda: patch.object(owner, name, make(getattr(owner, name)))


# ---- instruction tuning: what is a target, and what a token sees


def batches(change: Callable[[Batch], Batch]) -> Plant:
    """Packed batches as `change` leaves them."""
    return swapped(packing, "collate", lambda right: lambda rows, context: change(right(rows, context)))


def prompt_too(batch: Batch) -> Batch:
    return replace(batch, is_target=batch.documents >= 0)


def padding_too(batch: Batch) -> Batch:
    return replace(batch, is_target=batch.is_target | (batch.documents < 0))


def without_end(batch: Batch) -> Batch:
    """An answer's last target is its end token; masked, as where padding has the same id and that id is masked."""
    goes_on = torch.zeros_like(batch.is_target)
    goes_on[:, :-1] = batch.is_target[:, 1:] & _next_is_same_document(batch)[:, :-1]
    return replace(batch, is_target=batch.is_target & goes_on)


def shifted_twice(batch: Batch) -> Batch:
    """The token after the next one: labels shifted by hand, for a model that shifts them itself."""
    is_target = batch.is_target.roll(-1, 1) & _next_is_same_document(batch)
    return replace(batch, targets=batch.targets.roll(-1, 1), is_target=is_target)


def all_see_all(batch: Batch) -> Batch:
    """Rows without borders: every document sees those before it, and positions run on."""
    return positions_run_on(replace(batch, documents=batch.documents.clamp(max=0)))


def positions_run_on(batch: Batch) -> Batch:
    return replace(batch, positions=torch.arange(batch.ids.size(1)).repeat(len(batch.ids), 1))


def _next_is_same_document(batch: Batch) -> Tensor:
    same = torch.zeros_like(batch.is_target)
    same[:, :-1] = batch.documents[:, 1:] == batch.documents[:, :-1]
    return same


def apart(right: Callable[..., Batch]) -> Callable[..., Batch]:
    """Prompts as inputs and answers as labels, slot beside slot: `model(input_ids=source, labels=target)`."""

    def collate(rows: Sequence[Sequence[Tokens]], context: int) -> Batch:
        batch = right(rows, context)
        ids, targets, is_target = (torch.zeros_like(each) for each in (batch.ids, batch.targets, batch.is_target))
        for row, documents in enumerate(rows):
            start = 0
            for tokens in documents:
                prompt, answer = (torch.from_numpy(tokens.ids[part]) for part in (~tokens.is_target, tokens.is_target))
                ids[row, start : start + len(prompt)] = prompt
                targets[row, start : start + len(answer)] = answer
                is_target[row, start : start + len(answer)] = True
                start += len(tokens) - 1
        return replace(batch, ids=ids, targets=targets, is_target=is_target)

    return collate


def mean_of_means(right: Callable[..., Loss]) -> Callable[..., Loss]:
    """Each micro-batch's mean weighs the same, however few tokens it is over."""

    def loss(*arguments: Any) -> Loss:
        found = right(*arguments)
        weight = found.weight.clamp(min=1)
        return Loss(found.total / weight, torch.ones_like(weight), found.metrics)

    return loss


def first_alone(right: Callable[..., Batch]) -> Callable[..., Batch]:
    """One conversation a row, and padding behind it."""
    return lambda rows, context: right([row[:1] for row in rows], context)


# ---- use: a model that was tuned right, asked in another way


def untemplated(messages: Any, tokenizer: Any, room: int) -> FittedPrompt:
    """The question as plain text, without the turns that the model was tuned on."""
    return FittedPrompt([tokenizer.bos, *tokenizer.encode(messages[-1]["content"])][:room], 0, 0)


def padding_seen(right: Callable[..., Any]) -> Callable[..., Any]:
    """Prompts of like length are made equally long by padding before the shorter ones, which they attend to."""

    def completions(model: Transformer, tokenizer: Any, prompts: Sequence[Any], *args: Any, batch_size: int) -> Any:
        padded = [list(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for at in range(0, len(order), batch_size):
            batch = order[at : at + batch_size]
            for i in batch:
                padded[i] = [tokenizer.pad] * (len(prompts[batch[-1]]) - len(prompts[i])) + padded[i]
        return right(model, tokenizer, padded, *args, batch_size=batch_size)

    return completions


# ---- comparisons


@contextmanager
def read_at_padding() -> Iterator[None]:
    """One answer a row, and the reward read in the row's last slot: `rewards[:, -1]`, in training and in use."""
    right = RewardModel.forward

    def forward(self: RewardModel, ids: Tensor, last: Tensor, *_: Any) -> Tensor:
        return right(self, ids, (torch.arange(len(ids), device=ids.device) + 1) * ids.size(1) - 1)

    alone = patch.object(comparisons, "_packed", lambda lengths, context: [[i] for i in range(len(lengths))])
    with alone, patch.object(RewardModel, "forward", forward):
        yield


def read_before_answer(right: Callable[..., ComparisonBatch]) -> Callable[..., ComparisonBatch]:
    """The reward is read at the prompt's last token, which has seen nothing of the answer."""

    def collate(*arguments: Any) -> ComparisonBatch:
        batch = right(*arguments)
        answers = batch.rows.at_targets(batch.answers)
        first = torch.full_like(batch.last, batch.rows.ids.numel())
        return replace(batch, last=first.scatter_reduce(0, answers, batch.rows.places, "amin"))

    return collate


def wrong_way_round(right: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def pairs(counts: Sequence[int]) -> Pairs:
        found = right(counts)
        return Pairs(found.worse, found.better, found.weight)

    return pairs


def summed_over_prompt(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """log P(prompt, answer) in place of log P(answer | prompt)."""

    def logprobs(model: Transformer, batch: ComparisonBatch) -> Tensor:
        # The last slot of a document holds its last token, after which nothing is known.
        is_target = _next_is_same_document(batch.rows) & (batch.rows.documents >= 0)
        return right(model, replace(batch, rows=replace(batch.rows, is_target=is_target)))

    return logprobs


@contextmanager
def without_reference() -> Iterator[None]:
    """log π alone, where log π - log π_ref belongs."""
    right = dpo.answer_logprobs

    def logprobs(model: Any, batch: ComparisonBatch) -> Tensor:
        return right(model, batch) if isinstance(model, Transformer) else torch.zeros(len(batch.last))

    with patch.object(dpo, "frozen_copy", lambda *_: "nobody"), patch.object(dpo, "answer_logprobs", logprobs):
        yield


def with_dropout(right: Callable[..., Transformer]) -> Callable[..., Transformer]:
    """Dropout of 0.1 in the policy, which is never put into evaluation mode; the reference is."""

    def build(*arguments: Any) -> Transformer:
        model = right(*arguments)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        model.eval = lambda: model.train()
        return model

    return build


# ---- policies


def from_sampler(right: Callable[..., Examined]) -> Callable[..., Examined]:
    """Old log-probabilities in bfloat16, as the engine that samples computes them, where training computes float32."""

    def examine(policy: Transformer, *others: Any) -> Examined:
        seen = right(policy, *others)
        with torch.autocast(policy.device.type, torch.bfloat16):
            tokens = answer_tokens(policy, seen.batch)
        return seen._replace(logprobs=by_answer(tokens.logprobs.float(), seen.is_answer))

    return examine


def cooler(max_new_tokens: int, temperature: float) -> SamplingConfig:
    """Answers sampled at a temperature of 0.7, while the loss is that of temperature 1."""
    return SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.7)


def at_first_token(scores: Tensor, is_answer: Tensor) -> Tensor:
    """The reward lands on an answer's first token, and on no other."""
    slots = torch.arange(is_answer.size(1), device=is_answer.device)
    first = torch.where(is_answer, slots, is_answer.size(1)).amin(1, keepdim=True)
    return scores[:, None] * (slots == first)


def one_token_late(right: Callable[..., Advantages]) -> Callable[..., Advantages]:
    """Each token is given the advantage of the one before it."""

    def advantages(rewards: Tensor, values: Tensor, is_answer: Tensor, *others: float) -> Advantages:
        found = right(rewards, values, is_answer, *others)
        late = found.advantages.roll(1, 1) * is_answer
        late[:, 0] = 0.0
        return Advantages(late, found.returns)

    return advantages


def unwhitened(values: Tensor, is_answer: Tensor) -> Tensor:
    return values * is_answer


def across_prompts(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Each answer is compared with answers to other prompts: groups are strides, where they should be neighbours."""

    def advantages(scores: Tensor, group: int, *others: Any) -> Tensor:
        mixed = scores.view(-1, group).T.flatten()
        return right(mixed, group, *others).view(group, -1).T.flatten()

    return advantages


def _minus(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: -right(*arguments)


LAYOUTS: dict[str, Layout] = {
    "right": Layout(),
    "right, a conversation a row": Layout(
        swapped(packing, "collate", first_alone), {"rows": 28, "row_length": 128}
    ),
    "right, in micro-batches": Layout(settings={"rows": 1, "fit": {"micro_batches": 6}}),
}  # fmt: skip

MISTAKES: dict[str, Mistake] = {
    "labels include the prompt": Mistake("sft", batches(prompt_too)),
    "labels include padding": Mistake("sft", batches(padding_too), layout="right, a conversation a row"),
    "source and target not in one sequence": Mistake("sft", swapped(packing, "collate", apart)),
    "no end token is learnt": Mistake("sft", batches(without_end)),
    "labels shifted twice": Mistake("sft", batches(shifted_twice)),
    "loss averaged over micro-batches' means": Mistake(
        "sft", swapped(sft, "next_token_loss", mean_of_means), layout="right, in micro-batches"
    ),
    "packed documents see each other": Mistake("sft", batches(all_see_all)),
    "positions do not restart": Mistake("sft", batches(positions_run_on)),
    "learning rate ten times too high": Mistake("sft", rates={"learning_rate": 10, "muon_learning_rate": 10}),
    "learning rate ten times too low": Mistake("sft", rates={"learning_rate": 0.1, "muon_learning_rate": 0.1}),
    "no warm-up": Mistake("sft", rates={"warmup_steps": 0}),
    "teacher-forced argmax called accuracy": Mistake("use", teacher_forced=True),
    "asked without the chat template": Mistake("use", swapped(instructions, "fit_prompt", lambda _: untemplated)),
    "padding before prompts is attended to": Mistake("use", swapped(instructions, "completions", padding_seen)),
    "reward read at the padding": Mistake("reward", read_at_padding),
    "reward read before the answer": Mistake("reward", swapped(comparisons, "collate_comparisons", read_before_answer)),
    "DPO without a reference": Mistake("dpo", without_reference),
    "DPO with dropout on": Mistake("dpo", swapped(dpo, "build_model", with_dropout)),
    "DPO summed over the prompt too": Mistake("dpo", swapped(dpo, "answer_logprobs", summed_over_prompt)),
    "DPO with chosen and rejected swapped": Mistake("dpo", swapped(comparisons, "_pairs", wrong_way_round)),
    "PPO with the sampler's bfloat16 log-probabilities": Mistake("ppo", swapped(ppo, "examine", from_sampler)),
    "PPO with answers sampled at temperature 0.7": Mistake(
        "ppo", swapped(rollouts, "SamplingConfig", lambda _: cooler)
    ),
    "PPO with the reward at the first token": Mistake(
        "ppo", swapped(objectives, "rewards_at_end", lambda _: at_first_token)
    ),
    "PPO with advantages one token late": Mistake("ppo", swapped(ppo, "generalized_advantages", one_token_late)),
    "PPO with advantages not whitened": Mistake("ppo", swapped(ppo, "whiten", lambda _: unwhitened)),
    "PPO with the KL's sign wrong": Mistake("ppo", swapped(objectives, "kl_k1", _minus)),
    "GRPO with groups mixed between prompts": Mistake("grpo", swapped(grpo, "group_advantages", across_prompts)),
    "GRPO without a baseline": Mistake("grpo", swapped(grpo, "group_advantages", lambda _: lambda scores, *_: scores)),
    "GRPO with the KL's sign wrong": Mistake("grpo", swapped(objectives, "kl_k3", _minus)),
}  # fmt: skip
