"""`fit` on a linear model, where every number can be computed by hand."""

import itertools
import json
import math
import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

from instructgpt.errors import UserError
from instructgpt.objectives.lm import Loss
from instructgpt.runtime import Precision
from instructgpt.strict_json import to_json
from instructgpt.training import loop
from instructgpt.training.loop import FitConfig, FitResult, Hooks, Progress, Snapshot, fit

CPU, FLOAT32 = torch.device("cpu"), Precision(torch.float32, None, False)


class Counted:
    """Batches 0, 1, 2, … with a place that can be saved."""

    def __init__(self, make=lambda i: i):
        self.index, self.make = 0, make

    def __iter__(self):
        return self

    def __next__(self):
        self.index += 1
        return self.make(self.index - 1)

    def state(self):
        return {"index": self.index}

    def restore(self, state):
        self.index = state["index"]


def quadratic(weight, target=3.0):
    return lambda batch: Loss(((weight - target) ** 2).sum(), torch.tensor(1.0))


def run(weight, loss_fn, hooks=None, batches=None, resume_from=None, precision=FLOAT32, **settings):
    config = FitConfig(**{"max_steps": 20, "warmup_steps": 1, "learning_rate": 0.1, "weight_decay": 0.0, **settings})
    return fit(
        {"w": weight}, batches or Counted(), loss_fn, config, hooks or Hooks(), device=CPU, precision=precision,
        resume_from=resume_from,
    )  # fmt: skip


def test_it_minimises():
    weight = nn.Parameter(torch.zeros(2, 2))
    run(weight, quadratic(weight), max_steps=150)
    assert (weight - 3).abs().max() < 0.05


def test_an_end_is_required():
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="--max-steps or --max-minutes"):
        run(weight, quadratic(weight), max_steps=0)


def test_non_finite_step_is_skipped_and_reported():
    weight, records = nn.Parameter(torch.zeros(1)), []

    def loss_fn(batch):
        scale = math.nan if batch == 2 else 1.0
        return Loss((weight * scale).sum(), torch.tensor(1.0))

    seen = []
    hooks = Hooks(log=lambda r: (records.append(r), seen.append(weight.item())))
    result = run(weight, loss_fn, hooks, max_steps=5, log_every=1, schedule="constant")
    assert result.progress.skipped_steps == 1 and result.progress.step == 5
    assert [r["step"] for r in records if "skipped" in r] == [3]
    assert torch.isfinite(weight).all() and weight.item() == pytest.approx(-0.4, rel=1e-3)  # four steps of 0.1


def test_it_gives_up_after_several_bad_steps_in_a_row():
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="3 times in a row"):
        run(weight, lambda b: Loss((weight * math.nan).sum(), torch.tensor(1.0)), max_bad_steps=3)
    assert weight.item() == 0.0


def test_a_batch_with_nothing_to_train_on_changes_nothing():
    weight = nn.Parameter(torch.ones(2, 2))
    result = run(weight, lambda b: Loss((weight * 0).sum(), torch.tensor(0.0)), max_steps=3)
    assert torch.equal(weight, torch.ones(2, 2)) and result.progress.skipped_steps == 0


def test_clipping_shortens_the_gradient_of_the_mean():
    weight, norms = nn.Parameter(torch.zeros(4)), []
    hooks = Hooks(log=lambda r: norms.append(r["gradient_norm"]))
    grads = []

    def loss_fn(batch):
        weight.register_hook(lambda g: grads.append(g)) if batch == 0 else None
        return Loss((weight * 10).sum(), torch.tensor(2.0))

    run(weight, loss_fn, hooks, max_steps=1, log_every=1, clip=1.0)
    assert norms == [pytest.approx(10.0)]  # 10/2 in each of 4 coordinates, before clipping


def climbing(weight):
    """Every step adds 0.1 to the weight, which counts the updates."""
    return lambda batch: Loss(-weight.sum(), torch.tensor(1.0))


