"""Low-rank adaptation."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers


def _gradients(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Those of x, and of each part's A and B."""
    x, lowrank = given["x"].clone().requires_grad_(), given["self"]
    leaves = {"x": x}
    for name, part in lowrank.named.items():
        leaves |= {f"{name}.A": part.A.clone().requires_grad_(), f"{name}.B": part.B.clone().requires_grad_()}
    named = {name: SimpleNamespace(A=leaves[f"{name}.A"], B=leaves[f"{name}.B"]) for name in lowrank.named}
    result = function(SimpleNamespace(named=named, rows=lowrank.rows, scale=lowrank.scale), x)
    result.backward(numbers(*result.shape, seed=9))
    return {name: leaf.grad for name, leaf in leaves.items()}


def _matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _case(x: Tensor, rows: dict[str, int], scale: float, **parts: tuple[Tensor, Tensor]) -> dict[str, Any]:
    named = {name: SimpleNamespace(A=A, B=B) for name, (A, B) in parts.items()}
    return {"self": SimpleNamespace(named=named, rows=rows, scale=scale), "x": x}


def _part(rows: int, width: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    return numbers(rank, width, seed=seed), numbers(rows, rank, seed=seed + 1)


ONE = (_matrix([1, 2]), _matrix([1], [0], [3]))

EXERCISE = Exercise(
    place=710,
    title="LoRA",
    about="A large matrix is tuned by adding a product of two narrow ones, which alone are trained. Queries, keys and "
    "values lie in one matrix here, each with an A and a B of its own, or none.",
    target="instructgpt.model.adapters.LowRank.added",
    has=(
        ("self.rows: dict[str, int]", "by part, how many of the matrix's outputs are its own, in their order"),
        ("self.named", "by part, for those that are adapted: `.A` (rank, in) and `.B` (rows, rank)"),
        ("self.scale: float", "s"),
    ),
    checks=(
        Check(
            "rank 1, computed by hand: A x = 5",
            _case(_matrix([1, 2]), {"query": 3}, 1.0, query=ONE),
            _matrix([5, 0, 15]),
        ),
        Check("a scale of 2", _case(_matrix([1, 2]), {"query": 3}, 2.0, query=ONE), _matrix([10, 0, 30])),
        Check(
            "keys without an adapter, between queries and values that have one",
            _case(
                _matrix([1, 2]),
                {"query": 3, "key": 2, "value": 3},
                1.0,
                query=ONE,
                value=(_matrix([0, 1]), _matrix([1], [1], [1])),
            ),
            _matrix([5, 0, 15, 0, 0, 2, 2, 2]),
        ),
        Check(
            "parts that were named in another order than they stand in",
            _case(
                numbers(2, 6), {"query": 3, "key": 3, "value": 3}, 1.0, value=_part(3, 6, 2, 1), query=_part(3, 6, 2, 3)
            ),
        ),
        Check(
            "as many outputs as inputs: x itself is not added",
            _case(numbers(2, 4), {"up": 4}, 0.5, up=_part(4, 4, 2, 1)),
        ),
        Check(
            "the gradients of x, and of each A and B",
            _case(numbers(2, 6), {"query": 3, "key": 2}, 0.5, query=_part(3, 6, 2, 1)),
            look=_gradients,
        ),
        Check(
            "bfloat16 stays bfloat16",
            _case(
                numbers(2, 6).bfloat16(),
                {"query": 3, "key": 2},
                0.5,
                query=(numbers(2, 6, seed=1).bfloat16(), numbers(3, 2, seed=2).bfloat16()),
            ),
            tolerance=0.05,
        ),
        Check("rank 3, (2, 4, 6) inputs", _case(numbers(2, 4, 6), {"up": 5}, 0.5, up=_part(5, 6, 3, 1))),
        Check(
            "three parts of rank 2",
            _case(
                numbers(3, 6),
                {"query": 4, "key": 2, "value": 2},
                1.5,
                query=_part(4, 6, 2, 1),
                key=_part(2, 6, 2, 3),
                value=_part(2, 6, 2, 5),
            ),
        ),
    ),
    mistakes=(
        Mistake("the scale s is missing", " * self.scale", ""),
        Mistake(
            "the scale is divided by the rank once more: s is alpha / rank already",
            " * self.scale",
            " * self.scale / down[0].size(0)",
        ),
        Mistake(
            "the scale is applied twice, to A x and to B",
            "F.linear(of_part[name], parts[name].B)",
            "F.linear(of_part[name], parts[name].B) * self.scale",
        ),
        Mistake(
            "the parts stand in the order in which they were named: they go as in `rows`",
            "for name, rows in self.rows.items()",
            "for name, rows in [(k, self.rows[k]) for k in [*parts, *(self.rows.keys() - parts.keys())]]",
        ),
        Mistake(
            "x is added: only what is added to the matrix's own result is asked for",
            "return up[0] if len(up) == 1 else torch.cat(up, dim=-1)",
            "y = up[0] if len(up) == 1 else torch.cat(up, dim=-1)\n    return y + x if y.shape == x.shape else y",
        ),
        Mistake("A is given no gradient: it is detached", "[part.A for part", "[part.A.detach() for part"),
        Mistake("B is given no gradient: it is detached", "parts[name].B)", "parts[name].B.detach())"),
        Mistake("x is given no gradient: it is detached", "F.linear(x,", "F.linear(x.detach(),"),
        Mistake(
            "parts without an adapter are left out: zeros stand there",
            "else inner.new_zeros(*x.shape[:-1], rows)",
            "else inner.new_zeros(*x.shape[:-1], 0)",
        ),
        Mistake(
            "the zeros are in float32, and so the result is, too",
            "inner.new_zeros(*x.shape[:-1], rows)",
            "torch.zeros(*x.shape[:-1], rows)",
        ),
        Mistake("there is a non-linearity between A and B", "* self.scale  # (", ".relu() * self.scale  # ("),
        Mistake("only the first adapter is used", "if name in of_part", "if name == next(iter(parts))"),
        Mistake(
            "the dimensions in front are lost: the result is (tokens, out)",
            "return up[0] if len(up) == 1 else torch.cat(up, dim=-1)",
            "return torch.cat(up, dim=-1).flatten(0, -2)",
        ),
        Mistake(
            "the parts are in the wrong order: they go as in `rows`",
            "torch.cat(up, dim=-1)",
            "torch.cat(up[::-1], dim=-1)",
        ),
        Mistake(
            "a part without an adapter gets another one's: it is to get zeros",
            "else inner.new_zeros(*x.shape[:-1], rows)",
            "else F.linear(of_part[next(iter(parts))], next(iter(parts.values())).B)[..., :rows]",
        ),
        Mistake(
            "all parts use the first one's A",
            "dict(zip(parts, inner.chunk(len(down), dim=-1)))",
            "dict.fromkeys(parts, inner.chunk(len(down), dim=-1)[0])",
        ),
    ),
    hints=(
        "For one part: first x through A, which is narrow, then through B. F.linear(x, W) is x Wᵀ.",
        "Go through `self.rows` in order: a part in `self.named` adds s·B(A x), another one zeros of (..., rows).",
        "x.new_zeros(*x.shape[:-1], rows) for those without; torch.cat of all parts along the last dimension. s is "
        "self.scale, once.",
    ),
)
