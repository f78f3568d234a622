"""What PPO, GRPO and best-of-n share: flags, who takes part, and how answers are asked for, scored and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from instructgpt.data.data_file import Reading
from instructgpt.data.held_out import held_out_keys, prompt_key
from instructgpt.data.queries import FileQueries, Query, QuerySource, WorldQueries, read_queries
from instructgpt.errors import UserError
from instructgpt.generation.engine import Completion
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Transformer
from instructgpt.settings import FilePath, NonNegative, PositiveInt
from instructgpt.stages.adapting import AdapterFlags, adapted, adapter_record
from instructgpt.stages.common import Machine, StageConfig, build_model, fitting_row_length, require, say_split
from instructgpt.stages.mixture import groups, mixed, require_some, require_weights
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load_reward_model, load_settled
from instructgpt.training.rewards import Reward, RewardSum, WorldReward, load_function, shown
from instructgpt.training.rollouts import (
    Answered,
    examine,
    frozen_copy,
    sample_answers,
)

Config = TypeVar("Config", bound="PolicyStageConfig")
_SEEDS = 1 << 40
"""Seeds of sampling that one seed of a run has for itself."""
_LARGEST = 1e30
"""A reward above it would overflow float32 as soon as it is squared or added up."""
_HELD_SHARE = 0.05
"""Of the prompts of files, validated on."""
_SEEDS_OF_RUNS = 1 << 20
"""Larger ones begin anew: a generator's seed has 64 bits."""


@dataclass(frozen=True)
class PolicyStageConfig(StageConfig):
    """Flags of the stages that learn from the policy's own answers."""

    data: tuple[FilePath, ...] = ()
    """Where prompts come from: `world`, or instruction files, whose answers are not looked at."""
    weights: tuple[float, ...] = ()
    """How often each of --data is drawn, relative to the others, one number for each; by default `world` and all files
    together as often."""
    reward: tuple[FilePath, ...] = ()
    """What answers are scored by: the run directory of a reward model, or `world` for the world's own checker."""
    reward_function: tuple[FilePath, ...] = ()
    """Functions that score answers, as package.module:function or path/file.py:function: f(prompts, answers), prompts
    being lists of messages and answers texts, or f(prompts, completions, **columns), as for TRL. Columns are
    `references`, the answers in the data, and the fields of the records. Each returns a list of numbers."""
    reward_weights: tuple[float, ...] = ()
    """Weights of --reward and then --reward-function in the sum that is the reward; 1 each by default."""
    prompts: PositiveInt = 64
    """Prompts that are answered with the same weights."""
    answers: PositiveInt = 4
    """Answers to each of them."""
    max_new_tokens: PositiveInt = 32
    """Longest answer, its end token included; a longer one is cut off."""
    unfinished_penalty: NonNegative = 1.0
    """Taken from the reward of an answer that was cut off: nobody can use it, and the reward never saw it end."""
    val_examples: PositiveInt = 200
    """Held-out prompts of the embedded world, or of the files, on which reward and KL are measured."""
    adapter: AdapterFlags = field(default_factory=AdapterFlags)
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Actors:
    """Who takes part, and what they are asked."""

    policy: Transformer
    reference: Transformer
    """The model that the policy started from, frozen; of a policy with an adapter, itself without it."""
    tokenizer: Tokenizer
    reward: Reward
    queries: QuerySource
    held_out: list[Query]
    row_length: int

    @property
    def held_out_records(self) -> list[dict[str, Any]]:
        """The files' part of what is held out, for val.jsonl."""
        return [
            {"prompt": query.messages, **({"answer": query.reference} if query.reference else {})}
            for query in self.held_out
            if query.check is None
        ]

    def answer(self, config: PolicyStageConfig, number: int) -> list[Answered]:
        """The policy's answers to the prompts of rollout `number`, those of one prompt together."""
        queries = [self.queries[number * config.prompts + i] for i in range(config.prompts)]
        seed = config.seed % _SEEDS_OF_RUNS * _SEEDS + number * config.prompts * config.answers
        return sample_answers(self.policy, self.tokenizer, queries, config.answers, config.max_new_tokens, seed)

    def score(self, config: PolicyStageConfig, answered: Sequence[Answered]) -> Tensor:
        """The reward of each answer (A,) float64, less the penalty for one that was cut off.

        Raises UserError for one that is no finite number: what is learnt from it would be none either.
        """
        scores = self.reward([query for query, _ in answered], [answer for _, answer in answered])
        for (query, answer), score in zip(answered, scores):
            if not abs(score) <= _LARGEST:
                raise UserError(
                    f"the reward {self.reward.name} is {score} for the answer {answer.text[:60]!r} to {shown(query)}; "
                    f"it must be a number of at most {_LARGEST:.0e}"
                )
        is_cut = torch.tensor([not each.ended for each in answered])
        return torch.tensor(scores, dtype=torch.float64) - config.unfinished_penalty * is_cut

    def validate(self, config: PolicyStageConfig) -> dict[str, float]:
        """Reward, true reward and KL on held-out prompts, one sampled answer each: what the objective is a mean of."""
        answered = sample_answers(self.policy, self.tokenizer, self.held_out, 1, config.max_new_tokens, _SEEDS - 1)
        scores = self.score(config, answered)
        seen = examine(self.policy, self.reference, answered, self.row_length)
        measured = measure(answered, scores, [seen.logprobs - seen.reference])
        # Early stopping watches `val_loss`.
        return {"val_loss": -measured["reward"]} | {f"val_{name}": value for name, value in measured.items()}


