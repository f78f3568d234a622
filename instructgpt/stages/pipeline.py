"""The whole road in one command: tokenizer, base model, tuned model, and what each is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from instructgpt import world
from instructgpt.atomic import write_text
from instructgpt.data.packing import batches_of
from instructgpt.data.sources import WorldInstructions, WorldText
from instructgpt.errors import UserError
from instructgpt.evaluation.instructions import evaluate_examples
from instructgpt.evaluation.loss import LossReport, evaluate_loss
from instructgpt.figures import write_json
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.stages import pretrain, sft, tokenizer
from instructgpt.stages.common import require
from instructgpt.stages.presets import recipe
from instructgpt.training.checkpoint import RunDirectory, load
from instructgpt.training.metrics import Tracker
from instructgpt.training.plot import plot_curves
from instructgpt.world.composition import HELD_OUT_PAIRS

_SPLITS = ("test", "test_phrasing", "test_noise", "test_composition")


@dataclass(frozen=True)
class PipelineConfig(Settings):
    """Trains and measures a tokenizer, a base model and an instruction-tuned model, one directory each under --out."""

    out: FilePath = ""
    """The directory to write: tokenizer/, pretrain/, sft/ and a report."""
    preset: str = "auto"
    """Size of model and length of training; auto is `small` on a GPU and `tiny` without."""
    text: tuple[FilePath, ...] = ("world",)
    """Raw text for tokenizer and pretraining: files, or `world`."""
    data: tuple[FilePath, ...] = ("world",)
    """Instructions to tune on: files, or `world`."""
    seed: NonNegativeInt = 0
    """Decides initial weights, data order and dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16, bfloat16-master or auto."""
    backend: str = "auto"
    """naive, sdpa, triton or auto."""
    resume: bool = False
    """Go on where an interrupted pipeline stopped; finished stages are not run again."""
    overwrite: bool = False
    """Replace the pipeline in --out."""
    tracker: Tracker = "none"
    """Also log to tensorboard or wandb (extra `track`)."""
    max_steps: NonNegativeInt = 0
    """Most updates of each training stage; 0 leaves the preset's number."""
    max_minutes: NonNegative = 0.0
    """Most minutes of training, a half for each stage; 0 leaves the preset's limits."""
    examples: PositiveInt = 20
    """Examples a family and split in the evaluation."""


def run(config: PipelineConfig) -> None:
    """Runs the stages that are not done yet, evaluates both models and prints one table."""
    require(config.out, "--out", "name the directory to write")
    out = Path(config.out)
    marker = out / "pipeline.json"
    if marker.exists() and not (config.resume or config.overwrite):
        raise UserError("holds a pipeline already; go on with --resume, replace it with --overwrite", out)
    write_json(marker, {"preset": config.preset, "text": config.text, "data": config.data, "seed": config.seed})
    stages = recipe(config.preset)
    shared: dict[str, Any] = {
        name: getattr(config, name) for name in ("seed", "device", "dtype", "backend", "resume", "overwrite", "tracker")
    }
    names = ("tokenizer", "pretrain", "sft")
    directories = {name: out / name for name in names}
    if not _is_done(directories["tokenizer"], config):
        vocabulary = replace(stages.tokenizer, text=config.text, seed=config.seed, fit_vocab_size=True)
        tokenizer.run(replace(vocabulary, out=str(directories["tokenizer"]), overwrite=True))
    if not _is_done(directories["pretrain"], config):
        base = replace(stages.pretrain, text=config.text, tokenizer=str(directories["tokenizer"]), **shared)
        pretrain.run(replace(base, out=str(directories["pretrain"]), fit=_limited(base.fit, config, 0.5)))
    if not _is_done(directories["sft"], config):
        tuned = replace(stages.sft, data=config.data, init=str(directories["pretrain"]), **shared)
        sft.run(replace(tuned, out=str(directories["sft"]), fit=_limited(tuned.fit, config, 0.5)))
    report(config, {name: directories[name] for name in names[1:]})


def _is_done(directory: Path, config: PipelineConfig) -> bool:
    return config.resume and (directory / "eval.json").exists()


def _limited(fit: Any, config: PipelineConfig, share: float) -> Any:
    """The stage's schedule under the pipeline's own limits."""
    steps = min(fit.max_steps, config.max_steps) if config.max_steps else fit.max_steps
    return replace(fit, max_steps=steps, max_minutes=config.max_minutes * share or fit.max_minutes)


def report(config: PipelineConfig, runs: dict[str, Path]) -> None:
    """Evaluates each model on the world and writes eval.json, samples.md, curves.png and the table."""
    table = Table(title="What each stage is worth (exact match on new instances, macro-average over families)")
    for column in ("model", *_SPLITS, "answer loss", "text bits/byte", "tokens/s", "minutes"):
        table.add_column(column, justify="left" if column == "model" else "right")
    results: dict[str, Any] = {}
    samples = []
    for name, directory in runs.items():
        model, tok = load(directory, config.device, config.backend)
        device = resolve_device(config.device)
        precision = resolve_precision(config.dtype, device)
        with precision.context(device):
            scores = {
                split: evaluate_examples(model, tok, world.sample(split, _count(split, config.examples), seed=0))
                for split in _SPLITS
            }
            answers = _loss(model, tok, WorldInstructions("val", tok, config.seed, context=model.config.context), 400)
            text = _loss(model, tok, WorldText(tok, config.seed + 1_000_003), 400)
        trained = RunDirectory(directory).read_eval()
        label = {"pretrain": "base", "sft": "tuned"}[name]
        table.add_row(
            label,
            *(f"{scores[s].macro_average:.3f} ±{scores[s].half_width:.3f}" for s in _SPLITS),
            f"{answers.loss:.3f}", f"{text.bits_per_byte:.3f}",
            f"{trained['tokens_per_second']:,.0f}", f"{trained['minutes']:.1f}",
        )  # fmt: skip
        results[label] = {
            "scores": {split: scores[split].to_json() for split in _SPLITS},
            "answer_loss": answers.loss,
            "text_bits_per_byte": text.bits_per_byte,
            **trained,
        }
        samples.append(f"# {label}\n\n{scores['test'].samples_markdown()}")
        write_json(directory / "eval.json", {**trained, "scores": results[label]["scores"]})
        write_text(directory / "samples.md", samples[-1])
    out = Path(config.out)
    write_json(out / "eval.json", results)
    write_text(out / "samples.md", "\n".join(reversed(samples)))  # the tuned model first
    plot_curves({name: RunDirectory(d).metrics_file for name, d in runs.items()}, out / "curves.png")
    console = Console()
    Console(width=max(console.width, 120)).print(table)  # a log file has no width of its own


def _count(split: str, examples: int) -> int:
    """Enough for so many examples of each family, or of each held-out pair of families."""
    return examples * len(HELD_OUT_PAIRS if split == "test_composition" else world.FAMILIES)


def _loss(model: Any, tok: Any, source: Any, count: int) -> LossReport:
    examples: Iterable[Any] = (source[i] for i in range(count))
    return evaluate_loss(model, tok, batches_of(examples, model.config.context, 16))
