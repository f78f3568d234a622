"""Which keys a query may attend to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake

CPU = torch.device("cpu")


def _allowed(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """True where a query may attend, whether the mask says so or has something to add to scores. None is PyTorch's own
    causality, which puts the first query at the first key, or a single query that sees everything."""
    mask = function(**given)
    if mask is None:
        plain = torch.ones(1, 1, given["queries"], given["keys"], dtype=torch.bool)
        return plain if given["queries"] == 1 else plain.tril()
    return mask if mask.dtype == torch.bool else mask == 0


def _mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[[[letter == "1" for letter in row] for row in rows]]])


EXERCISE = Exercise(
    place=120,
    title="The causal mask and the document mask",
    about="A token may not see what comes after it, nor, in a row that several documents share, what belongs to "
    "another one. With a cache the queries are the last of the keys, and the mask is no square. (Each form is "
    "right, on every device: True where a query may attend, or what is added to its scores; and a mask where None "
    "would do.)",
    target="instructgpt.model.backend._sdpa_visibility",
    without=("kernels", "cpu_ops"),
    checks=(
        Check(
            "two documents of two tokens",
            {"queries": 4, "keys": 4, "documents": torch.tensor([[0, 0, 1, 1]]), "device": CPU},
            _mask("1000", "1100", "0010", "0011"),
            _allowed,
        ),
        Check(
            "two new tokens after three in a cache: the last query stands at the last key",
            {"queries": 2, "keys": 5, "documents": None, "device": CPU},
            _mask("11110", "11111"),
            _allowed,
        ),
        Check(
            "two queries, which are the last of four keys of two documents",
            {"queries": 2, "keys": 4, "documents": torch.tensor([[0, 1, 1, 1]]), "device": CPU},
            _mask("0110", "0111"),
            _allowed,
        ),
        Check(
            "no documents, as many queries as keys",
            {"queries": 3, "keys": 3, "documents": None, "device": CPU},
            _mask("100", "110", "111"),
            _allowed,
        ),
        Check(
            "rows have documents of their own; padding, -1, sees itself",
            {"queries": 4, "keys": 4, "documents": torch.tensor([[0, 0, 0, -1], [0, 1, 2, 2]]), "device": CPU},
            look=_allowed,
        ),
        Check(
            "padding in front: only padding sees it",
            {"queries": 4, "keys": 4, "documents": torch.tensor([[-1, -1, 0, 0]]), "device": CPU},
            _mask("1000", "1100", "0010", "0011"),
            _allowed,
        ),
        Check(
            "one new token of the second document",
            {"queries": 1, "keys": 4, "documents": torch.tensor([[0, 0, 1, 1]]), "device": CPU},
            _mask("0011"),
            _allowed,
        ),
        Check(
            "one new token, no documents",
            {"queries": 1, "keys": 3, "documents": None, "device": CPU},
            _mask("111"),
            _allowed,
        ),
        Check(
            "where the mask lies",
            {"queries": 2, "keys": 5, "documents": None, "device": torch.device("meta")},
            "meta",
            lambda function, given: str(function(**given).device),
        ),
    ),
    mistakes=(
        Mistake(
            "the first query stands at the first key; it is the last ones that belong together",
            "None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]",
            "torch.ones(1, 1, queries, keys, dtype=torch.bool).tril()",
            (
                (
                    "is_same & kernels.causal_mask(queries, keys, device)",
                    "is_same & torch.ones(queries, keys, dtype=torch.bool).tril()",
                ),
            ),
        ),
        Mistake(
            "None where the queries are the last of more keys: PyTorch puts the first query at the first key",
            "None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]",
            "None",
        ),
        Mistake(
            "a single query is let see all keys, though they are of several documents",
            "if documents is None:",
            "if queries == 1:\n        return None\n    if documents is None:",
        ),
        Mistake(
            "the mask is not on the device that was asked for",
            "kernels.causal_mask(queries, keys, device)[None, None]",
            'kernels.causal_mask(queries, keys, torch.device("cpu"))[None, None]',
        ),
        Mistake(
            "each query sees the key behind its own, too",
            "None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]",
            "torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries + 1)",
            (
                (
                    "is_same & kernels.causal_mask(queries, keys, device)",
                    "is_same & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries + 1)",
                ),
            ),
        ),
        Mistake(
            "queries and keys are exchanged: this sees what comes later, not what came before",
            "None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]",
            "torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).triu(keys - queries)",
            (
                (
                    "is_same & kernels.causal_mask(queries, keys, device)",
                    "is_same & torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries)",
                ),
            ),
        ),
        Mistake(
            "the mask is the wrong way round: True is where a query may attend",
            "None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]",
            "~kernels.causal_mask(queries, keys, device)[None, None]",
            (
                (
                    "(is_same & kernels.causal_mask(queries, keys, device))",
                    "~(is_same & kernels.causal_mask(queries, keys, device))",
                ),
            ),
        ),
        Mistake(
            "a dimension for the heads is missing: (B, 1, queries, keys)",
            "None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]",
            "kernels.causal_mask(queries, keys, device)[None]",
            (
                (
                    "(is_same & kernels.causal_mask(queries, keys, device))[:, None]",
                    "(is_same & kernels.causal_mask(queries, keys, device))",
                ),
            ),
        ),
        Mistake(
            "padding is let be seen by all that comes behind it",
            "is_same & kernels",
            "(is_same | (documents < 0)[:, None]) & kernels",
        ),
        Mistake(
            "padding sees nothing, not even itself: a softmax over nothing is no number",
            "is_same & kernels",
            "is_same & (documents >= 0)[:, None] & kernels",
        ),
        Mistake(
            "all rows are given the documents of the first one",
            "documents[:, None, :]",
            "documents[:1, None, :].expand(len(documents), -1, -1)",
            (("documents[:, keys - queries :, None]", "documents[:1, keys - queries :, None]"),),
        ),
        Mistake(
            "within a document all is visible, also what comes later",
            "(is_same & kernels.causal_mask(queries, keys, device))",
            "is_same",
        ),
        Mistake(
            "earlier documents are visible: the document numbers are not compared",
            "(is_same & kernels.causal_mask(queries, keys, device))",
            "kernels.causal_mask(queries, keys, device).expand(is_same.shape)",
        ),
        Mistake(
            "one of two reasons suffices where both are needed: this is OR in place of AND", "is_same &", "is_same |"
        ),
        Mistake(
            "the queries are given the documents of the first keys",
            "documents[:, keys - queries :, None]",
            "documents[:, :queries, None]",
        ),
        Mistake(
            "no token sees itself",
            "(is_same & kernels.causal_mask(queries, keys, device))",
            "(is_same & kernels.causal_mask(queries, keys, device).tril(keys - queries - 1))",
        ),
    ),
    hints=(
        "Make two masks of True and False, one for causality and one for documents, and think about what joins them.",
        "`torch.tril` has a diagonal: which one leaves the last query all keys? The documents of the queries are the "
        "last `queries` columns of `documents`.",
        "(B, queries, 1) compared with (B, 1, keys) is (B, queries, keys). A dimension for the heads comes in "
        "behind B. "
        "A mask of True and False is right in every case: None and what a CPU adds to scores only save time.",
    ),
)
