"""The whole road in one command: tokenizer, base model, tuned model, and what each is worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from instructgpt import world
from instructgpt.atomic import write_text
from instructgpt.data.corpus import Corpus
from instructgpt.data.data_file import Reading
from instructgpt.data.packing import batches_of
from instructgpt.data.sources import CorpusWindows, WorldInstructions, WorldText
from instructgpt.data.windows import all_windows
from instructgpt.errors import UserError
from instructgpt.evaluation.instructions import evaluate_examples, file_exam
from instructgpt.evaluation.loss import LossReport, evaluate_loss
from instructgpt.evaluation.report import Report
from instructgpt.figures import write_json
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.stages import pretrain, sft, tokenizer
from instructgpt.stages.common import require
from instructgpt.stages.presets import recipe
from instructgpt.text.chat import Message
from instructgpt.training.checkpoint import RunDirectory, load
from instructgpt.training.compiling import CompileFlag
from instructgpt.training.metrics import Tracker
from instructgpt.training.moments import StateFormat
from instructgpt.training.plot import plot_curves
from instructgpt.world.composition import HELD_OUT_PAIRS

_MOST_RECORDS = 200
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
    weights: tuple[float, ...] = ()
    """How often each of --data is drawn, relative to the others, as in sft."""
    text_field: str = ""
    """The field of records in --text that holds the text, such as content, or a template, as in pretrain."""
    seed: NonNegativeInt = 0
    """Decides initial weights, data order and dropout."""
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
    compile: CompileFlag = "auto"
    """auto, off, blocks or step: how training steps are compiled, as in each stage."""
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
    reading: Reading = field(default_factory=Reading)


def run(config: PipelineConfig) -> None:
    """Runs the stages that are not done yet, evaluates both models and prints one table."""
    require(config.out, "--out", "name the directory to write")
    out = Path(config.out)
    marker = out / "pipeline.json"
    if marker.exists() and not (config.resume or config.overwrite):
        raise UserError("holds a pipeline already; go on with --resume, replace it with --overwrite", out)
    stages = recipe(config.preset)
    mixture = replace(stages.sft, data=config.data, weights=config.weights, reading=config.reading)
    sft.check(mixture)  # what is wrong with it is told now, and not when a base model is trained
    write_json(marker, {"preset": config.preset, "text": config.text, "data": config.data, "seed": config.seed})
    shared: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("seed", "device", "dtype", "backend", "checkpointing", "compile", "resume", "overwrite", "tracker")
    }
    text: dict[str, Any] = dict(text=config.text, text_field=config.text_field, encoding=config.reading.encoding)
    names = ("tokenizer", "pretrain", "sft")
    directories = {name: out / name for name in names}
    if not _is_done(directories["tokenizer"], config):
        vocabulary = replace(stages.tokenizer, **text, seed=config.seed, fit_vocab_size=True)
        tokenizer.run(replace(vocabulary, out=str(directories["tokenizer"]), overwrite=True))
    if not _is_done(directories["pretrain"], config):
        base = replace(stages.pretrain, **text, tokenizer=str(directories["tokenizer"]), **shared)
        pretrain.run(replace(base, out=str(directories["pretrain"]), fit=_limited(base.fit, config, 0.5)))
    if not _is_done(directories["sft"], config):
        tuned = replace(mixture, init=str(directories["pretrain"]), **shared)
        sft.run(replace(tuned, out=str(directories["sft"]), fit=_limited(tuned.fit, config, 0.5)))
    report(config, {name: directories[name] for name in names[1:]})


def _is_done(directory: Path, config: PipelineConfig) -> bool:
    return config.resume and (directory / "eval.json").exists()


def _limited(fit: Any, config: PipelineConfig, share: float) -> Any:
    """The stage's schedule under the pipeline's own limits, and its optimizer's state as asked for."""
    steps = min(fit.max_steps, config.max_steps) if config.max_steps else fit.max_steps
    minutes = config.max_minutes * share or fit.max_minutes
    return replace(fit, max_steps=steps, max_minutes=minutes, optimizer_state=config.optimizer_state)


@dataclass(frozen=True)
class Measured:
    """What one model is worth, on the world and on the user's own files."""

    splits: dict[str, Report]
    answers: LossReport
    text: LossReport
    files: Report | None
    """Answers to the held-out records of --data; None where that is the world alone."""
    file_answers: LossReport | None
    file_text: LossReport | None
    """The held-out part of --text."""
    trained: dict[str, Any]
    """What the stage said of itself."""

    def cells(self) -> dict[str, str]:
        """The columns of the report."""

        def score(report: Report) -> str:
            return f"{report.macro_average:.3f} ±{report.half_width:.3f}"

        cells = {split: score(report) for split, report in self.splits.items()}
        cells |= {"answer loss": f"{self.answers.loss:.3f}", "text bits/byte": f"{self.text.bits_per_byte:.3f}"}
        if self.files and self.files.families:
            cells[f"files: {self.files.score_name}"] = score(self.files)
        if self.file_answers:
            cells["files: answer loss"] = f"{self.file_answers.loss:.3f}"
        if self.file_text:
            cells["files: text bits/byte"] = f"{self.file_text.bits_per_byte:.3f}"
        return cells | {
            "tokens/s": f"{self.trained['tokens_per_second']:,.0f}",
            "minutes": f"{self.trained['minutes']:.1f}",
        }

    def scores(self) -> dict[str, Any]:
        """By split, and `files`."""
        files = {"files": self.files.to_json()} if self.files else {}
        return {**{split: report.to_json() for split, report in self.splits.items()}, **files}

    def to_json(self) -> dict[str, Any]:
        files = {"file_answer_loss": self.file_answers, "file_text": self.file_text}
        return {
            "scores": self.scores(),
            "answer_loss": self.answers.loss,
            "text_bits_per_byte": self.text.bits_per_byte,
            **{name: loss.to_json() for name, loss in files.items() if loss},
            **self.trained,
        }

    def samples(self) -> str:
        """As Markdown, the user's files first."""
        parts = [self.files.samples_markdown()] if self.files else []
        return "\n".join([*parts, self.splits["test"].samples_markdown()])


