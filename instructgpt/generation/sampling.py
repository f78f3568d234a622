"""From logits to tokens: how each row of a batch chooses, and the choice.

Rows do not see each other and each has random numbers of its own, so a row's token is bit for bit what it would be
alone. Rules are tensors with a value a row (`SamplingRows`), so a batch of unlike requests takes as many launches as
one request, and work over the vocabulary is done for the rows that need it. Nothing here waits for a GPU: what is found
is a tensor, and so is what went wrong.

Order: penalties, bias, constraint, temperature, top-k, top-p of what is left, min-p of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.flags import Escaped
from instructgpt.generation.logits import Generated, Rows, apply_temperature, bias, draw, min_p, punish, top_k, top_p
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
    presence_penalty: Annotated[float, Range(-2, 2)] = 0.0
    """Taken from the logit of each token generated already, once; below 0 makes these likelier."""
    frequency_penalty: Annotated[float, Range(-2, 2)] = 0.0
    """Taken from the logit of a token for each time that it was generated."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token's id and what is added to its logit; -100 all but forbids it, 100 all but forces it."""
    stop_ids: tuple[NonNegativeInt, ...] = ()
    """Ids of tokens that end an answer and whose text is not part of it, beside those that always do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stop, str) or not all(self.stop):
            raise UserError(f"stop is {self.stop!r}; it must be a tuple of texts, none of them empty")
        if wrong := [i for i in self.stop_ids if i < 0]:
            raise UserError(f"stop_ids has {wrong[0]}; a token's id is at least 0")
        if isinstance(self.logit_bias, Mapping):
            object.__setattr__(self, "logit_bias", tuple(self.logit_bias.items()))  # the dataclass is frozen
        for i, number in self.logit_bias:
            if i < 0 or not math.isfinite(number):
                raise UserError(f"logit_bias has {number} for token {i}; it takes ids of at least 0 and finite numbers")
        if len(dict(self.logit_bias)) < len(self.logit_bias):
            raise UserError(f"logit_bias is {self.logit_bias}; it has a token twice")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def punishes(self) -> bool:
        """Whether it matters what was generated already."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check_ids(self, vocab_size: int) -> None:
        """Raises UserError for ids in `stop_ids` and `logit_bias` that are no tokens."""
        named = {"stop_ids": self.stop_ids, "logit_bias": [i for i, _ in self.logit_bias]}
        for name, ids in named.items():
            if ids and max(ids) >= vocab_size:
                raise UserError(f"{name} has token {max(ids)}; the vocabulary has {vocab_size}, from 0 on")


# ---- the rules of a batch


@dataclass(frozen=True)
class SamplingRows:
    """The rules of B rows, on their device. Made by `of` when the rows change, which is cheap, and never changed.

    Rows whose largest logit decides are left alone; the W others are the worked ones, and each rule knows its own.
    """

    worked: Rows | None
    """Their places among all rows."""
    drawn: Rows | None
    """Those drawn by a random number, with temperatures (D, 1); other worked rows are greedy."""
    top_k: Rows | None
    """Places among the drawn rows; values (R, 1), also of the next two."""
    top_p: Rows | None
    min_p: Rows | None
    most_k: int
    """The largest of `top_k`."""
    punished: Rows | None
    """Places among the worked rows; values (P, 3): repetition, presence, frequency."""
    punishing: Rows | None
    """The same rows, as places among all."""
    bias: Rows | None
    """Places among the worked rows, one for each pair of token and number; values (N, 2)."""
    constrained: Rows | None
    """Places among the worked rows of those that may choose only some tokens."""

    @classmethod
    def of(
        cls, configs: Sequence[SamplingConfig], device: torch.device | str = "cpu", constrained: Iterable[int] = ()
    ) -> SamplingRows:
        """The rules `configs`, one a row; `constrained`: places of the rows that a constraint binds."""
        device = _exact(torch.device(device))
        bound = set(constrained)
        worked = [
            i for i, config in enumerate(configs)
            if not config.greedy or config.punishes or config.logit_bias or i in bound
        ]  # fmt: skip
        drawn = [i for i in worked if not configs[i].greedy]
        ks = [i for i in drawn if configs[i].top_k]
        punished = [i for i in worked if configs[i].punishes]
        pairs = [(i, pair) for i in worked for pair in configs[i].logit_bias]

        def rows(kept: list[int], among: Sequence[int], values: list[Any]) -> Rows | None:
            if not kept:
                return None
            place = {i: at for at, i in enumerate(among)}
            at = None if kept == list(among) else torch.tensor([place[i] for i in kept], device=device)
            return Rows(at, torch.tensor(values, dtype=torch.float64, device=device))

        def of_each(name: str, kept: list[int], among: Sequence[int]) -> Rows | None:
            return rows(kept, among, [[getattr(configs[i], name)] for i in kept])

        penalties = [[each.repetition_penalty, each.presence_penalty, each.frequency_penalty]
                     for each in (configs[i] for i in punished)]  # fmt: skip
        return cls(
            worked=rows(worked, range(len(configs)), []),
            drawn=of_each("temperature", drawn, worked),
            top_k=of_each("top_k", ks, drawn),
            top_p=of_each("top_p", [i for i in drawn if configs[i].top_p < 1], drawn),
            min_p=of_each("min_p", [i for i in drawn if configs[i].min_p > 0], drawn),
            most_k=max((configs[i].top_k for i in ks), default=0),
            punished=rows(punished, worked, penalties),
            punishing=rows(punished, range(len(configs)), []),
            bias=rows([i for i, _ in pairs], worked, [pair for _, pair in pairs]),
            constrained=rows(sorted(bound), worked, []),
        )

    def part(self, start: int, stop: int) -> SamplingRows:
        """The rules of the drawn rows in [start, stop) alone, as far as they are drawn."""
        assert self.drawn is not None
        further = {
            name: rows and rows.between(start, stop)
            for name in ("top_k", "top_p", "min_p") for rows in (getattr(self, name),)
        }  # fmt: skip
        return replace(self, drawn=Rows(None, self.drawn.values[start:stop]), **further)

    def generated(self, ids: Sequence[Sequence[int]]) -> Generated | None:
        """What the rows have generated so far, one list of ids for each of the B; None where it does not matter."""
        if self.punishing is None:
            return None
        kept = ids if self.punishing.at is None else [ids[i] for i in self.punishing.at.tolist()]
        rows = [row for row, each in enumerate(kept) for _ in each]
        tokens = [token for each in kept for token in each]
        device = self.punishing.values.device
        return Generated(*torch.tensor([rows, tokens], dtype=torch.int64, device=device))


