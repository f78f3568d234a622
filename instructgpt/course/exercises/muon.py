"""Muon's orthogonalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Holds, Mistake, numbers, part


def _size(of: Tensor) -> str:
    """In words, which are the same for all that make the same mistake."""
    largest = float(of.abs().max())
    return NOTHING if largest <= 1e-4 else f"between 1e-4 and {SOME}" if largest <= SOME else f"more than {SOME}"


def _off_diagonal(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """How much the result mixes the singular vectors of the update, which are to stay: 0 in all directions."""
    U, _, V = torch.linalg.svd(given["update"], full_matrices=False)
    inside = U.mT @ function(**given) @ V.mT  # (N, k, k)
    return _size(inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1)))


def _alone(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """By how much a matrix in a stack differs from what it is alone."""
    return _size(function(given["update"])[1:] - function(given["update"][1:]))


def _sized(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """By how much the result depends on the size of the update."""
    return _size(function(1000 * given["update"]) - function(given["update"]))


def _between(low: float, high: float) -> Holds:
    def is_between(values: Tensor) -> bool:
        return bool(((values >= low) & (values <= high)).all())

    return Holds(f"all in [{low}, {high}]", is_between)


NOTHING, SOME = "at most 1e-4", 0.1
"""What rounding to the update's own dtype may do, and more than what rounding to 16 bits does."""
SQUARE = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
STACK = torch.cat([100 * numbers(1, 4, 4), numbers(1, 4, 4, seed=1) / 100])

EXERCISE = Exercise(
    place=320,
    title="Muon: an update made orthogonal",
    about="Muon gives every direction of a matrix's update the same size: all singular values become about 1. It needs "
    "no decomposition, only products, by which a polynomial moves each singular value towards 1.",
    target="instructgpt.training.muon.orthogonalize",
    checks=(
        Check("singular values of diag(3, 1)", {"update": SQUARE}, _between(0.85, 1.15), part(torch.linalg.svdvals)),
        Check(
            "singular values, a wide matrix",
            {"update": numbers(1, 3, 7)},
            _between(0.85, 1.15),
            part(torch.linalg.svdvals),
        ),
        Check(
            "singular values, a tall matrix",
            {"update": numbers(1, 7, 3)},
            _between(0.85, 1.15),
            part(torch.linalg.svdvals),
        ),
        Check(
            "a tall matrix keeps its shape",
            {"update": numbers(1, 7, 3)},
            [1, 7, 3],
            part(lambda result: list(result.shape)),
        ),
        Check("how much singular vectors are mixed", {"update": numbers(2, 5, 3)}, NOTHING, _off_diagonal),
        Check(
            "no sign is turned: the product with the update",
            {"update": SQUARE},
            Holds("above 0", lambda value: value > 0),
            lambda function, given: float((function(**given) * given["update"]).sum()),
        ),
        Check("how much a large update changes with its size", {"update": numbers(1, 4, 3)}, NOTHING, _sized),
        Check("how much a small matrix in a stack depends on a large one", {"update": STACK}, NOTHING, _alone),
        Check(
            "zeros stay a number",
            {"update": torch.zeros(1, 2, 3).double()},
            Holds("all finite", lambda x: bool(x.isfinite().all())),
        ),
        Check(
            "three iterations: singular values",
            {"update": numbers(1, 3, 7), "iterations": 3},
            _between(0.18, 1.87),
            part(torch.linalg.svdvals),
        ),
    ),
    mistakes=(
        Mistake(
            "the update is not divided by its norm first: the polynomial throws large singular values far off",
            "x = x / (_SAFETY * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)",
            "x = x * 1.0",
        ),
        Mistake(
            "the norm is that of the whole stack: each matrix has its own",
            "x.norm(dim=(-2, -1), keepdim=True)",
            "x.norm()",
        ),
        Mistake(
            "the norm is that of each row: directions change",
            "x.norm(dim=(-2, -1), keepdim=True)",
            "x.norm(dim=-1, keepdim=True)",
        ),
        Mistake(
            "a tall matrix comes back lying: the transposition is not undone", "return x.mT if tall else x", "return x"
        ),
        Mistake(
            "a tall matrix is made larger: what its rows and columns are worth is not decided here",
            "return x.mT if tall else x",
            "return (x.mT if tall else x) * max(1, update.size(-2) / update.size(-1)) ** 0.5",
        ),
        Mistake(
            "this computes in 16 bits: the dtype is the update's own",
            "x = update.mT if tall else update",
            "x = (update.mT if tall else update).bfloat16()",
            (("return x.mT if tall else x", "return (x.mT if tall else x).to(update.dtype)"),),
        ),
        Mistake(
            "what is added to the norm is not small beside it: a small update is made smaller",
            " + 1e-7)",
            " + 1e-3)",
        ),
        Mistake("zeros are 0/0: something small belongs to the norm", " + 1e-7)", ")"),
        Mistake(
            "these are the constants of Muon's first version: `_POLYNOMIALS` come nearer to 1",
            "in _POLYNOMIALS[:iterations]:",
            "in [(3.4445, -4.7750, 2.0315)] * iterations:",
        ),
        Mistake("one iteration is missing", "_POLYNOMIALS[:iterations]", "_POLYNOMIALS[: iterations - 1]"),
        Mistake("b and c are exchanged", "for a, b, c in", "for a, c, b in"),
        Mistake(
            "each iteration takes the first of the polynomials: each has its own",
            "in _POLYNOMIALS[:iterations]:",
            "in _POLYNOMIALS[:1] * iterations:",
        ),
        Mistake(
            "the polynomials are taken in the wrong order",
            "in _POLYNOMIALS[:iterations]:",
            "in _POLYNOMIALS[:iterations][::-1]:",
        ),
        Mistake(
            "the norm is the largest element: singular values may be larger than that",
            "x.norm(dim=(-2, -1), keepdim=True)",
            "x.abs().amax(dim=(-2, -1), keepdim=True)",
        ),
        Mistake("the term c of the polynomial is missing", "alpha=c", "alpha=0.0"),
        Mistake("the term a of the polynomial is 1", "beta=a", "beta=1.0"),
        Mistake("the sign of the polynomial is wrong", "return x.mT if tall else x", "return -x.mT if tall else -x"),
        Mistake(
            "this is the normalised update alone: nothing is iterated",
            "in _POLYNOMIALS[:iterations]:",
            "in _POLYNOMIALS[:0]:",
        ),
    ),
    hints=(
        "With X = U S Vᵀ, (XXᵀ)X = U S³ Vᵀ: odd polynomials in X act on the singular values alone. First bring these "
        "into [0, 1].",
        "Divide by the Frobenius norm of each matrix, which no singular value exceeds. Each of `_POLYNOMIALS` is a "
        "triple (a, b, c) for one iteration.",
        "X <- aX + b(XXᵀ)X + c(XXᵀ)²X: compute the Gram matrix A = XXᵀ, then (bA + cA²)X + aX. Transpose a tall "
        "matrix before and after, for then A is the small one.",
    ),
)
