"""AdamW, one update."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers

WRITTEN = ("parameters", "means", "squares")


def _left(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    function(**given)
    return {name: given[name] for name in WRITTEN}


def _case(p: float | Tensor, g: float | Tensor, t: int = 1, decay: float = 0.0, factor: float = 1.0, good: float = 1.0,
          m: float = 0.0, v: float = 0.0, epsilon: float = 1e-8) -> dict[str, Any]:  # fmt: skip
    parameter, gradient = (torch.as_tensor(each, dtype=torch.float64).reshape(-1) for each in (p, g))
    return {
        "self": SimpleNamespace(rate=0.1, betas=(0.9, 0.99), weight_decay=decay, epsilon=epsilon),
        "parameters": [parameter],
        "gradients": [gradient],
        "means": [torch.full_like(parameter, m)],
        "squares": [torch.full_like(parameter, v)],
        "steps": [torch.tensor(float(t))],
        "factor": factor,
        "is_good": torch.tensor(good),
    }


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two parameters in one update."""
    return {name: value + other[name] if isinstance(value, list) else value for name, value in one.items()}


def _after(p: float, m: float, v: float) -> dict[str, list[Tensor]]:
    return {name: [torch.tensor([value], dtype=torch.float64)] for name, value in zip(WRITTEN, (p, m, v))}


def _wrong(mistake: str) -> Callable[..., None]:
    """AdamW written out, with a mistake: ours is one call of a fused kernel, which has no line to change."""

    def update(self: Any, parameters: Any, gradients: Any, means: Any, squares: Any, steps: Any, factor: float,
               is_good: Tensor) -> None:  # fmt: skip
        if is_good == 0 and mistake not in ("bad", "blend"):
            return
        beta1, beta2 = self.betas[::-1] if mistake == "betas" else self.betas
        rate = self.rate * (1.0 if mistake == "factor" else factor)
        for i, (p, g, m, v, t) in enumerate(zip(parameters, gradients, means, squares, steps)):
            if mistake == "one" and i:
                return
            t = t + {"before": -1, "behind": 1}.get(mistake, 0) if mistake != "first" else steps[0]
            old = [each.clone() for each in (p, m, v)]
            g = g + self.weight_decay * p if mistake == "L2" else g
            m.mul_(beta1).add_(g if mistake == "sum" else (1 - beta1) * g)
            v.mul_(beta2).add_((1 - beta2) * (m if mistake == "of means" else g).square())
            mean = m if mistake in ("bias", "bias of means") else m / (1 - beta1**t)
            square = v if mistake in ("bias", "bias of squares") else v / (1 - beta2**t)
            step = {"decay": 1.0, "full decay": self.rate, "L2": 0.0, "undecayed": 0.0}.get(mistake, rate)
            decayed = p - step * self.weight_decay * p
            root = (square + self.epsilon).sqrt() if mistake == "epsilon" else square.sqrt() + self.epsilon
            if mistake == "early epsilon":
                root = (v.sqrt() + self.epsilon) / (1 - beta2**t).sqrt()
            move = rate * mean / (square + self.epsilon if mistake == "root" else root)
            new = decayed + move if mistake == "sign" else decayed - move
            if mistake == "decayed behind":
                new = (p - move) * (1 - rate * self.weight_decay)
            if mistake == "not written":
                p = new
            p.copy_(new)
            if mistake == "kept corrected":
                m.copy_(mean)
                v.copy_(square)
            if mistake == "blend":
                for tensor, before in zip((p, m, v), old):
                    tensor.copy_(before + is_good * (tensor - before))

    return update


