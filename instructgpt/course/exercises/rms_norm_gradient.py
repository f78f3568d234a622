"""The gradient of RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers
from instructgpt.model import cpu_ops


def _gradients(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """dx and dweight as autograd makes them, with the function as the backward of our norm."""
    x, weight = (given[name].clone().requires_grad_() for name in ("x", "weight"))
    cpu_ops.rms_norm(x, weight, given["eps"]).backward(given["dy"])
    return {"dx": x.grad, "dweight": weight.grad}


def _again(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """dx where autograd asks for it a second time."""
    x, weight = (given[name].clone().requires_grad_() for name in ("x", "weight"))
    y = cpu_ops.rms_norm(x, weight, given["eps"])
    y.backward(given["dy"], retain_graph=True)
    return torch.autograd.grad(y, x, given["dy"])[0]


def _returned(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The three gradients themselves; autograd would sum one that is too large."""
    x, weight, eps = given["x"], given["weight"], given["eps"]
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    ctx = SimpleNamespace(saved_tensors=(x * scale, scale, weight), needs_input_grad=(True, True, False))
    dx, dweight, of_eps = function(ctx, given["dy"])
    return {"dx": dx, "dweight": dweight, "of eps": of_eps}


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
        Check("(2, 3, 5): what it returns, the weight's in the shape of the weight", _case(2, 3, 5), look=_returned),
        Check("(2, 3, 5), against autograd in float64", _case(2, 3, 5), look=_gradients),
        Check("the gradient is asked for a second time: what is saved is as it was", _case(3, 4), look=_again),
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
        Mistake(
            "the weight's gradient is summed over the first dimension alone",
            "(dy * normed).reshape(-1, N)",
            "(dy * normed)",
        ),
        Mistake(
            "the weight's gradient is not summed over the rows: it has to have the weight's shape",
            "product.sum(0, dtype=weight.dtype)",
            "(dy * normed)",
        ),
        Mistake("r is multiplied with twice", ".mul_(scale)", ".mul_(scale).mul_(scale)"),
        Mistake("the weight is multiplied with twice", "dy * weight.to(dy.dtype)", "dy * weight * weight"),
        Mistake("the mean is of g alone: it lacks x̂", "(product @", "(dy.reshape(-1, N) @"),
        Mistake(
            "the weight's gradient is multiplied by the weight",
            "product.sum(0, dtype=weight.dtype)",
            "(product * weight).sum(0)",
        ),
        Mistake(
            "the second term has r³, where x̂ has an r of its own already",
            "torch.addcmul(dy * weight.to(dy.dtype), normed, mean, value=-1)",
            "(dy * weight - normed * mean * scale.square())",
        ),
        Mistake("the weight is missing from the gradient of x", "dy * weight.to(dy.dtype)", "dy"),
        Mistake(
            "the mean is taken over the rows: it is over the channels of each",
            "(product @ (weight / N).to(dy.dtype)).view(scale.shape)",
            "(dy * weight * normed).mean(0, keepdim=True)",
        ),
        Mistake(
            "the mean is one of all rows: each row has its own",
            "(product @ (weight / N).to(dy.dtype)).view(scale.shape)",
            "(dy * weight * normed).mean()",
        ),
        Mistake(
            "this is the gradient of LayerNorm, which takes the mean off, too",
            "torch.addcmul(dy * weight.to(dy.dtype), normed, mean, value=-1)",
            "(dy * weight - (dy * weight).mean(-1, keepdim=True) - normed * mean)",
        ),
        Mistake(
            "what was saved is written to: it may be needed once more",
            "torch.addcmul(dy * weight.to(dy.dtype), normed, mean, value=-1)",
            "normed.mul_(-mean).add_(dy * weight)",
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
