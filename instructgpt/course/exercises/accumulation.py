"""One update from several micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake
from instructgpt.objectives.lm import Loss


def _accumulated(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The gradient that is left in a weight w, and the sums, for the losses w·x of the batches of numbers x."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def loss_fn(batch: Tensor) -> Loss:
        total = (weight * batch).sum() if len(batch) else torch.zeros((), dtype=torch.float64)
        return Loss(total, torch.tensor(float(len(batch))), {"largest": batch.sum().detach()})

    scale = given.get("scale", 1.0)
    state: Any = SimpleNamespace(
        _loss_fn=loss_fn,
        _micro_batches=given["micro_batches"],
        _ranks=SimpleNamespace(size=given.get("ranks", 1), rank=given.get("rank", 0)),
        _precision=SimpleNamespace(scale_loss=scale != 1.0, context=lambda device: nullcontext()),
        _device=torch.device("cpu"),
        _optimizer=SimpleNamespace(gather_gradients=lambda: None),
        _scale=torch.tensor(scale, dtype=torch.float64),
        _zero=torch.zeros((), dtype=torch.float64),
    )
    sums = function(state, iter([torch.tensor(batch, dtype=torch.float64) for batch in given["batches"]]))
    attached = [name for name, value in sums.items() if value.requires_grad]
    sums = {name: float(value.detach()) for name, value in sums.items() if name != "tokens"}
    return {"gradient": 0.0 if weight.grad is None else float(weight.grad), **sums, "with a graph": attached}


def _is(gradient: float, total: float, weight: float, largest: float | None = None) -> dict[str, Any]:
    return {"gradient": gradient, "total": total, "weight": weight,
            "largest": total if largest is None else largest, "with a graph": []}  # fmt: skip


EXERCISE = Exercise(
    place=340,
    title="Gradient accumulation",
    about="A batch that is too large for memory is made of micro-batches, whose gradients add up. Losses and weights "
    "are summed, and divided once at the end, so that a token counts alike in whichever micro-batch it stands. (Here "
    "gradients are summed; `_scale_and_clip` divides.)",
    target="instructgpt.training.update.Updates._accumulate",
    has=(
        ("self._micro_batches: int", "how many each rank computes"),
        (
            "self._ranks.size, self._ranks.rank",
            "how many ranks there are, and which one this is; 1 and 0 for one alone",
        ),
        ("self._loss_fn(batch) -> Loss", "has `total` with its graph, `weight`, and `metrics`, tensors by name"),
        ("self._precision.context(self._device)", "`with` this around the forward alone"),
        ("self._precision.scale_loss: bool", "whether `self._scale` is used"),
        ("self._scale: Tensor", "what a loss is multiplied by before it goes backward, so that float16 holds it"),
        ("self._optimizer.gather_gradients()", "to be called behind each backward"),
        ("self._zero: Tensor", "a 0 in float64, to begin the sums with"),
    ),
    checks=(
        Check(
            "one micro-batch of 1 and 2", {"batches": [[1, 2]], "micro_batches": 1}, _is(3.0, 3.0, 2.0), _accumulated
        ),
        Check(
            "three tokens, then one: sums of gradients, losses and weights",
            {"batches": [[1, 2, 3], [10]], "micro_batches": 2},
            _is(16.0, 16.0, 4.0),
            _accumulated,
        ),
        Check(
            "a micro-batch with nothing to train on",
            {"batches": [[], [5]], "micro_batches": 2},
            _is(5.0, 5.0, 1.0),
            _accumulated,
        ),
        Check(
            "two ranks: the second takes every second micro-batch",
            {"batches": [[1], [2], [4], [8]], "micro_batches": 2, "ranks": 2, "rank": 1},
            _is(10.0, 10.0, 2.0),
            _accumulated,
        ),
        Check(
            "float16's loss scale of 8 is in the gradient, not in the sums",
            {"batches": [[1], [2]], "micro_batches": 2, "scale": 8.0},
            _is(24.0, 3.0, 2.0),
            _accumulated,
        ),
    ),
    mistakes=(
        Mistake(
            "this is a mean of means: each micro-batch is divided by its own weight",
            "scaled.backward()",
            "(scaled / loss.weight).backward()",
        ),
        Mistake(
            "each micro-batch is divided by their number: short ones then weigh as much as long ones",
            "scaled.backward()",
            "(scaled / self._micro_batches).backward()",
        ),
        Mistake("only the last micro-batch is in the sums", "sums.get(name, self._zero) + value", "value"),
        Mistake(
            "a micro-batch with nothing to train on is an error: its loss has no gradient",
            "if loss.total.requires_grad:",
            "if True:",
        ),
        Mistake("every rank does every micro-batch", "if index % self._ranks.size != self._ranks.rank:", "if False:"),
        Mistake(
            "with several ranks some micro-batches are done by nobody",
            "self._micro_batches * self._ranks.size",
            "self._micro_batches",
        ),
        Mistake(
            "the loss is not scaled for float16",
            "if self._precision.scale_loss else loss.total",
            "if False else loss.total",
        ),
        Mistake(
            "the sums keep the graphs of all micro-batches: nothing is detached",
            "value.detach().to(self._zero)",
            "value.to(self._zero)",
        ),
    ),
    hints=(
        "Take each micro-batch in turn, call `self._loss_fn` on it in `self._precision.context(self._device)`, and go "
        "backward: gradients add up by themselves.",
        "`next(batches)` is called micro_batches · ranks times on each rank, and a rank computes those whose number "
        "modulo the ranks is its own. Nothing is divided.",
        "Sum detached total, weight, the batch's `tokens` (0 if it has none) and every metric, in the dtype of "
        "`self._zero`. A loss without requires_grad has no backward; call `self._optimizer.gather_gradients()` "
        "after each.",
    ),
)
