"""From logits to a token: pure functions on logits (B, V), in which -inf means "never".

Rows do not see each other and each has random numbers of its own, so a row's tokens are the same in any batch. Nothing
here waits for a device: what is found is a tensor, and so is what went wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.flags import Escaped
from instructgpt.settings import NonNegative, NonNegativeInt, Positive, PositiveInt, Range, Settings, Share


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """How tokens are chosen, and when to stop. The defaults are greedy: the most probable token, always."""

    max_new_tokens: PositiveInt = 32
    """Most tokens to generate for a prompt, the closing one included."""
    temperature: NonNegative = 0.0
    """Divides the logits: below 1 bolder, above 1 wilder; 0 always takes the most probable token."""
    top_k: NonNegativeInt = 0
    """Sample among the k most probable tokens (Fan et al. 2018); 0 means all."""
    top_p: Annotated[float, Range(0, 1, without_least=True)] = 1.0
    """Sample among the fewest tokens that together have this probability (Holtzman et al. 2020); 1 means all."""
    min_p: Share = 0.0
    """Sample among tokens at least this share as probable as the best one (Nguyen et al. 2024); 0 means all."""
    repetition_penalty: Positive = 1.0
    """Above 1 makes tokens generated already less likely (Keskar et al. 2019); 1 leaves them be."""
    stop: tuple[Escaped, ...] = ()
    r"""Texts that end an answer; they are not part of it. On the command line, \n is a line end."""
    seed: Annotated[int, Range(0, 2**62, without_most=True)] = 0
    """Decides what is drawn; sample number i of a prompt is drawn with seed + i."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stop, str) or not all(self.stop):
            raise UserError(f"stop is {self.stop!r}; it must be a tuple of texts, none of them empty")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def repetition_penalty(logits: Tensor, is_generated: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of generated tokens, where `is_generated` (B, V) is True, made smaller by `penalty`.

    Keskar et al. 2019 (CTRL, section 4.1) divide the logit; a negative one is multiplied instead, for dividing would
    make its token likelier. As in the paper, only generated tokens count: a prompt's words may well be the answer.
    """
    return torch.where(is_generated, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, shifted so that the largest is 0 and a small temperature cannot overflow."""
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest become -inf; what ties with the k-th stays."""
    if not 0 < k < logits.size(-1):
        return logits
    threshold = logits.topk(k).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < threshold, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """All but the nucleus become -inf: the fewest, most probable tokens whose probabilities reach p."""
    if p >= 1:
        return logits
    ranked, tokens = logits.sort(dim=-1, descending=True, stable=True)  # (B, V)
    probabilities = ranked.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    is_outside = mass_before >= p  # never the first, before which there is exactly 0
    return logits.masked_fill(torch.zeros_like(is_outside).scatter(-1, tokens, is_outside), -math.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less probable than p times the most probable one become -inf."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf) if p > 0 else logits


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """A token (B,) of each row's distribution softmax(logits), from one number a row, u (B,), uniform in [0, 1).

    Inverts the cumulative distribution: the token is the first whose cumulative mass exceeds u.
    """
    # float32 numbers in [0, 1) times the float64 total are always below the total, so a token is always found, and a
    # token of no probability never is.
    mass = logits.softmax(-1).cumsum(-1)  # (B, V)
    threshold = u.to(mass.device, mass.dtype)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, threshold, right=True).squeeze(-1)


NOT_A_NUMBER = -1
"""What `sample` gives for a row whose logits are not numbers."""


def sample(
    logits: Tensor, config: SamplingConfig, u: Tensor | None = None, is_generated: Tensor | None = None
) -> Tensor:
    """The next token (B,) int64 of each row of logits (B, V); -inf marks tokens that may not be chosen.

    u: (B,) uniform in [0, 1); not needed when greedy. is_generated (B, V): tokens generated so far, needed for the
    repetition penalty. Order: penalty, temperature, top-k, top-p of what is left, min-p.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # Apple's GPUs have no float64
    is_broken = logits.amax(-1).isnan()  # NaN is larger than any number
    if not config.greedy or config.repetition_penalty != 1:
        logits = logits.double()  # so that the cumulative sum over a large vocabulary is exact enough to invert
    if config.repetition_penalty != 1 and is_generated is not None:
        logits = repetition_penalty(logits, is_generated.to(logits.device), config.repetition_penalty)
    if config.greedy:
        tokens = logits.argmax(-1)
    else:
        assert u is not None
        logits = apply_temperature(logits, config.temperature)
        logits = min_p(top_p(top_k(logits, config.top_k), config.top_p), config.min_p)
        tokens = draw(logits, u)
    # Not `torch.where`: it would copy the number to the device, and wait for that.
    return tokens.masked_fill(is_broken, NOT_A_NUMBER)
