"""Recipes: for each size of model, the settings of every stage that were found to work together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from instructgpt.config import MODEL_PRESETS, model_preset
from instructgpt.objectives.policy import GRPOTerms, PPOTerms
from instructgpt.stages.best_of_n import BestOfNConfig
from instructgpt.stages.dpo import DPOConfig
from instructgpt.stages.grpo import GRPOConfig
from instructgpt.stages.ppo import PPOConfig
from instructgpt.stages.pretrain import PretrainConfig
from instructgpt.stages.reward import RewardConfig
from instructgpt.stages.sft import SFTConfig
from instructgpt.stages.tokenizer import TokenizerConfig
from instructgpt.training.loop import FitConfig


@dataclass(frozen=True)
class Recipe:
    """Defaults of the stages for one preset."""

    tokenizer: TokenizerConfig
    pretrain: PretrainConfig
    sft: SFTConfig
    flawed_sft: SFTConfig
    """SFT on the road of RLHF, on demonstrations with faults: shorter, for what follows is to be seen."""
    reward: RewardConfig
    dpo: DPOConfig
    ppo: PPOConfig
    grpo: GRPOConfig
    best_of_n: BestOfNConfig


# Small models learn about twice as much from the same few million tokens with Muon as with AdamW.
_MUON = FitConfig(optimizer="muon", muon_learning_rate=0.01, learning_rate=6e-3, weight_decay=0.01, schedule="wsd")
# Noisy gradients, and a policy that should change what it says and not what it knows: Adam, small steps, no decay.
_POLICY = FitConfig(
    learning_rate=2e-4,
    weight_decay=0.0,
    beta2=0.99,
    warmup_steps=5,
    schedule="linear",
    final_learning_rate=0.1,
    log_every=1,
)
# For models that know their trade already: a fraction of the rates.
_GENTLE_MUON = replace(_MUON, muon_learning_rate=0.004, learning_rate=6e-4)


def _tiny() -> Recipe:
    """A laptop's CPU, minutes a stage. Updates, not minutes: one seed gives one model, however busy the machine is.

    `expected_minutes` are those of two slow cores (AVX2, float32), from which the updates were chosen.
    """
    fit = replace(_MUON, muon_iterations=3)  # in so small a batch they take a quarter of a step's time
    gentle = replace(_GENTLE_MUON, muon_iterations=3)
    return Recipe(
        TokenizerConfig(vocab_size=2560, character_coverage=0.9999),
        PretrainConfig(
            model=model_preset("tiny"),
            rows=6,
            expected_minutes=7.3,
            fit=replace(fit, max_steps=2800, cooldown=0.3, eval_every=1400),
        ),
        SFTConfig(
            rows=6,
            expected_minutes=7.6,
            fit=replace(fit, muon_learning_rate=0.007, max_steps=3400, cooldown=0.9, eval_every=1700),
        ),
        SFTConfig(
            rows=6,
            expected_minutes=5.2,
            fit=replace(fit, muon_learning_rate=0.007, max_steps=1900, cooldown=0.9),
        ),
        RewardConfig(prompts=16, expected_minutes=1.2, fit=replace(gentle, max_steps=340)),
        # Without the chosen answers' own loss both log-probabilities fall, and the policy forgets what it knew. Small
        # rates: at twice to four times these it reached less in the same time.
        DPOConfig(
            prompts=16,
            beta=0.3,
            chosen_weight=2.0,
            expected_minutes=2.4,
            fit=replace(gentle, muon_learning_rate=0.002, learning_rate=3e-4, max_steps=800),
        ),
        PPOConfig(
            prompts=256,
            minibatches=2,
            epochs=2,
            terms=PPOTerms(value_coefficient=0.2),
            expected_minutes=1.9,
            fit=replace(_POLICY, learning_rate=3e-4, max_steps=132),
        ),
        GRPOConfig(
            prompts=32,
            answers=8,
            minibatches=2,
            epochs=2,
            terms=GRPOTerms(kl_coefficient=0.05),
            expected_minutes=1.9,
            fit=replace(_POLICY, learning_rate=4e-4, max_steps=260),
        ),
        BestOfNConfig(prompts=2_500, rows=12, expected_minutes=1.5, fit=replace(gentle, max_steps=110)),
    )


def _small() -> Recipe:
    """One GPU, minutes: the embedded world with a larger model, or a book."""
    fit = replace(_MUON, learning_rate=1e-3, warmup_steps=100)
    return Recipe(
        TokenizerConfig(preset="small", vocab_size=4096),
        PretrainConfig(
            preset="small", model=model_preset("small"), rows=64, fit=replace(fit, max_steps=1_500, eval_every=500)
        ),
        SFTConfig(preset="small", rows=64, fit=replace(fit, max_steps=2_500, cooldown=0.9, eval_every=500)),
        SFTConfig(preset="small", rows=64, fit=replace(fit, max_steps=1_200, cooldown=0.9, eval_every=400)),
        RewardConfig(preset="small", prompts=64, fit=replace(_GENTLE_MUON, max_steps=1_000, eval_every=250)),
        DPOConfig(
            preset="small", prompts=64, chosen_weight=1.0, fit=replace(_GENTLE_MUON, max_steps=600, eval_every=200)
        ),
        PPOConfig(preset="small", prompts=512, fit=replace(_POLICY, max_steps=1_000, learning_rate=5e-5)),
        GRPOConfig(preset="small", prompts=64, fit=replace(_POLICY, max_steps=1_000, learning_rate=5e-5)),
        BestOfNConfig(preset="small", prompts=5_000, rows=32, fit=replace(_GENTLE_MUON, max_steps=500)),
    )


def _large(name: str, rows: int, micro_batches: int) -> Recipe:
    """One GPU, a day: half a million tokens an update, as GPT-3's smallest models (Brown et al. 2020, table 2.1)."""
    fit = FitConfig(
        max_steps=20_000, warmup_steps=700, eval_every=500, save_every=500, micro_batches=micro_batches,
        learning_rate=6e-4, final_learning_rate=0.1,
    )  # fmt: skip
    tuned = FitConfig(
        max_steps=2_000, warmup_steps=100, eval_every=200, save_every=500, learning_rate=2e-5, weight_decay=0.0
    )
    return Recipe(
        TokenizerConfig(preset=name, vocab_size=32_000),
        PretrainConfig(preset=name, model=model_preset(name), rows=rows, fit=fit),
        SFTConfig(preset=name, rows=rows, fit=tuned),
        SFTConfig(preset=name, rows=rows, fit=tuned),
        # One epoch of compared answers at rates of 9e-6 and 5e-7 (Ouyang et al. 2022, C.2; Rafailov et al. 2023, B).
        RewardConfig(preset=name, prompts=64, fit=replace(tuned, max_steps=1_000, learning_rate=9e-6)),
        DPOConfig(preset=name, prompts=64, fit=replace(tuned, max_steps=1_000, learning_rate=5e-7, warmup_steps=150)),
        # 512 prompts, 8 minibatches, one epoch, β 0.02 (Ouyang et al. 2022, C.4); 1e-6 (Shao et al. 2024, section 4.2),
        # but with groups of 16 instead of 64.
        PPOConfig(
            preset=name,
            prompts=512,
            minibatches=8,
            epochs=1,
            kl_coefficient=0.02,
            max_new_tokens=256,
            fit=replace(_POLICY, max_steps=4_000, learning_rate=5e-6),
        ),
        GRPOConfig(
            preset=name,
            prompts=64,
            answers=16,
            minibatches=8,
            max_new_tokens=256,
            fit=replace(_POLICY, max_steps=4_000, learning_rate=1e-6),
        ),
        BestOfNConfig(preset=name, prompts=20_000, answers=16, rows=rows, max_new_tokens=256, fit=tuned),
    )


_RECIPES = {
    "tiny": _tiny,
    "small": _small,
    "gpt2": lambda: _large("gpt2", rows=32, micro_batches=16),
    "gpt2-medium": lambda: _large("gpt2-medium", rows=16, micro_batches=32),
    "llama-124m": lambda: _large("llama-124m", rows=32, micro_batches=16),
    "llama-1b": lambda: _large("llama-1b", rows=8, micro_batches=32),
}
assert _RECIPES.keys() == MODEL_PRESETS.keys()


def recipe(name: str) -> Recipe:
    """The recipe of a preset; `auto` is `small` where there is a CUDA device, else `tiny`. Errors: UserError."""
    if name == "auto":
        name = "small" if torch.cuda.is_available() else "tiny"
    model_preset(name)
    return _RECIPES[name]()
