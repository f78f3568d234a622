"""What common mistakes in tuning a language model cost: `python -m benchmarks.mistakes --base RUN`.

Each mistake of `planted.py` is put into the real stage from outside, on the instruction world, and compared with the
same stage without it: same seed, same data, same number of updates. Instruction tuning starts from --base and is scored
by the exact match of greedy answers. Reward models, DPO, PPO and GRPO start from a model that is tuned on flawed
demonstrations, as in `rlhf`, and are scored by the true reward of sampled answers, a reward model by that of the best
of --best-of which it chooses. Runs are short: the figures
say what a mistake costs early in tuning, and not where a model ends. A cost is the difference within a seed, with its
95% interval over the seeds by Student's t.

Whatever is measured is saved at once, and what the file holds already is not measured again: the whole can be had in
pieces, by --only, or by interrupting it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, publish, results_file
from benchmarks.planted import LAYOUTS, MISTAKES, Layout, Mistake, Road
from instructgpt import world
from instructgpt.data.packing import batches_of
from instructgpt.data.queries import Query
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError, suggestion
from instructgpt.evaluation.instructions import evaluate_examples
from instructgpt.evaluation.loss import evaluate_loss
from instructgpt.evaluation.scores import seed_interval
from instructgpt.figures import tidy, write_json
from instructgpt.flags import parse, run_main
from instructgpt.runtime import resolve_device
from instructgpt.settings import FilePath, Positive, PositiveInt, Settings
from instructgpt.stages import dpo, grpo, ppo, reward, sft
from instructgpt.stages.presets import recipe
from instructgpt.text.chat import render_conversation, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load, load_reward_model
from instructgpt.training.rollouts import Answered, sample_answers


@dataclass(frozen=True)
class MistakesConfig(Settings):
    """Measures what mistakes cost."""

    base: FilePath = "runs/tiny/pretrain"
    """The base model, of `make train`, that instruction tuning starts from."""
    sft: FilePath = ""
    """The tuned model that reward models and policies start from; without it, one is made from --base."""
    out: FilePath = "runs/mistakes"
    """Where runs go; each replaces the one before."""
    preset: str = "tiny"
    """The recipe whose settings the stages have."""
    only: tuple[str, ...] = ()
    """Mistakes to measure, by name or by road (sft, use, reward, dpo, ppo, grpo); all by default."""
    seeds: PositiveInt = 3
    """Runs of each."""
    scale: Positive = 1.0
    """Multiplies the numbers of updates."""
    n: PositiveInt = 24
    """Prompts of each family of the world that a model is scored on."""
    best_of: PositiveInt = 8
    """Answers to each prompt that a reward model chooses from."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: FilePath = "auto"
    """The file to write, and to go on with; auto is benchmarks/results/DEVICE-mistakes.json, empty is none."""


_UPDATES: dict[Road, int] = {"sft": 240, "reward": 120, "dpo": 120, "ppo": 48, "grpo": 64}
"""Of each run, before --scale."""
_FLAWED_UPDATES, _FLAWED_SHARE = 800, 0.45
"""Of the tuning that policies start from."""
_STAGES: dict[Road, Any] = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo, "grpo": grpo}
_ROW_LENGTH = 128
"""Of comparisons and rollouts, as in `rlhf`."""
_SEED_OF_ANSWERS = 1 << 30


# ---- runs


@dataclass(frozen=True)
class Run:
    """A stage to run and to score: with a mistake, or the right version in one of the layouts."""

    name: str
    layout: Layout
    seed: int
    mistake: Mistake | None
    stage: Road

    def directory(self, config: MistakesConfig) -> Path:
        """Right versions are kept, for mistakes of use are made with them."""
        kept = f"-right-{self.seed}" if self.name == "right" or self.is_use else ""
        return Path(config.out) / f"{self.stage}{kept}"

    @property
    def is_use(self) -> bool:
        return self.mistake is not None and self.mistake.road == "use"


def stage_of(mistake: Mistake) -> Road:
    return "sft" if mistake.road == "use" else mistake.road