def measured_by(losses, weight, seen):
    """A validation that gives these losses one after the other, and notes the weights that have each."""
    losses = iter(losses)

    def validate():
        seen.append((weight.item(), loss := next(losses)))
        return {"val_loss": loss, "val_other": 10 * loss}

    return validate


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}])
def test_early_stopping_keeps_the_best_weights_and_says_what_they_have(settings):
    weight, seen, saved = nn.Parameter(torch.zeros(1)), [], []
    validate = measured_by([5.0, 1.0, 2.0, 3.0, 4.0], weight, seen)
    hooks = Hooks(validate=validate, save_model=lambda: saved.append(weight.item()))
    result = run(
        weight, climbing(weight), hooks, eval_every=2, save_every=3, patience=2, max_steps=100, schedule="constant",
        **settings,
    )  # fmt: skip
    assert result.stopped_early and result.progress.step == 8 and result.weights_of_step == 4
    assert result.metrics == {"val_loss": 1.0, "val_other": 10.0}
    assert (weight.item(), 1.0) == seen[1]
    assert saved[1:] == [seen[1][0]] * 2, "a run that is killed after step 4 leaves the best ones, too"


def test_a_run_that_ends_keeps_the_best_weights_of_its_patience():
    weight, seen = nn.Parameter(torch.zeros(1)), []
    hooks = Hooks(validate=measured_by([2.0, 1.0, math.nan, 3.0], weight, seen))
    result = run(weight, climbing(weight), hooks, eval_every=2, patience=9, max_steps=7, schedule="constant")
    assert not result.stopped_early and result.progress.step == 7
    assert (weight.item(), result.metrics["val_loss"]) == seen[1] and result.weights_of_step == 4


def test_without_patience_the_last_weights_are_left_and_reported():
    weight, seen = nn.Parameter(torch.zeros(1)), []
    hooks = Hooks(validate=measured_by([1.0, 2.0, 3.0], weight, seen))
    result = run(weight, climbing(weight), hooks, eval_every=2, max_steps=5, schedule="constant")
    assert (weight.item(), result.metrics["val_loss"]) == seen[2] and result.weights_of_step == 5


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_early_stopping_is_the_same_after_a_kill(ema):
    """Killed at step 6, after the best validation; then resumed; then resumed once more when there is nothing to do."""

    def trained(losses, stop_at=None, resume_from=None):
        weight, seen, snapshots = nn.Parameter(torch.zeros(1)), [], []

        def save(snapshot):
            # As a file holds it: JSON and copies of the tensors.
            values = json.loads(to_json(snapshot.values))
            snapshots.append(Snapshot({k: v.clone() for k, v in snapshot.tensors.items()}, values))
            if snapshot.values["progress"]["step"] == stop_at:
                raise KeyboardInterrupt

        hooks = Hooks(validate=measured_by(losses, weight, seen), save=save)
        settings: dict[str, Any] = dict(
            eval_every=2, save_every=3, patience=2, max_steps=100, schedule="constant", ema=ema
        )
        try:
            result = run(weight, climbing(weight), hooks, resume_from=resume_from, **settings)
        except KeyboardInterrupt:
            return FitResult(Progress()), weight.item(), snapshots[-1]
        return result, weight.item(), snapshots[-1]

    undisturbed, weight, _ = trained([5.0, 1.0, 2.0, 3.0])
    _, _, snapshot = trained([5.0, 1.0, 2.0], stop_at=6)
    for losses in ([3.0], []):
        resumed, again, snapshot = trained(losses, resume_from=snapshot)
        assert again == weight and resumed.metrics == undisturbed.metrics == {"val_loss": 1.0, "val_other": 10.0}
        assert resumed.progress.step == 8 and resumed.weights_of_step == 4 and resumed.stopped_early


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"eval_every": 0}, "--patience 3 counts validations.*set --eval-every"), ({"eval_every": 2}, "hold some data")],
)
def test_patience_without_validations_is_refused(settings, complaint):
    weight = nn.Parameter(torch.zeros(1))
    hooks = Hooks(validate=lambda: {"val_loss": 1.0}) if not settings["eval_every"] else Hooks()
    with pytest.raises(UserError, match=complaint):
        run(weight, climbing(weight), hooks, patience=3, **settings)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("limit", ["steps", "time"])
def test_the_learning_rate_does_not_jump_where_the_warmup_ends(schedule, limit, monkeypatch):
    """20 of 40 updates of warm-up; by time, half of its time."""
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)) if limit == "time" else 0.0)
    weight, rates = nn.Parameter(torch.zeros(1)), []
    by_time = {"max_steps": 0, "max_minutes": 2}  # an update looks at the clock thrice
    limits: dict[str, Any] = by_time if limit == "time" else {"max_steps": 40}
    hooks = Hooks(log=lambda r: rates.append(r["learning_rate"]))
    run(weight, climbing(weight), hooks, warmup_steps=20, log_every=1, learning_rate=1.0, cooldown=0.9,
        schedule=schedule, **limits)  # fmt: skip
    assert rates[:20] == [pytest.approx((i + 1) / 20) for i in range(20)]
    assert rates[20] == 1.0 and 30 <= len(rates) <= 60
    assert all(0 <= a - b < 0.12 for a, b in itertools.pairwise(rates[19:]))
    assert rates[-1] < 0.15