def measure(answered: Sequence[Answered], scores: Tensor, log_ratios: Sequence[Tensor]) -> dict[str, float]:
    """Means over answers. scores: (A,); log_ratios: tables (A, L) of log π - log π_ref, zero off the answers."""
    truth = [query.check(answer.text) for query, answer in answered if query.check]
    return {
        "reward": float(scores.mean()),
        **({"true_reward": sum(truth) / len(truth)} if truth else {}),
        "kl": float(torch.cat([table.sum(dim=1) for table in log_ratios]).mean()),  # of whole answers, in nats
        "answer_length": sum(len(answer.ids) for _, answer in answered) / len(answered),
        "ended": sum(each.ended for each in answered) / len(answered),
    }


class ModelReward:
    """A reward model's score of prompt and answer, read at the end token."""

    def __init__(self, name: str, model: RewardModel):
        self.name, self._model = name, model

    def __call__(self, queries: Sequence[Query], answers: Sequence[Completion]) -> list[float]:
        return self._model.score([[*query.ids, *answer.ids] for query, answer in zip(queries, answers)]).tolist()


def start(config: PolicyStageConfig, machine: Machine) -> Actors:
    """Checks the flags, and loads everybody. Raises UserError."""
    require(config.data, "--data", "name the files with prompts, or `world`")
    require(config.init, "--init", "name the run directory to start from, an instruction-tuned model")
    require(config.reward or config.reward_function, "--reward", "name a reward model's directory, or `world`")
    require(config.out, "--out", "name the run directory to write")
    initial, tokenizer = load_settled(config.init, machine.device, config.backend)
    policy = build_model(config, machine, lambda: adapted(initial, adapter_record(config)))
    row_length = fitting_row_length(config, policy.config)
    reward = _reward(config, machine, tokenizer)
    queries, held_out = _queries(config, tokenizer, row_length - config.max_new_tokens)
    return Actors(policy, frozen_copy(policy), tokenizer, reward, queries, held_out, row_length)


def in_whole_rollouts(config: Config, steps: int) -> Config:
    """The settings with checkpoints only where a rollout of so many `steps` ends: there a run can be resumed exactly.

    Raises UserError when an update would need minibatches of two rollouts.
    """
    if steps % config.fit.micro_batches:
        raise UserError(
            f"--micro-batches {config.fit.micro_batches} does not divide the {steps} minibatches (of all epochs) of a "
            "rollout: an update would mix answers of two policies"
        )
    updates = steps // config.fit.micro_batches
    save_every = -(-config.fit.save_every // updates) * updates
    return replace(config, fit=replace(config.fit, save_every=save_every))


def require_even_split(config: PolicyStageConfig, minibatches: int) -> None:
    """Raises UserError unless the answers of a rollout make so many equal minibatches."""
    answers = config.prompts * config.answers
    if answers % minibatches:
        raise UserError(
            f"{config.prompts} prompts x {config.answers} answers = {answers} do not divide into --minibatches "
            f"{minibatches}; try {next(m for m in range(minibatches, 0, -1) if answers % m == 0)}"
        )


def _reward(config: PolicyStageConfig, machine: Machine, tokenizer: Tokenizer) -> Reward:
    parts: list[Reward] = []
    for source in config.reward:
        if source == "world":
            parts.append(WorldReward())
            continue
        model, its_tokenizer = load_reward_model(source, machine.device, config.backend)
        if its_tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"this reward model reads with another tokenizer than --init {config.init}; train one on the same base",
                source,
            )
        model.to(machine.precision.parameters).requires_grad_(False).eval()
        parts.append(ModelReward(source, model))
    parts += [load_function(name) for name in config.reward_function]
    weights = config.reward_weights or (1.0,) * len(parts)
    if len(weights) != len(parts):
        raise UserError(f"--reward-weights has {len(weights)} values for {len(parts)} rewards")
    return parts[0] if weights == (1.0,) else RewardSum(parts, weights)


def _queries(config: PolicyStageConfig, tokenizer: Tokenizer, longest: int) -> tuple[QuerySource, list[Query]]:
    """What to ask, and what to hold out of it."""
    require_weights(config.data, config.weights)
    validation = WorldQueries("val", tokenizer, config.seed)
    world_held = [validation[i] for i in range(config.val_examples)] if "world" in config.data else []
    split = groups(config.data, config.weights)
    read, seen = list[list[Query]](), set[int]()
    for files in (config.reading.files(group) for group in split):
        if files:
            queries, account = read_queries(files, tokenizer, longest, config.reading.strict, seen)
            print(account.report(), flush=True)
        read.append(queries if files else [])
    held = held_out_keys((_key(each) for part in read for each in part), _HELD_SHARE, config.val_examples)
    held_out = [each for part in read for each in part if _key(each) in held]
    left_out = held.union(map(_key, world_held))
    trained = [[each for each in part if _key(each) not in left_out] for part in read]
    if any(read):
        say_split("prompts", config.out, sum(map(len, read)), sum(map(len, trained)), len(held_out))
    parts: list[QuerySource] = [
        WorldQueries("train", tokenizer, config.seed, held)
        if group == ["world"]
        else FileQueries(require_some(part, group), config.seed)
        for group, part in zip(split, trained)
    ]
    return mixed(parts, config.weights, config.seed), [*world_held, *held_out] or [parts[0][0]]


def _key(query: Query) -> str:
    return prompt_key(query.messages)