def stage_config(run: Run, config: MistakesConfig) -> Any:
    """The stage's settings: the recipe's, fewer updates, and what layout and mistake change."""
    settings = getattr(recipe(config.preset), run.stage)
    changed = dict(run.layout.settings)
    updates = max(1, round(_UPDATES[run.stage] * config.scale))
    fit = {"max_steps": updates, "eval_every": 0, "save_every": 0, "log_every": 1000, **changed.pop("fit", {})}
    for name, factor in run.mistake.rates.items() if run.mistake else ():
        usual = getattr(settings.fit, name)
        fit[name] = type(usual)(usual * factor)
    if run.stage != "sft":
        changed["row_length"] = _ROW_LENGTH
    if run.stage in ("ppo", "grpo"):
        changed["reward"] = ("world",)
    return replace(
        settings, data=("world",), init=config.base if run.stage == "sft" else config.sft, seed=run.seed,
        device=config.device, out=str(run.directory(config)), overwrite=True, compile="off", expected_minutes=0.0,
        fit=replace(settings.fit, **fit), **changed,
    )  # fmt: skip


def train(run: Run, config: MistakesConfig) -> None:
    """Runs the stage, its mistake planted; what it prints is kept in a file."""
    log = Path(config.out) / f"{run.stage}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), ExitStack() as planted:
        planted.enter_context(run.layout.plant())
        if run.mistake is not None and not run.is_use:
            planted.enter_context(run.mistake.plant())
        _STAGES[run.stage].run(stage_config(run, config))


def start(config: MistakesConfig) -> str:
    """The run that reward models and policies start from, tuned unless it is there."""
    out = Path(config.out) / "start"
    if not (out / "eval.json").is_file():
        settings = recipe(config.preset).flawed_sft
        updates = max(1, round(_FLAWED_UPDATES * config.scale))
        fit = replace(settings.fit, max_steps=updates, eval_every=0, save_every=0, log_every=1000)
        sft.run(replace(
            settings, data=("world",), flawed_share=_FLAWED_SHARE, init=config.base, device=config.device,
            out=str(out), overwrite=True, compile="off", expected_minutes=0.0, fit=fit,
        ))  # fmt: skip
    return str(out)


# ---- scores


class Judge:
    """Scores runs on the same prompts."""

    def __init__(self, config: MistakesConfig):
        self._config, self._device = config, resolve_device(config.device)
        self._examples = world.sample("test", config.n * len(world.FAMILIES), seed=0)
        self._pool: list[Answered] = []

    def exact_match(self, directory: Path, mistake: Mistake | None = None) -> float:
        """Greedy answers, the mean over families; a mistake of use is one of this."""
        model, tokenizer = load(directory, self._device)
        if mistake is not None and mistake.teacher_forced:
            conversations = [Tokens.of(render_conversation(each.conversation, tokenizer)) for each in self._examples]  # type: ignore[arg-type]
            return evaluate_loss(model, tokenizer, batches_of(conversations, model.config.context, 16)).token_accuracy
        with mistake.plant() if mistake is not None else ExitStack():
            return evaluate_examples(model, tokenizer, self._examples).macro_average

    def true_reward(self, directory: Path) -> float:
        """Of two answers to each prompt, sampled at temperature 1."""
        return _mean_truth(self._sampled(directory, 2))

    def best_chosen(self, directory: Path, mistake: Mistake | None = None) -> float:
        """True reward of the best of several answers of --sft, as the reward model in `directory` sees them."""
        group = self._config.best_of
        self._pool = self._pool or self._sampled(self._config.sft, group)
        with mistake.plant() if mistake is not None else ExitStack():
            model, _ = load_reward_model(directory, self._device)
            scores = model.score([[*query.ids, *answer.ids] for query, answer in self._pool]).view(-1, group)
        return _mean_truth([self._pool[i * group + int(best)] for i, best in enumerate(scores.argmax(1))])

    def _sampled(self, directory: str | Path, n: int) -> list[Answered]:
        model, tokenizer = load(directory, self._device)
        queries = [_query(example, tokenizer) for example in self._examples]
        with torch.inference_mode():
            return sample_answers(model, tokenizer, queries, n, 32, _SEED_OF_ANSWERS)


def _query(example: world.Example, tokenizer: Tokenizer) -> Query:
    messages: Any = example.messages
    return Query(messages, render_prompt(messages, tokenizer), example.answer, example.check)


def _mean_truth(answered: Sequence[Answered]) -> float:
    return sum(query.check(answer.text) for query, answer in answered if query.check) / len(answered)


# ---- the measurement