def report(config: PipelineConfig, runs: dict[str, Path]) -> None:
    """Evaluates each model on the world and the user's files; writes eval.json, samples.md, curves.png, and a table."""
    labels = {"pretrain": "base", "sft": "tuned"}
    measured = {labels[name]: _measure(config, runs, name) for name in runs}
    for name, directory in runs.items():
        found = measured[labels[name]]
        write_json(directory / "eval.json", {**found.trained, "scores": found.scores()})
        write_text(directory / "samples.md", f"# {labels[name]}\n\n{found.samples()}")
    out = Path(config.out)
    write_json(out / "eval.json", {label: found.to_json() for label, found in measured.items()})
    # What people came to see stands first.
    samples = [f"# {label}\n\n{found.samples()}" for label, found in reversed(measured.items())]
    write_text(out / "samples.md", "\n".join(samples))
    plot_curves({name: RunDirectory(d).metrics_file for name, d in runs.items()}, out / "curves.png")
    _show(measured)


def _show(measured: dict[str, Measured]) -> None:
    table = Table(title="What each stage is worth (exact match on new instances, macro-average over families)")
    rows = {label: found.cells() for label, found in measured.items()}
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for label, cells in rows.items():
        table.add_row(label, *(cells.get(column, "") for column in columns))
    # As wide as it is, for a row that is folded is not read; a log file has no width of its own.
    Console(width=max(Console().width, Console(width=1000).measure(table).maximum)).print(table)
    for label, found in measured.items():
        for note in found.files.notes() if found.files else ():
            print(f"{label}, held-out records: {note}")


def _measure(config: PipelineConfig, runs: dict[str, Path], name: str) -> Measured:
    directory = runs[name]
    device = resolve_device(config.device)
    model, tok = load(directory, device, config.backend)
    context = model.config.context
    records = _held_out_records(config, runs["sft"])
    with resolve_precision(config.dtype, device).context(device):
        splits = {
            split: evaluate_examples(model, tok, world.sample(split, _count(split, config.examples), seed=0))
            for split in _SPLITS
        }
        files = file_answers = None
        if records:
            exam = file_exam(records, tok, context, name=_name_of_files(config.data))
            for note in exam.notes():
                print(f"held-out records: {note}", flush=True)
            files = exam.take(model, tok)
            windows, _ = all_windows(records, tok, context)
            file_answers = evaluate_loss(model, tok, batches_of(windows, context, 16)) if windows else None
        return Measured(
            splits,
            _loss(model, tok, WorldInstructions("val", tok, config.seed, context=context), 400),
            _loss(model, tok, WorldText(tok, config.seed + 1_000_003), 400),
            files,
            file_answers,
            _file_text_loss(config, runs["pretrain"], model, tok),
            RunDirectory(directory).read_eval(),
        )


def _held_out_records(config: PipelineConfig, directory: Path) -> list[list[Message]]:
    """Records of --data that tuning never saw, as `sft` left them: evenly spread, so many that scoring takes a minute
    and not an hour."""
    file = directory / "val.jsonl"
    if set(config.data) == {"world"} or not file.exists():
        return []
    records = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    return records[:: -(-len(records) // _MOST_RECORDS)]


def _name_of_files(names: Sequence[str]) -> str:
    files = [name for name in names if name != "world"]
    return f"held out of {Path(files[0]).name}" if len(files) == 1 else f"held out of {len(files)} files"


def _file_text_loss(config: PipelineConfig, pretrained: Path, model: Any, tok: Any) -> LossReport | None:
    """On the end of each file of --text, which neither tokenizer nor model was trained on."""
    if set(config.text) == {"world"}:
        return None
    corpus = Corpus.open(pretrained / "corpus", "val")
    if not len(corpus.ids):
        return None
    stretches = CorpusWindows([corpus], model.config.context, shuffle=False)
    chosen = range(0, len(stretches), -(-len(stretches) // 400))
    return evaluate_loss(model, tok, batches_of((stretches[i] for i in chosen), model.config.context, 16))


def _count(split: str, examples: int) -> int:
    """Enough for so many examples of each family, or of each held-out pair of families."""
    return examples * len(HELD_OUT_PAIRS if split == "test_composition" else world.FAMILIES)


def _loss(model: Any, tok: Any, source: Any, count: int) -> LossReport:
    examples: Iterable[Any] = (source[i] for i in range(count))
    return evaluate_loss(model, tok, batches_of(examples, model.config.context, 16))
