"""LoRA and its relatives beside tuning the whole model: `python -m benchmarks.lora --base RUN`.

From --base, a pretrain run, a base is made that follows instructions but for some families of the world: it is tuned on
all others. It is then tuned on those it has never answered, the whole of it or an adapter beside it, and scored by the
world's own check of greedy answers: `learnt` on new prompts of those families, `kept` on the families it knew before.

    rates    the whole model and rank 16, each at several learning rates: the best of each (by the families' validation
             prompts) is what all other runs are made with, and their ratio
    ranks    1, 2, 4, 64 beside attention and MLP    places   rank 16 beside one of them
    kinds    rsLoRA, DoRA, QLoRA beside int8 and int4; and the whole model with Muon, as the recipe has it
    grpo     reinforcement learning from the tuned model: the whole of it, and rank 1; scored by the true reward of
             sampled answers to prompts of all families
    memory   bytes of a training step by the planner, and the peak of a process that runs DPO and GRPO

All is measured with the same data in the same order within a seed. An interval is Student's t over seeds; differences
from the whole model are taken within a seed. Whatever is measured is saved at once, and what the file holds already is
not measured again: the whole can be had in pieces, by --only, or by interrupting it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.lora_memory import measured_memory, planned_memory
from benchmarks.machine import describe, publish, results_file
from instructgpt import world
from instructgpt.data.queries import Query
from instructgpt.errors import UserError, suggestion
from instructgpt.evaluation.instructions import evaluate_examples
from instructgpt.evaluation.scores import seed_interval
from instructgpt.figures import tidy, write_json
from instructgpt.flags import parse, run_main
from instructgpt.runtime import resolve_device
from instructgpt.settings import FilePath, Positive, PositiveInt, Settings
from instructgpt.stages import grpo, sft
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.stages.presets import recipe
from instructgpt.strict_json import write_json_lines
from instructgpt.text.chat import render_prompt
from instructgpt.training.checkpoint import RunDirectory, load
from instructgpt.training.rollouts import sample_answers

NEW = ("translate_en_fr", "topic", "maximum", "reverse", "json", "plural")
"""Families that the base has never answered: of each kind one, whose relatives it knows."""
KNOWN = tuple(family for family in world.FAMILIES if family not in NEW)
PARTS = ("rates", "ranks", "places", "kinds", "grpo", "memory")


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Measures adapters against tuning the whole model."""

    base: FilePath = "runs/tiny/pretrain"
    """The pretrain run, of `make train`, that everything starts from."""
    out: FilePath = "runs/lora"
    """Where runs go; each replaces the one before."""
    preset: str = "tiny"
    """The recipe whose settings the stages have."""
    only: tuple[str, ...] = ()
    """Parts to measure (rates, ranks, places, kinds, grpo, memory); all by default."""
    seeds: PositiveInt = 3
    """Runs of each."""
    scale: Positive = 1.0
    """Multiplies the numbers of updates."""
    n: PositiveInt = 40
    """Prompts of each new family that a model is scored on; of each other family a quarter of them."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: FilePath = "auto"
    """The file to write, and to go on with; auto is benchmarks/results/DEVICE-lora.json, empty is none."""


_UPDATES = {"base": 900, "sft": 200, "grpo": 64}
"""Of each run, before --scale."""
_EXAMPLES = {"base": 20_000, "sft": 4_000}
_FULL_RATES, _LORA_RATES = (3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_GRPO_RATES = {"grpo, whole": 4e-4, "grpo, rank 1": 4e-3}
_USUAL = {"whole": 1e-3, "lora": 1e-2}
"""Rates where none was measured."""


@dataclass(frozen=True)
class Variant:
    """A way to tune."""

    name: str
    part: str
    adapter: dict[str, Any] = field(default_factory=dict)
    rate: float = 0.0
    """0 takes the best that `rates` has found."""
    fit: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "lora" if self.adapter else "whole"


def _lora(rank: int, **settings: Any) -> dict[str, Any]:
    return {"lora_rank": rank, **settings}


VARIANTS = (
    *(Variant(f"whole, rate {rate:g}", "rates", rate=rate) for rate in _FULL_RATES),
    *(Variant(f"rank 16, rate {rate:g}", "rates", _lora(16), rate) for rate in _LORA_RATES),
    *(Variant(f"rank {rank}", "ranks", _lora(rank)) for rank in (1, 2, 4, 64)),
    *(Variant(f"rank 16, {place}", "places", _lora(16, lora_on=(place,))) for place in ("attention", "mlp")),
    # α/√r is 2 at rank 16 as α/r is with 32: so the two can be compared.
    Variant("rank 64, rsLoRA", "kinds", _lora(64, rslora=True, lora_alpha=8.0)),
    Variant("rank 16, DoRA", "kinds", _lora(16, dora=True)),
    Variant("rank 16, QLoRA int8", "kinds", _lora(16, base_format="int8")),
    Variant("rank 16, QLoRA int4", "kinds", _lora(16, base_format="int4")),
    Variant("whole, Muon", "kinds", fit={"optimizer": "muon"}),
    Variant("grpo, whole", "grpo"),
    Variant("grpo, rank 1", "grpo", _lora(1)),
)

Scores = dict[str, list[dict[str, float]]]
"""By variant, for each seed."""


# ---- data


def write_data(config: LoraConfig) -> dict[str, Path]:
    """Conversations of the families that the base knows, and of those that are new to it."""
    folder = Path(config.out)
    files = {"base": folder / "known.jsonl", "sft": folder / "new.jsonl"}
    folder.mkdir(parents=True, exist_ok=True)
    examples = {
        "base": world.sample("train", _EXAMPLES["base"], seed=0, families=KNOWN),
        "sft": world.sample("train", _EXAMPLES["sft"], seed=0, families=NEW),
    }
    for name, file in files.items():
        if not file.is_file():
            write_json_lines(file, [{"messages": each.conversation} for each in examples[name]])
    return files


class Judge:
    """Scores runs on the same prompts."""

    def __init__(self, config: LoraConfig):
        self._device = resolve_device(config.device)
        few = max(1, config.n // 4)
        self._sets = {
            "learnt": world.sample("test", config.n * len(NEW), seed=0, families=NEW),
            "validated": world.sample("val", config.n * len(NEW), seed=0, families=NEW),
            "kept": world.sample("test", few * len(KNOWN), seed=0, families=KNOWN),
        }
        self._all = world.sample("test", few * 2 * len(world.FAMILIES), seed=0)

    def answers(self, directory: Path) -> dict[str, float]:
        """The share of right greedy answers, as a mean over families."""
        model, tokenizer = load(directory, self._device)
        return {name: evaluate_examples(model, tokenizer, each).macro_average for name, each in self._sets.items()}

    def reward(self, directory: Path) -> float:
        """The true reward of two answers to each prompt, sampled at temperature 1."""
        model, tokenizer = load(directory, self._device)
        queries = [
            Query(each.messages, render_prompt(each.messages, tokenizer), each.answer, each.check)  # type: ignore[arg-type]
            for each in self._all
        ]
        with torch.inference_mode():
            answered = sample_answers(model, tokenizer, queries, 2, 32, 1 << 30)
        return sum(query.check(answer.text) for query, answer in answered if query.check) / len(answered)


# ---- runs


def _updates(name: str, config: LoraConfig) -> int:
    return max(1, round(_UPDATES[name] * config.scale))


def _run(stage: Any, settings: Any, log: Path) -> dict[str, float]:
    """Runs a stage, what it prints going into a file, and gives what it says of itself."""
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        stage.run(settings)
    result = RunDirectory(settings.out).read_eval()
    return {
        "minutes": result["minutes"],
        "tokens_per_second": result["tokens_per_second"],
        "trained_share": result["trained_parameters"] / result["parameters"],
    }


def _common(config: LoraConfig, out: str, seed: int) -> dict[str, Any]:
    directory = str(Path(config.out) / out)
    return dict(
        out=directory, seed=seed, device=config.device, overwrite=True, compile="off", expected_minutes=0.0
    )  # fmt: skip


def make_base(config: LoraConfig, data: Path) -> Path:
    """The model that follows instructions of the known families, made once."""
    out, settings = Path(config.out) / "base", recipe(config.preset).sft
    if not (out / "eval.json").is_file():
        print(f"base: {_updates('base', config)} updates on the families that are known", flush=True)
        fit = replace(settings.fit, max_steps=_updates("base", config), eval_every=0, save_every=0, log_every=1000)
        base = replace(
            settings, data=(str(data),), init=config.base, val_share=0.0, fit=fit, **_common(config, "base", 0)
        )
        _run(sft, base, Path(config.out) / "base.txt")
    return out


def tune(variant: Variant, seed: int, rate: float, init: Path, data: Path, config: LoraConfig) -> dict[str, float]:
    """Instruction tuning on the new families."""
    settings = recipe(config.preset).sft
    own = "muon_learning_rate" if variant.fit.get("optimizer") == "muon" else "learning_rate"
    fit = {"optimizer": "adamw", own: rate, **variant.fit}
    fit |= {"max_steps": _updates("sft", config), "eval_every": 0, "save_every": 0, "log_every": 1000}
    tuned = replace(
        settings, data=(str(data),), init=str(init), val_share=0.0, adapter=AdapterFlags(**variant.adapter),
        fit=replace(settings.fit, **fit), **_common(config, "tuned", seed),
    )  # fmt: skip
    return _run(sft, tuned, Path(config.out) / "tuned.txt")


def reinforce(variant: Variant, seed: int, init: Path, config: LoraConfig) -> dict[str, float]:
    """GRPO on prompts of all families, rewarded by the world's own check."""
    settings = recipe(config.preset).grpo
    fit = replace(
        settings.fit, max_steps=_updates("grpo", config), learning_rate=_GRPO_RATES[variant.name], eval_every=0,
        save_every=0, log_every=1000,
    )  # fmt: skip
    rows = min(128, RunDirectory(config.base).describe()[0].context)
    tuned = replace(
        settings, data=("world",), reward=("world",), init=str(init), row_length=rows, val_examples=20,
        adapter=AdapterFlags(**variant.adapter), fit=fit, **_common(config, "policy", seed),
    )  # fmt: skip
    return _run(grpo, tuned, Path(config.out) / "policy.txt")


