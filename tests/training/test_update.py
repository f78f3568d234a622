"""An update decides on the device, and is looked at only when it is asked what came of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from instructgpt.config import ModelConfig
from instructgpt.data.batch import Batch
from instructgpt.data.prefetch import Prefetched
from instructgpt.model.backend import resolve_backend
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss, next_token_loss
from instructgpt.runtime import Precision, Ranks
from instructgpt.training.averages import Average
from instructgpt.training.loop import FitConfig, Hooks, fit
from instructgpt.training.optimizer import Optimizer
from instructgpt.training.update import FIRST_SCALE, Updates

CPU = torch.device("cpu")


class Rows:
    """Batches of two rows of random tokens, some of them targets."""

    def __init__(self, vocabulary: int = 50, context: int = 16):
        self.vocabulary, self.context, self.made = vocabulary, context, 0

    def __iter__(self) -> Rows:
        return self

    def __next__(self) -> Batch:
        self.made += 1
        generator = torch.Generator().manual_seed(self.made)
        ids, targets = torch.randint(self.vocabulary, (2, 2, self.context), generator=generator)
        is_target = torch.rand(2, self.context, generator=generator) < 0.4
        slots = torch.arange(self.context).expand(2, -1)
        return Batch(ids, targets, is_target, slots % 8, slots // 8)

    def state(self) -> dict[str, Any]:
        return {"made": self.made}

    def restore(self, state: dict[str, Any]) -> None:
        self.made = state["made"]


def small_model(device: torch.device = CPU) -> Transformer:
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=50, context=16, layers=2, width=32, heads=2, qk_norm=True, qk_window=4)
    return Transformer(shape, resolve_backend("auto", device)).to(device)


def updates_of(weight: nn.Parameter, loss_fn: Any, clip: float = 1.0, scaled: bool = False) -> Updates:
    config = FitConfig(max_steps=1, learning_rate=0.1, weight_decay=0.0)
    optimizer = Optimizer({"w": weight}, config)
    precision = Precision(torch.float32, None, scaled)
    updates = Updates(optimizer, Average(optimizer.masters, 0.9), loss_fn, 1, clip, CPU, precision, Ranks())
    updates.scale = (FIRST_SCALE if scaled else 1.0, 0)
    return updates


class Waits(TorchDispatchMode):
    """Counts the operators that a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select"):
            self.found.append(str(func))
        if func.overloadpacket.__name__ == "index" and any(t is not None and t.dtype == torch.bool for t in args[1]):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("settings", [{}, {"micro_batches": 2}, {"ema": 0.9}, {"clip": 0.0}])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_waits_for_nothing(kind, settings, scaled):
    """What an update of a language model reads on the host: nothing. What came of all three is read at once."""
    model, stream = small_model(), Rows()
    optimizer = Optimizer(dict(model.named_parameters()), FitConfig(max_steps=1, optimizer=kind))
    updates = Updates(
        optimizer, Average(optimizer.masters, settings.get("ema", 0.0)), lambda batch: next_token_loss(model, batch),
        settings.get("micro_batches", 1), settings.get("clip", 1.0), CPU,
        Precision(torch.float32, None, scaled), Ranks(),
    )  # fmt: skip
    batches = [next(stream) for _ in range(6)]
    with Waits() as waits:
        for step in range(1, 4):
            updates.make(iter(batches), step, 1.0)  # type: ignore[arg-type]
    assert waits.found == []
    outcomes = updates.outcomes()
    assert [each.step for each in outcomes] == [1, 2, 3] and all(each.is_finite for each in outcomes)
    assert updates.outcomes() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"ema": 0.9, "micro_batches": 2}])
@pytest.mark.parametrize(
    "precision", [Precision(torch.float32, torch.bfloat16, False), Precision(torch.bfloat16, None, False)]
)
def test_on_cuda_nothing_waits_between_two_lines_of_the_log(settings, precision):
    """Whatever would wait there raises: forward, backward, clipping, optimizer, and the next batch's way."""
    device = torch.device("cuda")
    model = small_model(device).to(precision.parameters)
    stream = Prefetched(Rows(), device=device)
    seen = []

    def log(record: dict[str, float]) -> None:
        seen.append(record["step"])
        # The first window compiles and chooses launches; reading what came of the updates is what waits.
        torch.cuda.set_sync_debug_mode("default")

    def loss_fn(batch: Batch) -> Loss:
        steps = stream.state()["made"]
        torch.cuda.set_sync_debug_mode("error" if steps > 10 and steps % 10 not in (0, 9) else "default")
        return next_token_loss(model, batch)

    config = FitConfig(max_steps=20, log_every=10, **settings)
    try:
        fit(dict(model.named_parameters()), stream, loss_fn, config, Hooks(log=log), device=device, precision=precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        stream.close()
    assert seen == [10, 20]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_update(poison):
    weight = nn.Parameter(torch.ones(3))
    losses = iter([1.0, poison, 1.0])
    updates = updates_of(weight, lambda batch: Loss((weight * next(losses)).sum(), torch.tensor(1.0)))
    seen = []
    for step in (1, 2, 3):
        updates.make(iter(range(9)), step, 1.0)  # type: ignore[arg-type]
        seen.append(weight.detach().clone())
    assert [each.is_finite for each in updates.outcomes()] == [True, False, True]
    assert torch.equal(seen[0], seen[1]) and (seen[2] < seen[1]).all()


def test_a_gradient_that_overflows_though_the_loss_does_not():
    weight = nn.Parameter(torch.ones(2))
    updates = updates_of(
        weight, lambda batch: Loss((weight * 1e30 * 1e-30).sum() + 0 * weight.sum(), torch.tensor(1.0))
    )
    updates.make(iter([0]), 1, 1.0)  # type: ignore[arg-type]
    weight.register_hook(lambda gradient: gradient * math.inf)
    updates.make(iter([0]), 2, 1.0)  # type: ignore[arg-type]
    first, second = updates.outcomes()
    assert first.is_finite and not second.is_finite and math.isfinite(second.total) and not second.overflowed


def test_float16s_scale_halves_and_doubles_on_the_device(monkeypatch):
    monkeypatch.setattr("instructgpt.training.update.GOOD_STEPS_TO_GROW", 3)
    weight = nn.Parameter(torch.zeros(1))
    updates = updates_of(
        weight, lambda batch: Loss((weight.half() * 30.0).sum().float(), torch.tensor(1.0)), scaled=True
    )
    scales = []
    for step in range(1, 9):
        updates.make(iter([0]), step, 1.0)  # type: ignore[arg-type]
        scales.append(updates.scale[0])
    # 30 · 4096 overflows, 30 · 2048 does not; after three good steps the scale doubles, and overflows again.
    assert scales == [2048, 2048, 2048, 4096, 2048, 2048, 2048, 4096]
    assert [each.overflowed for each in updates.outcomes()] == [True, *[False] * 3, True, *[False] * 3]


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_the_clipped_gradient_is_the_means(clip):
    weight, seen = nn.Parameter(torch.zeros(4)), []
    updates = updates_of(weight, lambda batch: Loss((weight * 10).sum(), torch.tensor(2.0)), clip)
    step = updates._optimizer.step
    updates._optimizer.step = lambda *given: (seen.append(weight.grad.norm().item()), step(*given))[1]  # type: ignore
    updates.make(iter([0]), 1, 1.0)  # type: ignore[arg-type]
    (outcome,) = updates.outcomes()
    assert outcome.gradient_norm == pytest.approx(10.0)  # 10/2 in each of four coordinates
    assert seen == [pytest.approx(min(clip or math.inf, 10.0), rel=1e-5)]