EXERCISE = Exercise(
    place=310,
    title="AdamW",
    about="Adam divides a running mean of the gradients by the root of a running mean of their squares. AdamW takes "
    "the weights' decay out of that quotient and applies it to the weights alone. (Write into the tensors.)",
    target="instructgpt.training.adamw.AdamW._update",
    has=(
        ("self.rate: float", "the peak learning rate"),
        ("self.betas: tuple[float, float]", "β₁ and β₂"),
        ("self.weight_decay: float", "λ"),
        ("self.epsilon: float", "ε"),
    ),
    checks=(
        Check(
            "the first step goes by the rate, whatever the gradient's size",
            _case(1.0, 0.5),
            _after(0.9, 0.05, 0.0025),
            _left,
            changes=WRITTEN,
        ),
        Check(
            "the same at half the peak rate",
            _case(1.0, 0.5, factor=0.5),
            _after(0.95, 0.05, 0.0025),
            _left,
            changes=WRITTEN,
        ),
        Check(
            "weight decay of 0.5 takes rate · 0.5 of the weight, and no more",
            _case(2.0, 0.5, decay=0.5),
            _after(1.8, 0.05, 0.0025),
            _left,
            changes=WRITTEN,
        ),
        Check(
            "the same decay at half the peak rate",
            _case(2.0, 0.5, decay=0.5, factor=0.5),
            _after(1.9, 0.05, 0.0025),
            _left,
            changes=WRITTEN,
        ),
        Check("the third step, after others", _case(1.0, -2.0, t=3, m=0.3, v=0.2), look=_left, changes=WRITTEN),
        Check("an ε of 0.5", _case(1.0, 0.5, epsilon=0.5), _after(0.95, 0.05, 0.0025), _left, changes=WRITTEN),
        Check(
            "is_good is 0: nothing moves",
            _case(1.0, 0.5, decay=0.5, good=0.0),
            _after(1.0, 0.0, 0.0),
            _left,
            changes=WRITTEN,
        ),
        Check(
            "is_good is 0, for the gradient is no number: nothing moves",
            _case(1.0, math.nan, good=0.0),
            _after(1.0, 0.0, 0.0),
            _left,
            changes=WRITTEN,
        ),
        Check(
            "two parameters, one in its second step and one in its fifth",
            _both(_case(numbers(2), numbers(2, seed=1), t=2, m=0.1, v=0.3), _case(numbers(3), numbers(3, seed=2), t=5)),
            look=_left,
            changes=WRITTEN,
        ),
        Check(
            "five weights",
            _case(numbers(5), numbers(5, seed=1), t=7, decay=0.1, m=0.1, v=0.3),
            look=_left,
            changes=WRITTEN,
        ),
    ),
    mistakes=(
        Mistake(
            "the moments are not corrected for having begun at 0, so the first steps have the wrong size",
            function=_wrong("bias"),
        ),
        Mistake(
            "the decay is added to the gradient and divided with it: that is L2, not decoupled decay",
            function=_wrong("L2"),
        ),
        Mistake("ε stands under the root; it is added to the root", function=_wrong("epsilon")),
        Mistake("the root is missing: this divides by the mean square", function=_wrong("root")),
        Mistake("the decay is not multiplied by the learning rate", function=_wrong("decay")),
        Mistake("the rate's `factor` is ignored", function=_wrong("factor")),
        Mistake("`is_good` is ignored: a step that is not finite would spoil the weights", function=_wrong("bad")),
        Mistake("the mean is a sum: the new gradient is not weighed by 1 - β₁", function=_wrong("sum")),
        Mistake("the mean is not corrected for having begun at 0; the squares are", function=_wrong("bias of means")),
        Mistake("the squares are not corrected for having begun at 0; the mean is", function=_wrong("bias of squares")),
        Mistake("β₁ and β₂ are exchanged", function=_wrong("betas")),
        Mistake("only the first parameter is updated", function=_wrong("one")),
        Mistake("all parameters are taken to be at the step of the first", function=_wrong("first")),
        Mistake("the correction is one step early: `steps` count this update already", function=_wrong("before")),
        Mistake("the correction is one step late: `steps` count this update already", function=_wrong("behind")),
        Mistake("the decay is not multiplied by `factor`", function=_wrong("full decay")),
        Mistake("there is no weight decay", function=_wrong("undecayed")),
        Mistake(
            "the decay takes its share of the weight after the step, not before", function=_wrong("decayed behind")
        ),
        Mistake(
            "ε is added before the squares are corrected, and grows with the correction",
            function=_wrong("early epsilon"),
        ),
        Mistake("the sign is wrong: this goes up the gradient", function=_wrong("sign")),
        Mistake(
            "the parameters are not written to: `p = p - …` makes a new tensor, which nobody sees",
            function=_wrong("not written"),
        ),
        Mistake("the moments are kept corrected: they are to be kept as they are", function=_wrong("kept corrected")),
        Mistake(
            "the step is multiplied by `is_good`: 0 times what is no number is no number", function=_wrong("blend")
        ),
        Mistake("the squares are those of the mean, not of the gradient", function=_wrong("of means")),
    ),
    hints=(
        "The docstring has the whole update. Everything is in lists, a tensor for each parameter: zip them.",
        "Use in-place operations (mul_, add_, lerp_, sub_), since nothing is returned. β₁ᵗ takes t from `steps`.",
        "Order: moments first, then decay and step, both at factor · rate. ε is added to √(v / (1 - β₂ᵗ)). Where "
        "is_good is 0, return before anything is written.",
    ),
)