def test_average_is_what_is_validated_saved_and_left():
    weight = nn.Parameter(torch.zeros(1))
    saved = []
    hooks = Hooks(validate=lambda: {"val_loss": weight.item()}, save_model=lambda: saved.append(weight.item()))
    result = run(
        weight, lambda b: Loss(-weight.sum(), torch.tensor(1.0)), hooks, ema=0.9, max_steps=10, schedule="constant"
    )
    assert weight.item() == saved[-1] == result.metrics["val_loss"]
    assert 0 < weight.item() < 1.0 - 1e-3  # ten steps of 0.1 led to 1.0; their average lags behind


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"optimizer": "muon"}, {"micro_batches": 3}])
def test_resuming_is_bit_identical(settings):
    def loss_on(weight):
        def loss_fn(batch):
            noise = torch.randn(4, 4)  # stands for dropout: the random state must come back too
            return Loss(((weight @ noise - batch) ** 2).sum(), torch.tensor(16.0))

        return loss_fn

    def trained(stop_at):
        torch.manual_seed(0)
        weight, snapshots = nn.Parameter(torch.randn(4, 4)), []
        hooks = Hooks(save=lambda s: snapshots.append(Snapshot({k: v.clone() for k, v in s.tensors.items()}, s.values)))
        run(weight, loss_on(weight), hooks, max_steps=9, save_every=4, **settings)
        if stop_at is None:
            return weight
        torch.manual_seed(99)
        again = nn.Parameter(torch.randn(4, 4))
        run(again, loss_on(again), max_steps=9, save_every=4, resume_from=snapshots[stop_at], **settings)
        return again

    undisturbed = trained(None)
    assert torch.equal(undisturbed, trained(0)) and torch.equal(undisturbed, trained(1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_interrupts(number):
    weight, saved = nn.Parameter(torch.zeros(1)), []

    def loss_fn(batch):
        if batch == 4:
            os.kill(os.getpid(), number)
        return Loss(weight.sum(), torch.tensor(1.0))

    with pytest.raises(KeyboardInterrupt):
        run(weight, loss_fn, Hooks(save=lambda s: saved.append(s.values["progress"]["step"])))
    assert saved == [5]


def test_bfloat16_master_run_follows_the_float32_one():
    target = torch.randn(4, 4)

    def final(dtype):
        weight = nn.Parameter(torch.zeros(4, 4, dtype=dtype))
        precision = Precision(dtype, None, False)
        run(
            weight,
            lambda b: Loss(((weight.float() - target) ** 2).sum(), torch.tensor(1.0)),
            precision=precision,
            max_steps=60,
        )
        return weight.detach().float()

    torch.testing.assert_close(final(torch.bfloat16), final(torch.float32), rtol=0.05, atol=0.02)


def test_float16_overflow_halves_the_scale_and_is_not_a_bad_step():
    weight = nn.Parameter(torch.zeros(1))

    def loss_fn(batch):
        # At the first scale of 4096 this gradient overflows float16, as a large loss on a GPU would.
        return Loss((weight.half() * 30.0).sum().float() - weight.sum() * 0, torch.tensor(1.0))

    result = run(weight, loss_fn, precision=Precision(torch.float32, None, True), max_steps=12)
    assert result.progress.skipped_steps >= 1 and result.progress.bad_steps == 0
    assert result.progress.loss_scale < 2**12 and weight.item() < 0


def test_fit_never_reads_ahead():
    """A stream may depend on the weights of the moment: when batch i is made, exactly i updates have happened."""
    weight, seen = nn.Parameter(torch.zeros(1)), []

    def make(index):
        seen.append(round(-weight.item() / 0.1))
        return index

    run(
        weight, lambda b: Loss(weight.sum(), torch.tensor(1.0)), batches=Counted(make), max_steps=5, schedule="constant"
    )
    assert seen == [0, 1, 2, 3, 4]