# ---- what was found


def best_rate(found: Scores, kind: str) -> float:
    """The learning rate with the best mean on validation prompts; the usual one where none is measured."""
    rated = [each for each in VARIANTS if each.part == "rates" and each.kind == kind and found.get(each.name)]
    return max(rated, key=lambda each: _mean(found[each.name], "validated")).rate if rated else _USUAL[kind]


def _mean(scores: list[dict[str, float]], name: str) -> float:
    return sum(score[name] for score in scores) / len(scores)


def table(found: Scores, base: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each variant that is measured: what it learnt, and the difference from the whole model."""
    whole = f"whole, rate {best_rate(found, 'whole'):g}"
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        scores = found.get(variant.name, [])
        if not scores:
            continue
        is_policy = variant.part == "grpo"
        measured, beside = ("true_reward", "grpo, whole") if is_policy else ("learnt", whole)
        differences = [own[measured] - other[measured] for own, other in zip(scores, found.get(beside, []))]
        interval = seed_interval([score[measured] for score in scores])
        apart = seed_interval(differences)
        rows.append({
            "variant": variant.name, "part": variant.part, "seeds": len(scores), "measured": measured,
            "mean": _mean(scores, measured), "interval": [interval.low, interval.high] if interval else None,
            "from_whole": sum(differences) / len(differences) if differences else None,
            "from_whole_interval": [apart.low, apart.high] if apart else None,
            "kept": None if is_policy else _mean(scores, "kept"), "kept_before": base.get("kept"),
            **{name: _mean(scores, name) for name in ("rate", "trained_share", "minutes", "tokens_per_second")},
        })  # fmt: skip
    return rows


def show(rows: Sequence[dict[str, Any]], found: Scores) -> None:
    heads = f"\n{'variant':<22} {'rate':>7} {'trained':>8} {'score':>6} {'95%':>16} {'from whole':>11} {'95%':>18}"
    print(f"{heads} {'kept':>6} {'tok/s':>7}")
    for row in rows:
        own = "[{:.3f}, {:.3f}]".format(*row["interval"]) if row["interval"] else ""
        apart = "[{:+.3f}, {:+.3f}]".format(*row["from_whole_interval"]) if row["from_whole_interval"] else ""
        difference = "" if row["from_whole"] is None else f"{row['from_whole']:+.3f}"
        kept = "" if row["kept"] is None else f"{row['kept']:.3f}"
        print(
            f"{row['variant']:<22} {row['rate']:>7g} {row['trained_share']:>8.2%} {row['mean']:>6.3f} {own:>16} "
            f"{difference:>11} {apart:>18} {kept:>6} {row['tokens_per_second']:>7,.0f}"
        )
    whole, lora = best_rate(found, "whole"), best_rate(found, "lora")
    print(f"best rates: {whole:g} for the whole model, {lora:g} for rank 16: a ratio of {lora / whole:.3g}")


# ---- the measurement


def chosen(only: Sequence[str]) -> tuple[str, ...]:
    for name in only:
        if name not in PARTS:
            raise UserError(f"--only {name!r} is no part{suggestion(name, PARTS)}")
    return tuple(part for part in PARTS if not only or part in only)


def runs(parts: Sequence[str], seeds: int) -> Iterator[tuple[Variant, int]]:
    """What is to be run: `rates` first, for the others follow from them."""
    for part in parts:
        for seed in range(seeds):
            yield from ((variant, seed) for variant in VARIANTS if variant.part == part)


def measure(config: LoraConfig) -> int:
    device = resolve_device(config.device)
    config = replace(config, device=str(device))
    file, parts = results_file(config.json, device, "lora"), chosen(config.only)
    settings = {name: getattr(config, name) for name in ("preset", "scale", "n")}
    settings |= {"updates": _UPDATES, "examples": _EXAMPLES, "new": NEW}
    settings = json.loads(json.dumps(settings))
    document: dict[str, Any] = json.loads(Path(file).read_text()) if file and Path(file).is_file() else {}
    if document.get("settings") != settings:
        document = {"settings": settings, "scores": {}, "base": {}, "minutes": 0.0}
    found: Scores = document["scores"]

    def save() -> None:
        whole, lora = best_rate(found, "whole"), best_rate(found, "lora")
        rates = {"whole": whole, "lora": lora, "ratio": lora / whole}
        document.update({**describe(device), "table": tidy(table(found, document["base"])), "best_rates": rates})
        if file:
            write_json(file, document)

    if tuning := [part for part in parts if part != "memory"]:
        files, judge = write_data(config), Judge(config)
        base = make_base(config, files["base"])
        document["base"] = document["base"] or tidy(judge.answers(base))
        print(f"base: {document['base']}", flush=True)
        for variant, seed in runs(tuning, config.seeds):
            scores = found.setdefault(variant.name, [])
            if len(scores) > seed:
                continue
            began = time.monotonic()
            scores.append(tidy(_measured(variant, seed, base, files["sft"], config, judge, found)))
            seconds = time.monotonic() - began
            document["minutes"] += seconds / 60
            score = scores[-1].get("learnt", scores[-1].get("true_reward", 0.0))
            print(f"{score:.3f} {seconds:>5.0f} s  {variant.name}, seed {seed}", flush=True)
            save()
    if "memory" in parts:
        document["memory"] = {"planned": planned_memory(), "measured": measured_memory(Path(config.out), config.base)}
        save()
    show(table(found, document["base"]), found)
    publish(document, file)
    return 0


def _measured(
    variant: Variant, seed: int, base: Path, data: Path, config: LoraConfig, judge: Judge, found: Scores
) -> dict[str, float]:
    """Runs a variant and scores it."""
    if variant.part != "grpo":
        rate = variant.rate or best_rate(found, variant.kind)
        if variant.fit.get("optimizer") == "muon":
            rate = recipe(config.preset).sft.fit.muon_learning_rate
        told = tune(variant, seed, rate, base, data, config)
        return {"rate": rate, **told, **judge.answers(Path(config.out) / "tuned")}
    # Both start from the whole model, tuned on what is new: it has something to gain on all families.
    start = Path(config.out) / "start"
    if not (start / "eval.json").is_file():
        settings = Variant("start", "grpo")
        tune(settings, 0, best_rate(found, "whole"), base, data, config)
        (Path(config.out) / "tuned").rename(start)
    told = reinforce(variant, seed, start, config)
    return {"rate": _GRPO_RATES[variant.name], **told, "true_reward": judge.reward(Path(config.out) / "policy")}


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(LoraConfig, sys.argv[1:], "benchmarks.lora"))))
