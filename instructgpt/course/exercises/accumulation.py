"""One update from several micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake
from instructgpt.objectives.lm import Loss


@dataclass
class Batch:
    """Numbers x, of which the loss is w·x."""

    numbers: list[float]
    tokens: int


class Run:
    """A weight w, whose gradients an optimizer gathers as it does where weights have 16 bits, and what goes wrong."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.weight = torch.ones((), dtype=given.get("dtype", torch.float64), requires_grad=True)
        self.weight.register_post_accumulate_grad_hook(self._after_backward)
        self.gathered, self.waiting, self.inside = 0.0, 0, False
        self.wrong: list[str] = []
        self._device = torch.device("cpu")
        self._micro_batches = given["micro_batches"]
        self._ranks = SimpleNamespace(size=given.get("ranks", 1), rank=given.get("rank", 0))
        self._precision = SimpleNamespace(scale_loss=given.get("scale_loss", False), context=self._context)
        self._optimizer = SimpleNamespace(gather_gradients=self._gather)
        self._scale = torch.tensor(given.get("scale", 1.0), dtype=torch.float64)
        self._zero = torch.zeros((), dtype=torch.float64)

    @contextmanager
    def _context(self, device: torch.device) -> Iterator[None]:
        self._notice(device != self._device, "the context is that of another device")
        self.inside = True
        yield
        self.inside = False

    def _loss_fn(self, batch: Any) -> Loss:
        self._notice(not self.inside, "a forward outside of the context")
        x = torch.tensor(batch.numbers if isinstance(batch, Batch) else batch, dtype=self.weight.dtype)
        total = (self.weight * x).sum() if len(x) else torch.zeros((), dtype=x.dtype)
        return Loss(total, torch.tensor(float(len(x))), {"largest": x.sum()})

    def _after_backward(self, weight: Tensor) -> None:
        self._notice(self.inside, "a backward inside of the context")
        self.waiting += 1
        self._notice(self.waiting > 1, "a backward before the gradients of the last one were gathered")

    def _gather(self) -> None:
        if self.weight.grad is not None:
            self.gathered += float(self.weight.grad)
            self.weight.grad, self.waiting = None, 0

    def _notice(self, is_wrong: bool, says: str) -> None:
        if is_wrong and says not in self.wrong:
            self.wrong.append(says)


