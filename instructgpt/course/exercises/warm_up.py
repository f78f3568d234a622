"""Learning rate schedules."""

from __future__ import annotations

from typing import Any

from instructgpt.course.exercise import Check, Exercise, Mistake


def _at(step: int, progress: float, schedule: str = "cosine", cooldown: float = 0.25, **more: float) -> dict[str, Any]:
    """Four steps of warm-up, which end at a fifth of the run; the rate ends at a tenth."""
    return {"schedule": schedule, "step": step, "progress": progress, "warmup_steps": 4, "warmed_up": 0.2, "final": 0.1,
            "cooldown": cooldown, **more}  # fmt: skip


EXERCISE = Exercise(
    place=330,
    title="Warm-up and decay",
    about="The learning rate rises over the first steps, while Adam's means are made of few gradients, and "
    "falls later. "
    "Two numbers say where a run stands: the step, and the share of the run that is over.",
    target="instructgpt.training.schedule.learning_rate_factor",
    checks=(
        Check("the first of four steps of warm-up", _at(0, 0.0), 0.25),
        Check("the last step of the warm-up", _at(3, 0.15), 1.0),
        Check("where the warm-up ends, cosine", _at(4, 0.2), 1.0),
        Check("cosine, half way down", _at(10, 0.6), 0.55),
        Check("cosine, a quarter of the way down", _at(8, 0.4), 0.1 + 0.9 * 0.5 * (1 + 0.5**0.5)),
        Check("cosine, the end", _at(20, 1.0), 0.1),
        Check("cosine, past the end", _at(21, 1.2), 0.1),
        Check("linear, half way down", _at(10, 0.6, "linear"), 0.55),
        Check("linear, the end", _at(20, 1.0, "linear"), 0.1),
        Check("constant", _at(19, 0.9, "constant"), 1.0),
        Check("wsd stays at 1 until the last quarter", _at(14, 0.7, "wsd"), 1.0),
        Check("wsd, half of the last quarter", _at(18, 0.875, "wsd"), 0.55),
        Check("wsd, where the warm-up ends inside of the cool-down", _at(10, 0.6, "wsd", 0.9), 0.55),
        Check("no warm-up: the first step", _at(0, 0.0, warmup_steps=0, warmed_up=0.0), 1.0),
        Check("a run measured in time, whose warm-up has ended early", _at(5, 0.1), 1.0),
        Check("a run measured in time, whose warm-up has ended early, linear", _at(5, 0.1, "linear"), 1.0),
        Check("linear, past the end", _at(21, 1.2, "linear"), 0.1),
        Check("wsd, past the end", _at(21, 1.2, "wsd"), 0.1),
        Check("constant, past the end", _at(21, 1.2, "constant"), 1.0),
        Check("linear, down to a half, and half way there", _at(10, 0.6, "linear", final=0.5), 0.75),
        Check("cosine, down to a half, and half way there", _at(10, 0.6, final=0.5), 0.75),
        Check(
            "the second of two steps of warm-up that last half of the run",
            _at(1, 0.25, warmup_steps=2, warmed_up=0.5),
            1.0,
        ),
        Check(
            "cosine behind a warm-up of half of the run, half way down",
            _at(3, 0.75, warmup_steps=2, warmed_up=0.5),
            0.55,
        ),
        Check("linear, a quarter of the way down", _at(8, 0.4, "linear"), 0.775),
        Check("wsd, a fifth of the last quarter", _at(16, 0.8, "wsd"), 0.82),
        Check("constant, in its warm-up", _at(1, 0.05, "constant"), 0.5),
        Check("wsd, in its warm-up", _at(1, 0.05, "wsd"), 0.5),
    ),
    mistakes=(
        Mistake(
            "the first update has the rate 0 and is lost: it is step + 1",
            "(step + 1) / warmup_steps",
            "step / warmup_steps",
        ),
        Mistake(
            "the warm-up is one step too long",
            "step < warmup_steps:",
            "step <= warmup_steps:",
            (("(step + 1) / warmup_steps", "(step + 1) / (warmup_steps + 1)"),),
        ),
        Mistake(
            "the decay begins at the start of the run, so the rate jumps where the warm-up ends",
            "max(progress - begin, 0.0) / max(1 - begin, 1e-9)",
            "max(progress, 0.0)",
        ),
        Mistake(
            "the cosine goes through a quarter of its period, not half", "math.pi * fallen", "math.pi / 2 * fallen"
        ),
        Mistake(
            "the rate falls to 0, not to `final`",
            "final + (1 - final) * 0.5",
            "0.5",
            (("1 - (1 - final) * fallen", "1 - fallen"),),
        ),
        Mistake(
            "past the end the rate goes on: the share of the way down is not cut off at 1",
            "min(max(progress - begin, 0.0) / max(1 - begin, 1e-9), 1.0)",
            "max(progress - begin, 0.0) / max(1 - begin, 1e-9)",
        ),
        Mistake(
            "the share of the way down is not cut off at 0: where a run is measured in time the warm-up may end early",
            "max(progress - begin, 0.0)",
            "(progress - begin)",
        ),
        Mistake(
            "without a warm-up this divides by 0",
            "if step < warmup_steps:",
            "if (step + 1) / warmup_steps < 1 or step < warmup_steps:",
        ),
        Mistake(
            "the rate stops falling at `final`, and reaches it too early: it is to reach it at the end of the run",
            "final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fallen))",
            "max(final, 0.5 * (1 + math.cos(math.pi * fallen)))",
            (("1 - (1 - final) * fallen", "max(final, 1 - fallen)"),),
        ),
        Mistake(
            "the warm-up begins at `final`: it begins at 0",
            "return (step + 1) / warmup_steps",
            "return final + (1 - final) * (step + 1) / warmup_steps",
        ),
        Mistake(
            "the rate falls in the warm-up already: the two are multiplied",
            "return (step + 1) / warmup_steps",
            "return (step + 1) / warmup_steps * (1 - (1 - final) * progress)",
        ),
        Mistake("wsd is not warmed up", "if step < warmup_steps:", 'if step < warmup_steps and schedule != "wsd":'),
        Mistake(
            "constant is not warmed up", "if step < warmup_steps:", 'if step < warmup_steps and schedule != "constant":'
        ),
        Mistake("linear falls by a cosine", 'if schedule == "cosine":', 'if schedule in ("cosine", "linear"):'),
        Mistake("wsd falls by a cosine: it is linear", 'if schedule == "cosine":', 'if schedule in ("cosine", "wsd"):'),
        Mistake(
            "the way down is taken to be as long as the run, not as what is left behind the warm-up",
            "max(1 - begin, 1e-9)",
            "1.0",
        ),
        Mistake("wsd begins to fall at `cooldown`: that is how long it falls", "1 - cooldown)", "cooldown)"),
        Mistake(
            "the cool-down is a share of what is left behind the warm-up: it is one of the run",
            "1 - cooldown)",
            "1 - cooldown * (1 - warmed_up))",
        ),
        Mistake(
            "wsd falls from the end of the warm-up on, as linear does",
            'max(warmed_up, 1 - cooldown) if schedule == "wsd" else warmed_up',
            "warmed_up",
        ),
        Mistake(
            "wsd begins to fall in the warm-up where the cool-down is long, and jumps",
            "max(warmed_up, 1 - cooldown)",
            "1 - cooldown",
        ),
        Mistake("constant falls, as linear does", 'if schedule == "constant":', 'if schedule == "fixed":'),
    ),
    hints=(
        "Steps count from 0, and the last step of the warm-up has the whole rate: what is the first one's share?",
        "After the warm-up find how much of the way down is over, from 0 to 1: from `warmed_up` to 1, or for wsd from "
        "1 - cooldown, but not before the warm-up has ended.",
        "Cosine: final + (1 - final) · (1 + cos πx)/2. Linear and wsd: 1 - (1 - final)·x. Cut x off at 0 and at 1.",
    ),
)
