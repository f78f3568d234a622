"""Documents side by side in the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, refusal
from instructgpt.data.tokens import Tokens


def _document(*ids: int, prompt: int = 1) -> Tokens:
    is_target = np.arange(len(ids)) >= prompt
    return Tokens(np.array(ids, dtype=np.int32), is_target)


ANY = "no target"


def _table(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The batch's tensors. The targets of a prompt, which are none, may be anything, and are said to be so."""
    batch = function(**given)
    is_prompt = ~batch.is_target.bool() & (batch.documents >= 0)
    targets = batch.targets
    if targets.dtype == torch.int64 and targets.shape == is_prompt.shape:
        targets = [
            [ANY if is_any else target for target, is_any in zip(*row)]
            for row in zip(targets.tolist(), is_prompt.tolist())
        ]
    return {
        "ids": batch.ids,
        "targets": targets,
        "is_target": batch.is_target,
        "positions": batch.positions,
        "documents": batch.documents,
    }


def _rows(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


EXERCISE = Exercise(
    place=220,
    title="Packing documents into rows",
    about="Short documents share a row, so that little of a batch is padding. Each of them is to be as if it were "
    "alone: its own positions, its own number for the mask, and no target from its neighbour.",
    target="instructgpt.data.packing.collate",
    checks=(
        Check(
            "one document of four tokens, of which the last two are learnt",
            {"rows": [[_document(5, 6, 7, 8, prompt=2)]], "context": 4},
            {
                "ids": _rows([5, 6, 7, 0]),
                "targets": [[ANY, 7, 8, 0]],
                "is_target": _rows([0, 1, 1, 0]).bool(),
                "positions": _rows([0, 1, 2, 0]),
                "documents": _rows([0, 0, 0, -1]),
            },
            _table,
        ),
        Check(
            "two documents in a row",
            {"rows": [[_document(1, 2, 3), _document(4, 5, 6)]], "context": 5},
            {
                "ids": _rows([1, 2, 4, 5, 0]),
                "targets": [[2, 3, 5, 6, 0]],
                "is_target": _rows([1, 1, 1, 1, 0]).bool(),
                "positions": _rows([0, 1, 0, 1, 0]),
                "documents": _rows([0, 0, 1, 1, -1]),
            },
            _table,
        ),
        Check(
            "three rows, the last one empty",
            {
                "rows": [[_document(1, 2, 3, 4, prompt=3)], [_document(5, 6), _document(7, 8, 9, prompt=2)], []],
                "context": 4,
            },
            look=_table,
        ),
        Check(
            "a row that is just full",
            {"rows": [[_document(1, 2, 3), _document(4, 5)]], "context": 3},
            {
                "ids": _rows([1, 2, 4]),
                "targets": [[2, 3, 5]],
                "is_target": _rows([1, 1, 1]).bool(),
                "positions": _rows([0, 1, 0]),
                "documents": _rows([0, 0, 1]),
            },
            _table,
        ),
        Check(
            "more inputs than the row has room for: a ValueError",
            {"rows": [[_document(1, 2, 3), _document(4, 5, 6)]], "context": 3},
            "ValueError",
            refusal,
        ),
    ),
    mistakes=(
        Mistake(
            "the targets are the inputs themselves: they are to be one token further",
            "tokens.ids[1:]",
            "tokens.ids[:-1]",
        ),
        Mistake(
            "is_target is one token early: it belongs to the target, not to the input",
            "tokens.is_target[1:]",
            "tokens.is_target[:-1]",
        ),
        Mistake("a row that is just full is refused", "if end > context:", "if end >= context:"),
        Mistake(
            "the last token of a document has the first one of the next as its target",
            "start = end\n",
            "if start:\n                targets[row, start - 1], is_target[row, start - 1] = tokens.ids[0], True\n"
            "            start = end\n",
            (
                ("end = start + len(tokens) - 1", "end = start + len(tokens) - 1 + (number + 1 < len(items))"),
                ("ids[row, start:end] = tokens.ids[:-1]", "ids[row, start:end] = tokens.ids[: end - start]"),
                ("= tokens.ids[1:]", "= np.append(tokens.ids[1:], tokens.ids[-1])[: end - start]"),
                ("= tokens.is_target[1:]", "= np.append(tokens.is_target[1:], True)[: end - start]"),
            ),
        ),
        Mistake(
            "the padding's ids are -1, which are no tokens: they are 0",
            "for _ in range(3))",
            "for _ in range(3))\n    ids -= 1",
        ),
        Mistake(
            "the padding's targets are -100: they are 0, and `is_target` says that they do not count",
            "for _ in range(3))",
            "for _ in range(3))\n    targets -= 100",
        ),
        Mistake(
            "the padding goes on counting positions: they are 0",
            "for _ in range(3))",
            "for _ in range(3))\n    positions += np.arange(context)",
        ),
        Mistake("the documents of a row are counted from 1: the first is 0", "enumerate(items)", "enumerate(items, 1)"),
        Mistake("positions begin at 1", "counting[: end - start]", "counting[: end - start] + 1"),
        Mistake("a gap is left between two documents", "start = end\n", "start = end + 1\n"),
        Mistake("every token is a target, prompts included", "tokens.is_target[1:]", "True"),
        Mistake(
            "positions go on from document to document: they are to start at 0 in each",
            "counting[: end - start]",
            "counting[start:end]",
        ),
        Mistake(
            "all documents of a row have the number 0, so they see each other",
            "documents[row, start:end] = number",
            "documents[row, start:end] = 0",
        ),
        Mistake(
            "documents are numbered on from row to row: they are counted in each",
            "documents[row, start:end] = number",
            "documents[row, start:end] = number + sum(map(len, rows[:row]))",
        ),
        Mistake(
            "padding has the number 0, as if it were part of the first document; it is -1",
            "np.full(shape, -1, dtype=np.int64)",
            "np.zeros(shape, dtype=np.int64)",
        ),
        Mistake(
            "what does not fit is cut off in silence",
            "if end > context:",
            "if start > 10**9:",
            (
                ("end = start + len(tokens) - 1", "end = min(start + len(tokens) - 1, context)"),
                ("tokens.ids[:-1]", "tokens.ids[:-1][: end - start]"),
                ("tokens.ids[1:]", "tokens.ids[1:][: end - start]"),
                ("tokens.is_target[1:]", "tokens.is_target[1:][: end - start]"),
            ),
        ),
    ),
    hints=(
        "n tokens give n - 1 inputs. Fill five arrays of (rows, context), and keep count of where in the row you are.",
        "Inputs are all tokens but the last, targets all but the first, and is_target goes with the targets. Positions "
        "begin at 0 in each document.",
        "documents begins as an array of -1, which is what padding keeps; the rest begin as zeros. Check that the end "
        "is within the context before you write. `Batch(*map(torch.from_numpy, ...))` takes ids, targets, is_target, "
        "positions, documents.",
    ),
)