def chosen(only: Sequence[str]) -> dict[str, Mistake]:
    """The mistakes of these names or roads. Raises UserError for one that there is not."""
    roads = {mistake.road for mistake in MISTAKES.values()}
    for name in only:
        if name not in MISTAKES and name not in roads:
            raise UserError(f"--only {name!r} is no mistake{suggestion(name, [*roads, *MISTAKES])}")
    return {name: each for name, each in MISTAKES.items() if not only or name in only or each.road in only}


def runs(mistakes: dict[str, Mistake], seeds: int) -> Iterator[Run]:
    """What is to be run: for each seed and stage the right versions first, then what is compared with them."""
    for seed in range(seeds):
        for stage in _UPDATES:
            here = {name: each for name, each in mistakes.items() if stage_of(each) == stage}
            for layout in dict.fromkeys(each.layout for each in here.values()):
                yield Run(layout, LAYOUTS[layout], seed, None, stage)
            for name, each in here.items():
                yield Run(name, LAYOUTS[each.layout], seed, each, stage)


def score(run: Run, config: MistakesConfig, judge: Judge) -> float:
    """What came of a run; 0 of one whose loss was no number."""
    directory = run.directory(config)
    if not (run.is_use and (directory / "eval.json").is_file()):
        try:
            train(run, config)
        except UserError as error:
            print(f"{run.name}, seed {run.seed}: {error}", flush=True)
            return 0.0
    if run.stage == "sft":
        return judge.exact_match(directory, run.mistake if run.is_use else None)
    return judge.best_chosen(directory, run.mistake) if run.stage == "reward" else judge.true_reward(directory)


Scores = dict[str, dict[str, list[float]]]
"""By stage, then by mistake or layout: one a seed."""


def table(found: Scores, mistakes: dict[str, Mistake]) -> list[dict[str, Any]]:
    """A row for each mistake that is measured: its score, the right one's, and the cost with its interval."""
    rows: list[dict[str, Any]] = []
    for name, mistake in mistakes.items():
        scores = found.get(stage_of(mistake), {})
        pairs = list(zip(scores.get(mistake.layout, []), scores.get(name, [])))
        if not pairs:
            continue
        costs = [right - wrong for right, wrong in pairs]
        interval = seed_interval(costs)
        right, wrong = (sum(each) / len(pairs) for each in zip(*pairs))
        rows.append({
            "mistake": name, "road": mistake.road, "right": right, "with_mistake": wrong, "cost": right - wrong,
            "interval": [interval.low, interval.high] if interval else None, "seeds": len(pairs),
        })  # fmt: skip
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'road':<7} {'right':>6} {'wrong':>6} {'cost':>7} {'95% interval':>18}  mistake")
    for row in rows:
        interval = "[{:+.3f}, {:+.3f}]".format(*row["interval"]) if row["interval"] else ""
        figures = f"{row['right']:>6.3f} {row['with_mistake']:>6.3f} {row['cost']:>+7.3f} {interval:>18}"
        print(f"{row['road']:<7} {figures}  {row['mistake']}")


def measure(config: MistakesConfig) -> int:
    device = resolve_device(config.device)
    config = replace(config, device=str(device))
    file, mistakes = results_file(config.json, device, "mistakes"), chosen(config.only)
    settings = {name: getattr(config, name) for name in ("preset", "scale", "n", "best_of")} | {"updates": _UPDATES}
    document: dict[str, Any] = json.loads(Path(file).read_text()) if file and Path(file).is_file() else {}
    if document.get("settings") != settings:
        document = {"settings": settings, "scores": {}, "minutes": 0.0}
    found: Scores = document["scores"]
    if not config.sft and any(stage_of(each) != "sft" for each in mistakes.values()):
        config = replace(config, sft=start(config))
    judge = Judge(config)
    for run in runs(mistakes, config.seeds):
        scores = found.setdefault(run.stage, {}).setdefault(run.name, [])
        if len(scores) > run.seed:
            continue
        began = time.monotonic()
        scores.append(round(score(run, config, judge), 6))
        seconds = time.monotonic() - began
        print(f"{run.stage:<7} {scores[-1]:.3f} {seconds:>5.0f} s  {run.name}, seed {run.seed}", flush=True)
        document["minutes"] += seconds / 60
        document |= {**describe(device), "mistakes": tidy(table(found, MISTAKES))}
        if file:
            write_json(file, document)
    show(table(found, mistakes))
    publish(document, file)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(MistakesConfig, sys.argv[1:], "benchmarks.mistakes"))))
