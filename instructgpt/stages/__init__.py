"""One file a stage: each builds a model, a stream of batches and a loss, and hands them to `fit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from instructgpt.errors import UserError, suggestion
from instructgpt.flags import flag_types, given_value, parse, split_flags, train_command
from instructgpt.stages import (
    best_of_n,
    dpo,
    grpo,
    pipeline,
    plan,
    ppo,
    pretrain,
    reward,
    rlhf,
    sft,
    tokenizer,
    translate,
)  # fmt: skip
from instructgpt.stages.advice import advising
from instructgpt.stages.presets import recipe


@dataclass(frozen=True)
class Stage:
    """What can be trained."""

    run: Callable[[Any], Any]
    config: type
    defaults: Callable[[str], Any]
    """The stage's settings for a preset."""
    purpose: str


STAGES: dict[str, Stage] = {
    "pipeline": Stage(
        pipeline.run,
        pipeline.PipelineConfig,
        lambda preset: pipeline.PipelineConfig(preset=preset),
        "tokenizer, pretraining and instruction tuning in one go, with a report",
    ),
    "rlhf": Stage(
        rlhf.run,
        rlhf.RLHFConfig,
        lambda preset: rlhf.RLHFConfig(preset=preset),
        "SFT on flawed demonstrations, reward model, DPO, PPO, GRPO, and the ledger of what each did",
    ),
    "translate": Stage(
        translate.run,
        translate.TranslateConfig,
        lambda preset: translate.TranslateConfig(),
        "the worked example: sentence pairs to a model that translates, by an adapter and as a whole, scored",
    ),
    "plan": Stage(plan.run, plan.PlanConfig, plan.defaults, "nothing: it says what training would need, and what fits"),
    "tokenizer": Stage(
        tokenizer.run, tokenizer.TokenizerConfig, lambda preset: recipe(preset).tokenizer, "raw text to a tokenizer"
    ),
    "pretrain": Stage(
        pretrain.run, pretrain.PretrainConfig, lambda preset: recipe(preset).pretrain, "raw text to a base model"
    ),
    "sft": Stage(sft.run, sft.SFTConfig, lambda preset: recipe(preset).sft, "instructions to a tuned model"),
    "reward": Stage(
        reward.run, reward.RewardConfig, lambda preset: recipe(preset).reward, "compared answers to a reward model"
    ),
    "dpo": Stage(dpo.run, dpo.DPOConfig, lambda preset: recipe(preset).dpo, "compared answers to a policy, directly"),
    "ppo": Stage(
        ppo.run, ppo.PPOConfig, lambda preset: recipe(preset).ppo, "a reward to a policy, with a value function"
    ),
    "grpo": Stage(
        grpo.run, grpo.GRPOConfig, lambda preset: recipe(preset).grpo, "a reward to a policy, by groups of answers"
    ),
    "best_of_n": Stage(
        best_of_n.run,
        best_of_n.BestOfNConfig,
        lambda preset: recipe(preset).best_of_n,
        "a reward to a policy, by imitating its best answers",
    ),
}


_OF_THE_BACKWARD = ("--checkpointing", "--compile", "--optimizer-state")
"""Flags that say how gradients are computed and used."""


def main(argv: Sequence[str]) -> int:
    """`STAGE [flags]` to an exit code; without a stage it lists them. Errors: UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {train_command('STAGE')} [flags]; STAGE --help lists its flags\n")
        print("\n".join(f"  {name:<10} {stage.purpose}" for name, stage in STAGES.items()))
        return 0
    name, *flags = argv
    if name not in STAGES:
        raise UserError(f"there is no stage {name!r}{suggestion(name, STAGES)}")
    stage = STAGES[name]
    known = flag_types(stage.config)
    if idle := [flag for flag, *_ in split_flags(flags) if flag in _OF_THE_BACKWARD and flag not in known]:
        raise UserError(f"{idle[0]} says how gradients are computed, and {name} computes none; leave it out")
    preset = given_value(flags, "--preset") or ("auto" if name in ("pipeline", "rlhf") else "tiny")
    recipe(preset)  # an unknown preset is told before anything else
    config = parse(stage.config, flags, train_command(name), stage.defaults(preset))
    with advising(config):
        stage.run(config)
    return 0