def _exact(device: torch.device) -> torch.device:
    """Where float64 is to be had: Apple's GPUs have none."""
    return torch.device("cpu") if device.type == "mps" else device


# ---- choosing

_PART = 1 << 16
"""Logits that a CPU works on at a time. Their float64s stay in its cache; what needs more memory than the allocator
keeps at hand is asked of the system anew each time, at several times the cost of the arithmetic."""
NOT_A_NUMBER = -1
"""What `sample` gives for a row whose logits are not numbers, or leave no token."""


def sample(
    logits: Tensor,
    rows: SamplingRows,
    numbers: Tensor | None = None,
    generated: Generated | None = None,
    may_follow: Tensor | None = None,
) -> Tensor:
    """The next token (B,) int64 of each row of logits (B, V), which stay; -inf marks tokens that may not be chosen.

    numbers: (B,) uniform in [0, 1), not needed where all rows are greedy. generated: of `rows.generated`, needed where
    some are punished. may_follow: (C, V) bool, True for what each of the constrained rows may choose, in their order.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()
    if rows.worked is None:
        return _largest(logits)
    worked = _adjusted(rows.worked.of(logits), rows, generated, may_follow)
    if rows.drawn is None:
        tokens = _largest(worked)
    else:
        assert numbers is not None
        drawn = _drawn(rows.drawn.of(worked), rows, rows.drawn.of(rows.worked.of(numbers)))
        tokens = drawn if rows.drawn.at is None else rows.drawn.put(drawn, _largest(worked))
    return tokens if rows.worked.at is None else rows.worked.put(tokens, _largest(logits))


def _adjusted(logits: Tensor, rows: SamplingRows, generated: Generated | None, may_follow: Tensor | None) -> Tensor:
    """The worked rows' logits after penalties, bias and constraint."""
    if rows.punished is None and rows.bias is None and rows.constrained is None:
        return logits
    logits = logits.to(torch.float64, copy=True)
    if rows.punished is not None and generated is not None:
        logits = punish(logits, generated, rows.punished)
    if rows.bias is not None:
        logits = bias(logits, rows.bias)
    if rows.constrained is not None and may_follow is not None:
        allowed = rows.constrained.of(logits).masked_fill_(~may_follow.to(logits.device), -math.inf)
        logits = rows.constrained.put(allowed, logits)
    return logits


def _largest(logits: Tensor) -> Tensor:
    best, tokens = logits.max(-1)  # NaN is larger than any number
    # Not `torch.where`: it would copy the number to the device, and wait for that.
    return tokens.masked_fill_(~best.isfinite(), NOT_A_NUMBER)


def _drawn(logits: Tensor, rows: SamplingRows, numbers: Tensor) -> Tensor:
    """Tokens (D,) of the drawn rows alone, from their logits (D, V)."""
    size = max(1, _PART // logits.size(1))
    if len(logits) > size and not logits.is_cuda:
        starts = range(0, len(logits), size)
        parts = [(logits[i : i + size], rows.part(i, i + size), numbers[i : i + size]) for i in starts]
        return torch.cat([_drawn(*part) for part in parts])
    assert rows.drawn is not None
    # In float64, so that the cumulative sum over a large vocabulary is exact enough to invert.
    logits = logits.to(torch.float64, copy=True)
    is_broken = ~logits.amax(-1).isfinite()
    logits = apply_temperature(logits, rows.drawn.values)
    if rows.top_k is not None:
        logits = rows.top_k.put(top_k(rows.top_k.of(logits), rows.top_k.values, rows.most_k), logits)
    if rows.top_p is not None:
        logits = rows.top_p.put(top_p(rows.top_p.of(logits), rows.top_p.values), logits)
    if rows.min_p is not None:
        logits = rows.min_p.put(min_p(rows.min_p.of(logits), rows.min_p.values), logits)
    return draw(logits, numbers).masked_fill_(is_broken, NOT_A_NUMBER)
