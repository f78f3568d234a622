"""The documents' tables, a function a table: from what a benchmark wrote to rows of texts. documents.py puts them in.

The first row is the header. What is written in English here has its Chinese in `CHINESE`, a cell at a time; numbers and
names are the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath

from benchmarks import speed_tables as speed
from benchmarks.cells import Found, Rows, plus_minus, within
from instructgpt.course.race import board
from instructgpt.course.race.entry import Rules


@dataclass(frozen=True)
class Table:
    """One table of the documents."""

    file: str
    """In benchmarks/results."""
    rows: Callable[[Found], Rows]


# ---- make train

SPLITS = {
    "test": "test", "test_phrasing": "new wordings", "test_noise": "carelessly typed",
    "test_composition": "unseen pairs of tasks",
}  # fmt: skip


def train(found: Found) -> Rows:
    """Scores of each model of `make train`."""
    rows: Rows = [("model", *SPLITS.values(), "answer loss", "text, bits/byte", "minutes")]
    for name, model in found["models"].items():
        scores = [plus_minus(model["scores"][split]) for split in SPLITS]
        losses = [f"{model[field]:.3f}" for field in ("answer_loss", "text_bits_per_byte")]
        rows.append((name, *scores, *losses, f"{model['minutes']:.1f}"))
    return rows


def train_seeds(found: Found) -> Rows:
    """The tuned model of each seed."""
    tuned = {str(found["seed"]): found["models"]["tuned"], **found["other_seeds"]}
    return [
        ("seed", *SPLITS.values()),
        *((seed, *(plus_minus(model["scores"][split]) for split in SPLITS)) for seed, model in tuned.items()),
    ]


def train_more(found: Found) -> Rows:
    """The tuned model, asked more of each family."""
    rows: Rows = [("asked", "examples", "right", "95% interval")]
    for split, report in found["more_examples"].items():
        rows.append((SPLITS[split], f"{report['examples']:,}", f"{report['score']:.3f}", within(report["interval"])))
    return rows


def train_families(found: Found) -> Rows:
    """Every family of the world, the hardest first."""
    splits = found["more_examples"]
    easiest = sorted(splits["test"]["families"], key=lambda family: splits["test"]["families"][family])
    rows: Rows = [("family", *(SPLITS[split] for split in splits))]
    return rows + [(f"`{name}`", *(f"{one['families'][name]:.2f}" for one in splits.values())) for name in easiest]


# ---- alignment

STAGES = {
    "sft": "SFT, 45% of its demonstrations flawed", "dpo": "DPO", "ppo": "PPO, reward model",
    "grpo": "GRPO, the world's check",
}  # fmt: skip


def ledger(found: Found) -> Rows:
    """What each stage of `make rlhf` did."""
    rows: Rows = [("stage", "true reward (greedy)", "± prompts", "± seeds", "of the way to 1", "KL to SFT, nats")]
    start = found["stages"][0]["true_reward"]
    for stage in found["stages"]:
        low, high = stage["interval_over_prompts"]
        seeds = stage["interval_over_seeds"]
        reward = stage["true_reward"]
        rows.append((
            STAGES[stage["stage"].split()[0]],
            f"{reward:.3f} ({stage['greedy_macro']:.3f})",
            f"{(high - low) / 2:.3f}",
            f"{(seeds[1] - seeds[0]) / 2:.3f}" if seeds else "one SFT for all",
            f"{(reward - start) / (1 - start):.0%}" if reward != start else "",
            f"{stage['kl_to_sft']:.2f}",
        ))  # fmt: skip
    return rows


def reward_models(found: Found) -> Rows:
    """The reward models of `make rlhf`, a seed each."""
    rows: Rows = [("reward model of seed", "held-out pairs right", "of", "calibration error")]
    pattern = r"reward-(\d+): ([\d.]+) of (\d+) held-out pairs right, calibration error ([\d.]+)"
    for seed, right, pairs, error in (re.search(pattern, note).groups() for note in found["notes"]):  # pyright: ignore
        rows.append((seed, f"{float(right):.1%}", pairs, error))
    return rows


PAIRS = {
    "raschka-instruction": "raschka-instruction", "llamafactory-demo": "dpo-demo (most cut to 256 tokens)",
    "hh-rlhf": "HH-RLHF, harmlessness",
}  # fmt: skip


def preferences(found: Found) -> Rows:
    """Real pairs: how often each way prefers the better answer."""
    rows: Rows = [("pairs", "held out", "steps", "reward model, 95% interval", "preferring by length", "DPO's margin")]
    for name, label in PAIRS.items():
        one = found[name]
        pairs = one["reward"]["pairs"]
        rows.append((
            label,
            str(pairs["n"]),
            str(one["reward"]["steps"]),
            f"{pairs['accuracy']:.1%} ({within(pairs['interval'], '.1%')})",
            f"{one['length_baseline']:.1%}",
            f"{one['dpo']['val_accuracy']:.1%}",
        ))  # fmt: skip
    return rows


# ---- real files


def kept(account: Iterable[str]) -> str:
    """`28,995 of 29,000 (5 × exact duplicate)`, of the lines in which a command says what it read."""
    records = answers = dropped = 0
    reasons = []
    for line in account:
        if found := re.search(r": ([\d,]+) records read, ([\d,]+) kept, ([\d,]+) dropped", line):
            read, used, left_out = (int(number.replace(",", "")) for number in found.groups())
            records, answers, dropped = records + read, answers + used, dropped + left_out
        elif found := re.match(r" *dropped ([\d,]+): (.*?) \(first at", line):
            reasons.append(" × ".join(found.groups()))
    if not records:
        return ""
    if answers + dropped != records:  # a record with an answer in each of two languages
        reasons.append(f"in {records:,} records")
    return f"{answers:,} of {answers + dropped:,}" + (f" ({', '.join(reasons)})" if reasons else "")


def result(one: Found) -> tuple[str, str]:
    """What a set was scored on, and what came out."""
    if "pairs" in one:
        pairs = one["pairs"]
        return f"{pairs['n']} pairs held out", f"{pairs['accuracy']:.1%} right ({within(pairs['interval'], '.1%')})"
    if "scores" not in one:
        return "held-out ends", ""
    if all(report["macro_average"] is None for report in one["scores"].values()):
        return f"{sum(report['examples'] for report in one['scores'].values())} questions", "answered, not scored"
    name, report = next(iter(one["scores"].items()))
    file = PurePath(name.partition("+")[0]).name
    where = f"{report['examples']} {'held out' if file == 'val.jsonl' else f'of {file}'}"
    metrics = report["metrics"]
    if "macro_f1" in metrics:
        always = f"{metrics['majority_accuracy']:.3f}, {metrics['majority_macro_f1']:.3f}"
        said = f"accuracy {metrics['accuracy']:.3f}, macro-F1 {metrics['macro_f1']:.3f}"
        return where, f"{said}; always `{metrics['majority_label']}` {always}"
    if "bleu" in metrics:
        return where, f"BLEU {metrics['bleu']:.1f}, chrF {metrics['chrf']:.1f}"
    return where, f"{report['score']} {report['macro_average']:.3f}"


def real_files(found: Found) -> Rows:
    """Public sets, each the whole way."""
    rows: Rows = [("set", "records kept", "updates", "held out, bits/byte", "scored on", "result")]
    for name in sorted(found, key=lambda name: name != "base"):
        one = found[name]
        training = one.get("training", {})
        bits = training.get("val_bits_per_byte")
        steps = str(training["steps"]) if training else f"as {one['model']}"
        account = kept(one.get("account", one.get("scored", ())))
        rows.append((name, account, steps, f"{bits:.2f}" if bits else "", *result(one)))
    return rows


# ---- tuning


def translate(found: Found) -> Rows:
    """What a model says of test sentences before and after it is tuned to translate."""
    rows: Rows = [("model", "BLEU", "chrF", "token accuracy", "teacher-forced argmax", "trained weights", "updates")]
    for name, one in found["models"].items():
        trained = (f"{one['trained_share']:.1%}", f"{one['updates']:,}") if one["updates"] else ("", "")
        scores = (f"{one['bleu']:.1f}", f"{one['chrf']:.1f}", f"{one['token_accuracy']:.3f}")
        rows.append((name, *scores, f"{one['teacher_forced_argmax']:.3f}", *trained))
    return rows


def mistakes(found: Found) -> Rows:
    """What each mistake costs, of those that all seeds were run for."""
    rows: Rows = [("mistake", "in", "right", "with it", "cost", "95% interval")]
    for one in found["mistakes"]:
        if one["interval"]:
            right, wrong = f"{one['right']:.3f}", f"{one['with_mistake']:.3f}"
            cells = (one["mistake"], one["road"], right, wrong, f"{one['cost']:+.3f}")
            rows.append((*cells, within(one["interval"], "+.3f")))
    return rows


def lora(found: Found) -> Rows:
    """Adapters beside tuning the whole model, on families that the base had never answered."""
    rows: Rows = [("trained", "share of weights", "rate", "learnt", "less than the whole by", "kept of what it knew")]
    best = found["best_rates"]
    for one in found["table"]:
        kind = "whole" if one["variant"].startswith("whole") else "lora"
        if one["part"] != "rates" or one["rate"] == best[kind]:
            name = one["variant"].partition(", rate")[0]
            less = f"{-one['from_whole']:.3f} ({within([-x for x in one['from_whole_interval'][::-1]])})"
            cells = (name, f"{one['trained_share']:.1%}", f"{one['rate']:g}", f"{one['mean']:.3f}")
            rows.append((*cells, less if name != "whole" else "", f"{one['kept']:.3f}"))
    return rows


def smollm2(found: Found) -> Rows:
    """SmolLM2 beside llama.cpp and `transformers`."""
    rows: Rows = [("SmolLM2", "tokens/s", "times the peer")]
    for name, one in found["results"].items():
        rows.append((name, f"{one['tokens_per_second']:.1f}", f"{one['times_peer']:.2f}" if one["times_peer"] else ""))
    return rows


def race(found: Found) -> Rows:
    """Our records of the race; a run of another length was for trying."""
    records = [one for one in found["records"] if one["minutes"] == Rules().minutes]
    return [("record", *board.HEAD[1:]), *map(board.row, records)]


def lookup_heads(found: Found) -> Rows:
    """What is right with and without the heads that look things up."""
    heads = ", ".join(f"layer {one['layer']}, head {one['head']}" for one in found["lookup_heads"])
    looks = ", ".join(f"{one['right']:.2f}" for one in found["lookup_heads"])
    rows: Rows = [(f"{heads} (attention on the right number {looks})", "exact match", "95% interval", "questions")]
    for name, one in found["scores"].items():
        rows.append((name, f"{one['score']:.3f}", within(one["interval"]), f"{one['n']:,}"))
    return rows


TABLES = {
    "train": Table("cpu-train.json", train),
    "train-h100": Table("nvidia-h100-80gb-hbm3-train.json", train),
    "train-seeds": Table("cpu-train.json", train_seeds),
    "train-more": Table("cpu-train.json", train_more),
    "train-families": Table("cpu-train.json", train_families),
    "ledger": Table("cpu-rlhf.json", ledger),
    "reward-models": Table("cpu-rlhf.json", reward_models),
    "preferences": Table("real-preferences-cpu.json", preferences),
    "real-files": Table("cpu-real-files.json", real_files),
    "attention": Table("nvidia-h200-kernels.json", speed.attention),
    "fused": Table("nvidia-h200-kernels.json", speed.fused),
    "steps-h100": Table("nvidia-h100-80gb-hbm3-train-step.json", speed.steps),
    "steps-cpu": Table("cpu-train-step.json", speed.steps),
    "steps-tiny": Table("cpu-train-step-tiny.json", speed.steps),
    "decode": Table("cpu-decode.json", speed.decode),
    "throughput": Table("cpu-batching.json", speed.throughput),
    "latency": Table("cpu-batching.json", speed.latency),
    "latency-h100": Table("nvidia-h100-80gb-hbm3-batching.json", speed.latency),
    "service": Table("cpu-service.json", speed.service),
    "head-memory": Table("cpu-head-memory.json", speed.head_memory),
    "memory": Table("cpu-memory.json", speed.memory),
    "agreement": Table("cpu-agreement.json", speed.agreement),
    "translate": Table("cpu-translate.json", translate),
    "smollm2": Table("cpu-smollm2.json", smollm2),
    "lora": Table("cpu-lora.json", lora),
    "mistakes": Table("cpu-mistakes.json", mistakes),
    "race": Table("cpu-race.json", race),
    "lookup-heads": Table("cpu-lookup-heads.json", lookup_heads),
}

CHINESE = {
    "model": "模型", "test": "测试", "new wordings": "没见过的问法", "carelessly typed": "随手打的字",
    "unseen pairs of tasks": "没见过的任务组合", "answer loss": "回答的损失", "text, bits/byte": "文本（比特/字节）",
    "minutes": "分钟", "base": "基座", "tuned": "指令微调后",
    "stage": "阶段", "true reward (greedy)": "真实奖励（贪心）", "± prompts": "± 题目", "± seeds": "± 种子",
    "of the way to 1": "离满分走了多远", "KL to SFT, nats": "与 SFT 的 KL（奈特）",
    "SFT, 45% of its demonstrations flawed": "SFT（45% 的示范有毛病）", "one SFT for all": "共用一个 SFT",
    "PPO, reward model": "PPO（奖励模型）", "GRPO, the world's check": "GRPO（由程序判分）",
}  # fmt: skip
"""Of the tables that the Chinese pages show."""


def in_chinese(rows: Rows) -> Rows:
    return [tuple(CHINESE.get(cell, cell) for cell in row) for row in rows]
