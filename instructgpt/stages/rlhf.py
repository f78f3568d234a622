"""InstructGPT's road (Ouyang et al. 2022, figure 2) and what came after it, from one base model to one ledger.

    base ── SFT on demonstrations, a share of them flawed ──┬── reward model ── PPO
                                                            ├── DPO
                                                            └── GRPO, rewarded by the world's own check

Real demonstrations are not all good, and imitation cannot tell: a model tuned on them is as often wrong, badly
formatted or rambling as they are. Comparisons can. Reward model, DPO, PPO and GRPO run once a seed, all from the same
SFT model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from instructgpt import world
from instructgpt.errors import UserError
from instructgpt.evaluation.ledger import Entry
from instructgpt.figures import write_json
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.runtime import cores
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, Settings, Share
from instructgpt.stages import assess, dpo, grpo, overoptimisation, ppo, pretrain, reward, sft, tokenizer
from instructgpt.stages.assess import LedgerConfig, Task, measure
from instructgpt.stages.common import require
from instructgpt.stages.overoptimisation import OverOptimisation
from instructgpt.stages.presets import recipe
from instructgpt.stages.processes import Job, run_jobs
from instructgpt.training.checkpoint import RunDirectory
from instructgpt.training.moments import StateFormat

# In the order in which they are begun: what others wait for first, what is short last. DPO waits for SFT alone.
_STAGES: dict[str, Callable[[Any], Any]] = {"reward": reward.run, "ppo": ppo.run, "grpo": grpo.run, "dpo": dpo.run}
RewardSource = Literal["model", "world", "both"]
_SHARE_OF_MODEL = 0.2
"""Weight of the reward model beside the world's check: its scores spread over about five, the check over one."""
_ROW_LENGTH = 128
"""Every prompt of the world fits with any answer, and attention costs less than in the model's whole context."""
_POLICIES = ("dpo", "ppo", "grpo")


@dataclass(frozen=True)
class RLHFConfig(Settings):
    """SFT on demonstrations with faults, then a reward model, DPO, PPO and GRPO for each seed, and the ledger."""

    out: FilePath = ""
    """The directory to write: sft/, then reward-0/, dpo-0/, ppo-0/, grpo-0/ for seed 0, and so on, and the ledger."""
    preset: str = "auto"
    """Size of model and length of training; auto is `small` on a GPU and `tiny` without."""
    base: FilePath = ""
    """A pretrain run to start from; without it, --out/pretrain, which is trained first where there is none."""
    base_steps: PositiveInt = 830
    """Updates for training a base model where there is none; as many as the preset makes, at most."""
    seeds: PositiveInt = 3
    """Runs of each stage after SFT."""
    flawed_share: Share = 0.45
    """Share of the demonstrations that are wrong, badly formatted or rambling."""
    ppo_reward: RewardSource = "model"
    """What PPO is rewarded by: the reward model, as InstructGPT; the world's own check; or both in a sum."""
    grpo_reward: RewardSource = "world"
    """The same for GRPO, by default the check: what a program can verify needs no reward model (DeepSeek-AI 2025)."""
    n: PositiveInt = 12
    """Prompts of each family of the world in the ledger; no more of all families in the curve of the best of n."""
    workers: NonNegativeInt = 0
    """Stages run at once, each in a process of its own; 0 is one a core on a CPU (at most 8), one on a GPU."""
    max_steps: NonNegativeInt = 0
    """Most updates of each stage; 0 leaves the preset's number."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16, bfloat16-master or auto."""
    backend: str = "auto"
    """naive, sdpa, triton or auto."""
    checkpointing: Checkpointing = "none"
    """none, blocks or selective: what a backward computes again, for memory, as in each stage."""
    optimizer_state: StateFormat = "float32"
    """float32, bfloat16 or int8: how optimizers keep their moments."""
    compile: Literal["auto", "off", "blocks"] = "auto"
    """auto, off or blocks: how training steps are compiled, as in each stage."""
    resume: bool = False
    """Go on where an interrupted run stopped; finished stages are not run again."""
    overwrite: bool = False
    """Replace what is in --out."""


def run(config: RLHFConfig) -> None:
    """Runs the stages that are not done yet, measures all models and prints the ledger."""
    require(config.out, "--out", "name the directory to write")
    out = Path(config.out)
    marker = out / "rlhf.json"
    if marker.exists() and not (config.resume or config.overwrite):
        raise UserError("holds a run already; go on with --resume, replace it with --overwrite", out)
    base = Path(config.base) if config.base else out / "pretrain"
    context = recipe(config.preset).pretrain.model.context
    if config.base:
        RunDirectory(base).read_eval()  # a base model that is not there, or not done, is told before hours of work
        context = RunDirectory(base).read_config()["model"]["context"]
    write_json(marker, {"preset": config.preset, "base": str(base), "seeds": config.seeds})
    workers = config.workers or _workers()
    jobs = plan(config, base, context)
    run_jobs(jobs, workers, done=[job.name for job in jobs if _is_done(job, config)])
    runs = [out / "sft", *(out / f"{stage}-{seed}" for stage in ("reward", *_POLICIES) for seed in range(config.seeds))]
    ledger = LedgerConfig(
        tuple(map(str, runs)), n=config.n, json=str(out / "ledger.json"), plot=str(out / "ledger.png"),
        device=config.device, dtype=config.dtype, backend=config.backend,
    )  # fmt: skip
    draw = Job(
        "over-optimisation", overoptimisation.run, (_curves(config, out),), out / "logs" / "over-optimisation.txt"
    )
    assess.run(ledger, partial(measure_in_processes, config=ledger, out=out, beside=draw, workers=workers))
    print(draw.log.read_text(encoding="utf-8"), end="", flush=True)


