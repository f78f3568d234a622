"""Generalised advantage estimation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers, part


def _rows(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _case(rewards: Tensor, values: Tensor, is_answer: list[list[int]], discount: float = 1.0, decay: float = 0.95):
    return {"rewards": rewards, "values": values, "is_answer": torch.tensor(is_answer).bool(), "discount": discount,
            "decay": decay}  # fmt: skip


def _is(advantages: Tensor, returns: Tensor) -> dict[str, Any]:
    return {"advantages": advantages, "returns": returns}


LOOK = part(lambda result: {"advantages": result[0], "returns": result[1]})

EXERCISE = Exercise(
    place=530,
    title="GAE: whose merit was it?",
    about="A reward comes at the end of an answer, and each token is to be told how much better things went than was "
    "expected before it. λ weighs what a value function foretells against what really came.",
    target="instructgpt.objectives.policy.generalized_advantages",
    checks=(
        Check(
            "one decision: reward less value",
            _case(_rows([1.0]), _rows([0.25]), [[1]]),
            _is(_rows([0.75]), _rows([1.0])),
            LOOK,
        ),
        Check(
            "two decisions, λ = 1/2",
            _case(_rows([0.0, 1.0]), _rows([0.5, 0.25]), [[1, 1]], decay=0.5),
            _is(_rows([0.125, 0.75]), _rows([0.625, 1.0])),
            LOOK,
        ),
        Check(
            "two decisions, γ = 1/2, λ = 1",
            _case(_rows([0.0, 1.0]), _rows([0.5, 0.25]), [[1, 1]], 0.5, 1.0),
            _is(_rows([0.0, 0.75]), _rows([0.5, 1.0])),
            LOOK,
        ),
        Check(
            "padding behind the answer, where the value function says 9",
            _case(_rows([0.0, 1.0, 0.0]), _rows([0.5, 0.25, 9.0]), [[1, 1, 0]], decay=0.5),
            _is(_rows([0.125, 0.75, 0.0]), _rows([0.625, 1.0, 0.0])),
            LOOK,
        ),
        Check(
            "padding before the answer",
            _case(_rows([0.0, 0.0, 1.0]), _rows([9.0, 0.5, 0.25]), [[0, 1, 1]], decay=0.5),
            _is(_rows([0.0, 0.125, 0.75]), _rows([0.0, 0.625, 1.0])),
            LOOK,
        ),
        Check(
            "λ = 0: each decision's own surprise",
            _case(numbers(1, 4), numbers(1, 4, seed=1), [[1, 1, 1, 1]], 0.9, 0.0),
            look=LOOK,
        ),
        Check(
            "three answers of unequal length",
            _case(numbers(3, 5), numbers(3, 5, seed=1), [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], 0.9, 0.8),
            look=LOOK,
        ),
    ),
    mistakes=(
        Mistake(
            "padding's value is taken for what comes after the last token: nothing does",
            "next_value = torch.where(here, values[:, t], next_value)",
            "next_value = values[:, t]",
        ),
        Mistake(
            "the sum runs through padding, and only what comes out is cut to the answer",
            "next_value = torch.where(here, values[:, t], next_value)",
            "next_value = values[:, t]",
            (
                (
                    "next_advantage = torch.where(here, advantage, next_advantage)",
                    "next_advantage = advantage",
                ),
            ),
        ),
        Mistake(
            "λ is missing: the advantage is the return less the value, whatever λ",
            "discount * decay * next_advantage",
            "discount * next_advantage",
        ),
        Mistake("γ and λ are exchanged", "delta = rewards[:, t] + discount", "delta = rewards[:, t] + decay"),
        Mistake("this is each decision's own surprise, whatever λ", "+ discount * decay * next_advantage", ""),
        Mistake(
            "the surprises are weighed by 1 - λ: they count in full",
            "advantage = delta +",
            "advantage = (1 - decay) * delta +",
        ),
        Mistake("λ is taken twice", "discount * decay * next_advantage", "discount * decay * decay * next_advantage"),
        Mistake(
            "what comes behind the last token is given the last value: nothing comes there",
            "next_value = next_advantage = torch.zeros_like(values[:, 0])",
            "next_value, next_advantage = values[:, -1], torch.zeros_like(values[:, 0])",
        ),
        Mistake("off the answer the advantages are not 0", "torch.where(here, advantage, 0.0)", "advantage"),
        Mistake(
            "advantages and returns are exchanged",
            "Advantages(advantages, (advantages + values) * is_answer)",
            "Advantages((advantages + values) * is_answer, advantages)",
        ),
        Mistake(
            "the returns are advantages less values: the values are to be added",
            "(advantages + values)",
            "(advantages - values)",
        ),
        Mistake(
            "the advantages are brought to mean 0 and deviation 1: that is done elsewhere, over the whole batch",
            "return Advantages(advantages,",
            "centred = (advantages - advantages[is_answer].mean()) / (advantages[is_answer].std() + 1e-8)\n"
            "    return Advantages(torch.where(is_answer, centred, 0.0) if is_answer.sum() > 1 else advantages,",
        ),
        Mistake(
            "all rows are taken to have the first one's answer", "here = is_answer[:, t]", "here = is_answer[:1, t]"
        ),
        Mistake("`discount` is taken to be 1 always", "delta = rewards", "discount = 1.0\n        delta = rewards"),
        Mistake("γ is missing before the next value", "discount * next_value", "next_value"),
        Mistake(
            "γ is missing before the next advantage", "discount * decay * next_advantage", "decay * next_advantage"
        ),
        Mistake(
            "the value of the state is not subtracted",
            "+ discount * next_value - values[:, t]",
            "+ discount * next_value",
        ),
        Mistake(
            "time runs forwards: advantages are sums of what is still to come",
            "in reversed(range(values.size(1))):",
            "in range(values.size(1)):",
        ),
        Mistake(
            "the returns are the advantages: the values are to be added",
            "(advantages + values) * is_answer",
            "advantages * is_answer",
        ),
        Mistake(
            "off the answer the returns are values, not 0", "(advantages + values) * is_answer", "advantages + values"
        ),
        Mistake(
            "the next value is left out: this is the reward less the value, summed up",
            "discount * next_value - values",
            "-values",
        ),
    ),
    hints=(
        "δ_t = r_t + γ·V_{t+1} - V_t, and Â_t = δ_t + γλ·Â_{t+1}. In which order are the slots best walked through?",
        "From the last slot to the first, carrying V_{t+1} and Â_{t+1} for each row. Behind an answer's last "
        "token both "
        "are 0.",
        "Padding may be on either side: where a slot is not the answer's, keep what you carry as it is "
        "(torch.where) and "
        "write 0. Returns are advantages + values, on the answer alone.",
    ),
)
