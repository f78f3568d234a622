"""The gradient of RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers
from instructgpt.model import cpu_ops


def _gradients(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """dx and dweight as autograd makes them, with the function as the backward of our norm."""
    x, weight = (given[name].clone().requires_grad_() for name in ("x", "weight"))
    cpu_ops.rms_norm(x, weight, given["eps"]).backward(given["dy"])
    return {"dx": x.grad, "dweight": weight.grad}


def _case(*shape: int) -> dict[str, Any]:
    x, dy = numbers(*shape), numbers(*shape, seed=1)
    return {"x": x, "weight": numbers(shape[-1], seed=2), "eps": 1e-5, "dy": dy}


def _tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ROOT = 12.5**-0.5

EXERCISE = Exercise(
    place=130,
    title="RMSNorm, backwards",
    about="RMSNorm divides a vector by the root of its mean square. Each output depends on all inputs through that "
    "root, which is what the second term of its gradient is about.",
    target="instructgpt.model.cpu_ops._RMSNorm.backward",
    has=(
        ("ctx.saved_tensors", "x̂, r and the weight, in this order, as the docstring has them"),
        ("ctx.needs_input_grad: tuple[bool, ...]", "whether dx and dweight are asked for; None will do where not"),
    ),
    checks=(
        Check(
            "x = (3, 4), computed by hand",
            {"x": _tensor(3, 4)[None], "weight": _tensor(1, 1), "eps": 0.0, "dy": _tensor(1, 0)[None]},
            {"dx": ROOT * _tensor(0.64, -0.48)[None], "dweight": ROOT * _tensor(3, 0)},
            _gradients,
        ),
        Check(
            "weights of 2 and 0",
            {"x": _tensor(3, 4)[None], "weight": _tensor(2, 0), "eps": 0.0, "dy": _tensor(1, 1)[None]},
            {"dx": ROOT * _tensor(1.28, -0.96)[None], "dweight": ROOT * _tensor(3, 4)},
            _gradients,
        ),
        Check("three rows: the weight's gradient is summed over them", _case(3, 4), look=_gradients),
        Check("(2, 3, 5), against autograd in float64", _case(2, 3, 5), look=_gradients),
    ),
    mistakes=(
        Mistake(
            "the mean's term is missing: each output depends on all inputs through the root",
            "torch.addcmul(dy * weight.to(dy.dtype), normed, mean, value=-1)",
            "(dy * weight.to(dy.dtype))",
        ),
        Mistake("the mean's term is added; it is to be subtracted", "value=-1", "value=1"),
        Mistake("the result is not multiplied by r", ".mul_(scale)", ""),
        Mistake("the mean is of dy·x̂: it lacks the weight", "(weight / N)", "(torch.ones_like(weight) / N)"),
        Mistake("this is a sum where a mean belongs", "(weight / N)", "weight"),
        Mistake(
            "the weight's gradient is that of a bias: dy is not multiplied by x̂",
            "product.sum(0, dtype=weight.dtype)",
            "dy.reshape(-1, N).sum(0, dtype=weight.dtype)",
        ),
        Mistake(
            "the weight's gradient is the mean over rows; it is their sum",
            "product.sum(0, dtype=weight.dtype)",
            "product.mean(0, dtype=weight.dtype)",
        ),
    ),
    hints=(
        "y_i = x_i · r · w_i. Differentiate with r held fixed first, then add what changes through r = "
        "(mean_j x_j² + ε)^(-1/2).",
        "∂r/∂x_i = -r³ · x_i / N. With x̂ = x·r and g = dy·w both terms have a factor of r that can be taken out.",
        "dx = r · (g - x̂ · m), where m is the mean of g·x̂ over the last dimension. dweight is dy·x̂, summed over all "
        "dimensions but the last.",
    ),
)