def _accumulated(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The gradient that was gathered, the sums, batches that were left, and what went wrong on the way."""
    run: Any = Run(given)
    batches = iter(given["batches"])
    sums = function(run, batches)
    run._notice(run.waiting > 0, "gradients that were not gathered")
    run._notice(bool(run._zero != 0), "a zero that was written to")
    for value in sums.values():
        if isinstance(value, Tensor):
            run._notice(value.dtype != torch.float64, "sums that are not in float64")
            run._notice(value.requires_grad, "sums with a graph")
        else:
            run._notice(True, "sums that are no tensors")
    numbers = {name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in sums.items()}
    return {"gradient": run.gathered, **numbers, "batches left": len(list(batches)), "wrong": run.wrong}


def _is(gradient: float, total: float, weight: float, tokens: float = 0.0, left: int = 0) -> dict[str, Any]:
    return {"gradient": gradient, "total": total, "weight": weight, "tokens": tokens, "largest": total,
            "batches left": left, "wrong": []}  # fmt: skip


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
            {"batches": [[1], [2]], "micro_batches": 2, "scale": 8.0, "scale_loss": True},
            _is(24.0, 3.0, 2.0),
            _accumulated,
        ),
        Check(
            "a scale of 8 that is not used, for these are no 16 bits",
            {"batches": [[1], [2]], "micro_batches": 2, "scale": 8.0},
            _is(3.0, 3.0, 2.0),
            _accumulated,
        ),
        Check(
            "batches that count their tokens: 5, none to train on, and 2 that another rank has",
            {"batches": [Batch([1], 5), Batch([3], 2), Batch([], 4), Batch([3], 2)], "micro_batches": 2, "ranks": 2},
            _is(1.0, 1.0, 1.0, tokens=9.0),
            _accumulated,
        ),
        Check(
            "two of five batches: the others are for later",
            {"batches": [[1], [2], [4], [8], [16]], "micro_batches": 2},
            _is(3.0, 3.0, 2.0, left=3),
            _accumulated,
        ),
        Check(
            "losses in float32, which has no place for 2^24 + 1: sums in float64",
            {"batches": [[2.0**24], [1], [1]], "micro_batches": 3, "dtype": torch.float32},
            _is(2.0**24 + 2, 2.0**24 + 2, 3.0),
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
        Mistake("tokens are not counted: a batch may have `tokens`", 'getattr(batch, "tokens", 0)', "0"),
        Mistake(
            "a batch that does not count its tokens is an error: it adds 0",
            'getattr(batch, "tokens", 0)',
            "batch.tokens",
        ),
        Mistake(
            "the weights are taken for the tokens: a batch has more of these",
            'getattr(batch, "tokens", 0)',
            "loss.weight",
        ),
        Mistake(
            "the sums have no tokens: they belong there, 0 where nobody counts them",
            ', "tokens": self._zero}',
            "}",
            ((', "tokens": getattr(batch, "tokens", 0)', ""),),
        ),
        Mistake(
            "the tokens of other ranks' batches are counted, too",
            "            continue\n",
            '            sums["tokens"] = sums["tokens"] + getattr(batch, "tokens", 0)\n            continue\n',
        ),
        Mistake(
            "the metrics are divided by the number of micro-batches: they are sums",
            "**loss.metrics}",
            "**{name: value / self._micro_batches for name, value in loss.metrics.items()}}",
        ),
        Mistake("the metrics are left out of the sums", ", **loss.metrics}", "}"),
        Mistake(
            "a micro-batch with nothing to train on is passed over: its tokens count",
            "        added = {",
            "        if not loss.total.requires_grad:\n            continue\n        added = {",
        ),
        Mistake("the gradients are not gathered behind the backward", "self._optimizer.gather_gradients()", "pass"),
        Mistake(
            "the gradients are gathered once, behind the last backward: 16 bits add up badly",
            "            self._optimizer.gather_gradients()\n",
            "",
            (("    return sums", "    self._optimizer.gather_gradients()\n    return sums"),),
        ),
        Mistake(
            "the gradients are gathered before the backward, so the last ones are not",
            "scaled.backward()\n            self._optimizer.gather_gradients()",
            "self._optimizer.gather_gradients()\n            scaled.backward()",
        ),
        Mistake(
            "the forward is not done in the context, so it has not the precision that is asked for",
            "with self._precision.context(self._device):",
            "if True:",
        ),
        Mistake(
            "the backward is done in the context, too: it is for the forward alone",
            "        if loss.total.requires_grad:",
            "        with self._precision.context(self._device):",
            (
                (
                    "            scaled = loss.total *",
                    "            if not loss.total.requires_grad:\n"
                    "                loss.total.requires_grad_()\n            scaled = loss.total *",
                ),
            ),
        ),
        Mistake(
            "the loss is scaled always: `scale_loss` says whether", "if self._precision.scale_loss else loss.total", ""
        ),
        Mistake(
            "the sums are of scaled losses: the scale is for the backward alone",
            '{"total": loss.total,',
            '{"total": loss.total * self._scale if self._precision.scale_loss else loss.total,',
        ),
        Mistake(
            "all batches are read, though this stream may have no end",
            "    sums: dict",
            "    batches = iter(list(batches))\n    sums: dict",
        ),
        Mistake(
            "one batch too many is read, which nobody trains on",
            "    return sums",
            "    next(batches, None)\n    return sums",
        ),
        Mistake(
            "each rank takes a stretch of neighbouring batches: they take turns",
            "index % self._ranks.size != self._ranks.rank",
            "index // self._micro_batches != self._ranks.rank",
        ),
        Mistake(
            "the total is divided by the weight already: that is done later, once",
            "    return sums",
            '    sums["total"] = sums["total"] / sums["weight"]\n    return sums',
        ),
        Mistake(
            "the sums are in the losses' own dtype: float32 forgets small ones beside a large one",
            "value.detach().to(self._zero)",
            "value.detach()",
            (("sums.get(name, self._zero) + value", "(sums[name] + value if index >= self._ranks.size else value)"),),
        ),
        Mistake(
            "`self._zero` is written to: all sums share it",
            "sums[name] = sums.get(name, self._zero) + value",
            "sums[name] = sums.get(name, self._zero).add_(value)",
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