def _curves(config: RLHFConfig, out: Path) -> OverOptimisation:
    """What is drawn of the first seed's reward model."""
    rewarded = {"ppo": config.ppo_reward, "grpo": config.grpo_reward}
    policies = tuple(str(out / f"{stage}-0") for stage, source in rewarded.items() if source == "model")
    return OverOptimisation(
        str(out), str(out / "sft"), str(out / "reward-0"), policies,
        prompts=min(OverOptimisation.prompts, config.n * len(world.FAMILIES)),
        device=config.device, dtype=config.dtype, backend=config.backend,
    )  # fmt: skip


def plan(config: RLHFConfig, base: Path, context: int) -> list[Job]:
    """All jobs, each with what it needs: names are those of the directories. context: the base model's."""
    out, stages = Path(config.out), recipe(config.preset)
    shared: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("device", "dtype", "backend", "checkpointing", "compile", "resume", "overwrite")
    }

    def job(name: str, function: Callable[[Any], Any], stage: Any, needs: tuple[str, ...] = (), **settings: Any) -> Job:
        given = replace(stage, out=str(out / name), **settings)
        if hasattr(given, "fit"):
            steps = min(given.fit.max_steps, config.max_steps or given.fit.max_steps)
            given = replace(given, fit=replace(given.fit, max_steps=steps, optimizer_state=config.optimizer_state))
        return Job(name, function, (given,), out / "logs" / f"{name}.txt", needs)

    jobs: list[Job] = []
    if not config.base and (config.overwrite or not (base / "eval.json").exists()):
        full = stages.pretrain.fit.max_steps
        fit = replace(stages.pretrain.fit, max_steps=min(full, config.base_steps))
        minutes = stages.pretrain.expected_minutes * fit.max_steps / full
        jobs.append(job("tokenizer", tokenizer.run, stages.tokenizer, text=("world",), overwrite=True))
        base_stage = replace(stages.pretrain, fit=fit, tokenizer=str(out / "tokenizer"), expected_minutes=minutes)
        jobs.append(job("pretrain", pretrain.run, base_stage, ("tokenizer",), text=("world",), **shared))
    # Step 1: demonstrations. The share of flawed ones is what the later steps are to undo.
    demonstrations = dict(data=("world",), flawed_share=config.flawed_share, init=str(base))
    jobs.append(job("sft", sft.run, stages.flawed_sft, ("pretrain",), **demonstrations, **shared))
    for stage in _STAGES:
        for seed in range(config.seeds):
            row_length = min(_ROW_LENGTH, context)
            settings: dict[str, Any] = dict(data=("world",), init=str(out / "sft"), seed=seed, row_length=row_length)
            needs = "sft"
            if stage in ("ppo", "grpo"):
                # Step 3: the reward makes the policy; validated now and then, to be seen on its way.
                source: RewardSource = getattr(config, f"{stage}_reward")
                needs = "sft" if source == "world" else f"reward-{seed}"
                settings["reward"] = {
                    "model": (str(out / needs),), "world": ("world",), "both": (str(out / needs), "world"),
                }[source]  # fmt: skip
                if source == "both":
                    settings["reward_weights"] = (_SHARE_OF_MODEL, 1.0)
                settings["fit"] = replace(getattr(stages, stage).fit, eval_every=64)
            jobs.append(job(f"{stage}-{seed}", _STAGES[stage], getattr(stages, stage), (needs,), **settings, **shared))
    return jobs


def _is_done(job: Job, config: RLHFConfig) -> bool:
    return config.resume and (Path(config.out) / job.name / "eval.json").exists()


def _workers() -> int:
    return 1 if torch.cuda.is_available() else min(cores(), 8)


def measure_in_processes(tasks: list[Task], config: LedgerConfig, out: Path, beside: Job, workers: int) -> list[Entry]:
    """The entries of the ledger, each measured in a process of its own, and `beside` done beside them."""
    names = [Path(task.policy.path).name for task in tasks]
    files = [out / "logs" / f"measure-{name}.json" for name in names]
    jobs = [
        Job(f"measure {name}", _measure_into, (task, config, file), file.with_suffix(".txt"))
        for name, task, file in zip(names, tasks, files)
    ]
    run_jobs([beside, *jobs], workers)
    return [Entry.from_json(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def _measure_into(task: Task, config: LedgerConfig, file: Path) -> None:
    write_json(file, measure(task, config).to_json())
