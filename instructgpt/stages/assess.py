"""Run directories to the ledger: every model is loaded and measured anew, in the same way whatever stage made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from instructgpt import world
from instructgpt.data.packing import batches_of
from instructgpt.data.sources import WorldText
from instructgpt.errors import UserError
from instructgpt.evaluation.assessment import assess
from instructgpt.evaluation.ledger import Entry, Ledger, Row
from instructgpt.evaluation.loss import evaluate_loss
from instructgpt.figures import write_json
from instructgpt.pretrained import peft
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, PositiveInt, Settings
from instructgpt.text.chat import render_conversation
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, load, load_reward_model

# Settings in which the seeds of one stage differ.
_OF_A_SEED = ("seed", "out", "init", "reward", "resume", "overwrite")
_HELD_OUT_SEED = 1_000_003
_REQUESTS = 60
_TEXTS = 100


@dataclass(frozen=True)
class LedgerConfig(Settings):
    """What stages really did: true reward, reward model, KL to the SFT model, length, refusals, cost; a row a stage."""

    runs: tuple[FilePath, ...] = ()
    """Run directories, such as runs/rlhf/*/; those of one stage that differ only in their seed are one row. The `sft`
    run among them is what KL is measured to; a `reward` run scores the policies of its seed, or all if it is alone."""
    adapter: tuple[FilePath, ...] = ()
    """Run directories with adapters, or folders as PEFT writes them, to be measured beside the first policy of --runs.
    A run that was tuned with --lora-rank finds its base by itself: it belongs in --runs."""
    split: Literal["val", "test", "test_phrasing"] = "test"
    """Which split of the world the prompts are from."""
    n: PositiveInt = 12
    """Prompts of each family of the world."""
    json: FilePath = ""
    """A file to write all figures to."""
    plot: FilePath = ""
    """A file to draw them into (.png)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    backend: str = "auto"
    """naive, sdpa, triton or auto."""


@dataclass(frozen=True)
class Described:
    """A run directory by its config.json."""

    path: str
    stage: str
    seed: int
    settings: str
    """What the seeds of one row have in common, as one text."""
    title: str
    """The stage, with what rewards it where that is the world's own check."""

    @classmethod
    def of(cls, path: str | Path) -> Described:
        config = RunDirectory(path).read_config()
        settings: dict[str, Any] = config.get("settings") or {}
        common = {name: value for name, value in settings.items() if name not in _OF_A_SEED}
        rewards = ["world" if source == "world" else "model" for source in settings.get("reward") or ()]
        title = f"{config['stage']} ({' + '.join(rewards)})" if "world" in rewards else config["stage"]
        return cls(str(path), config["stage"], settings.get("seed", 0), json.dumps(common, sort_keys=True), title)

    @classmethod
    def of_adapter(cls, path: str | Path) -> Described:
        """Of a folder that need be no run."""
        if (Path(path) / peft.CONFIG).is_file():
            return cls(str(path), "adapter", 0, str(path), f"adapter ({Path(path).name})")
        return cls.of(path)


@dataclass(frozen=True)
class Task:
    """A policy to measure, and what with."""

    policy: Described
    sft: str
    """The run directory that KL is measured to; empty for none."""
    reward: str
    """The run directory of the reward model; empty for none."""
    base: str = ""
    """The run directory of the model that it is an adapter beside; empty where it is a run that finds its own."""


def tasks(runs: Iterable[str | Path], adapters: Iterable[str | Path] = ()) -> list[Task]:
    """Which of the run directories are to be measured, and with which others. Raises UserError when none is.

    adapters: what is measured beside the first policy.
    """
    described = [Described.of(run) for run in runs]
    rewards = {run.seed: run.path for run in described if run.stage == "reward"}
    sft = next((run.path for run in described if run.stage == "sft"), "")
    policies = [run for run in described if run.stage not in ("reward", "tokenizer")]
    if not policies:
        raise UserError("the ledger needs a run with a policy: --runs DIR..., such as sft, dpo, ppo and grpo runs")
    any_reward = next(iter(rewards.values()), "")

    def task(run: Described, base: str = "") -> Task:
        return Task(run, "" if run.stage == "pretrain" else sft, rewards.get(run.seed, any_reward), base)

    beside = [Described.of_adapter(adapter) for adapter in adapters]
    return [*map(task, policies), *(task(adapter, policies[0].path) for adapter in beside)]


def measure(task: Task, config: LedgerConfig) -> Entry:
    """Loads a policy and what it is measured with, and measures it."""
    device = resolve_device(config.device)
    precision = resolve_precision(config.dtype, device)
    run = RunDirectory(task.policy.path)
    model, tokenizer = load(
        task.base or run.path, device, config.backend, adapter=task.policy.path if task.base else ""
    )
    reference = reward_model = None
    if task.sft:
        reference, _ = _same_tokenizer(load(task.sft, device, config.backend), tokenizer, task.sft)
    if task.reward:
        reward_model, _ = _same_tokenizer(
            load_reward_model(task.reward, device, config.backend), tokenizer, task.reward
        )
    examples = fitting(
        world.sample(config.split, config.n * len(world.FAMILIES), seed=0), tokenizer, model.config.context
    )
    requests = world.sample(config.split, _REQUESTS, seed=0, families=("refusal",))
    text = WorldText(tokenizer, _HELD_OUT_SEED)
    with precision.context(device):
        assessment = assess(model, tokenizer, examples, requests, reference, reward_model, task.policy.seed)
        loss = evaluate_loss(model, tokenizer, batches_of((text[i] for i in range(_TEXTS)), model.config.context, 8))
    trained = run.read_eval() if run.config_file.is_file() else {}
    return Entry(
        task.policy.path, task.policy.seed, trained.get("minutes", 0.0), trained.get("peak_memory", 0), assessment,
        loss.bits_per_byte,
    )  # fmt: skip


def fitting(examples: list[world.Example], tokenizer: Tokenizer, context: int) -> list[world.Example]:
    """Those whose prompt and right answer fit in the context; all of them, but for a very short one."""
    conversations: list[Any] = [example.conversation for example in examples]
    kept = [
        example
        for example, conversation in zip(examples, conversations)
        if len(render_conversation(conversation, tokenizer).ids) <= context
    ]
    if not kept:
        raise UserError(f"no prompt of the world fits in a context of {context} tokens")
    return kept


def _same_tokenizer(loaded: tuple[Any, Tokenizer], tokenizer: Tokenizer, where: str) -> tuple[Any, Any]:
    if loaded[1] != tokenizer:
        raise UserError("has another tokenizer than the policies: its figures would mean nothing for them", where)
    return loaded


def ledger_of(measured: Iterable[tuple[Task, Entry]], runs: Iterable[str | Path]) -> Ledger:
    """Entries as rows, the runs of one stage and settings together, in the order of their first."""
    rows: dict[tuple[str, str], list[Entry]] = {}
    for task, entry in measured:
        rows.setdefault((task.policy.title, task.policy.settings), []).append(entry)
    stages = [stage for stage, _ in rows]
    named = [
        Row(stage if stages.count(stage) == 1 else f"{stage} ({Path(entries[0].run).name})", entries)
        for (stage, _), entries in rows.items()
    ]
    notes = [
        f"{path}: {pairs['accuracy']:.3f} of {pairs['n']} held-out pairs right, calibration error "
        f"{pairs['calibration_error']:.3f}"
        for path in runs
        if Described.of(path).stage == "reward" and (pairs := RunDirectory(path).read_eval().get("pairs"))
    ]
    return Ledger(named, len(named[0].entries[0].assessment.true_rewards), notes)


def run(config: LedgerConfig, measure_all: Callable[[list[Task]], list[Entry]] | None = None) -> Ledger:
    """Measures --runs, prints the ledger, and writes it where asked. `measure_all` may do it in several processes."""
    measurements = tasks(config.runs, config.adapter)
    entries = measure_all(measurements) if measure_all else [measure(task, config) for task in measurements]
    ledger = ledger_of(zip(measurements, entries), config.runs)
    table = ledger.table()
    # As wide as it is, for a row that is folded is not read; a log file has no width of its own.
    Console(width=max(Console().width, Console(width=1000).measure(table).maximum)).print(table)
    if config.json:
        write_json(config.json, ledger.to_json())
    if config.plot:
        ledger.plot(Path(config.plot))
    return ledger
