"""The worked example: a model is tuned to translate, and what it says of test sentences is scored before and after.

    train, validation, test ──► instructions ──► what --init says of the test sentences
                                             ├─► an adapter (LoRA), stopped early ──► the same
                                             └─► all weights, stopped early       ──► the same

A pair of sentences is an instruction: the system message says what to do, the user's turn is the sentence, and its
translation with the end of the turn is all that is learnt. Scores are of generated text: BLEU and chrF of the whole
set, token accuracy place by place. What a teacher-forced pass would call accuracy stands beside them in eval.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from instructgpt import world
from instructgpt.atomic import write_text
from instructgpt.data.data_file import Reading
from instructgpt.data.instructions import read_instructions
from instructgpt.data.packing import batches_of
from instructgpt.data.unpack import without_packing
from instructgpt.data.windows import all_windows
from instructgpt.errors import UserError
from instructgpt.evaluation.instructions import file_exam
from instructgpt.evaluation.loss import evaluate_loss
from instructgpt.evaluation.predictions import Predictions
from instructgpt.evaluation.report import Outcome, Report
from instructgpt.evaluation.scores import require_sacrebleu, token_accuracy
from instructgpt.figures import write_json
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegativeInt, Positive, PositiveInt, Settings
from instructgpt.stages import sft
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.stages.common import require
from instructgpt.stages.sft import SFTConfig
from instructgpt.strict_json import write_json_lines
from instructgpt.text.chat import Message
from instructgpt.training.checkpoint import RunDirectory, load
from instructgpt.training.loop import FitConfig
from instructgpt.training.plot import plot_curves

Way = Literal["lora", "full"]
_LANGUAGES = {"en": "English", "fr": "French", "de": "German", "cs": "Czech", "es": "Spanish", "it": "Italian",
              "zh": "Chinese"}  # fmt: skip
_WORLD_PAIRS = {"train": 4000, "val": 200, "test": 400}
_ROW_LENGTH = 128
_SAMPLES = 12


@dataclass(frozen=True)
class TranslateConfig(Settings):
    """Tunes a model to translate, by an adapter and as a whole, and scores it before and after."""

    out: FilePath = ""
    """The directory to write: lora/, full/, and the report."""
    init: FilePath = ""
    """The model to begin with: a run directory, such as that of an imported one."""
    data: FilePath = "world"
    """A folder with line-aligned files somewhere in it, packed or not: train.en, train.fr, val.en, val.fr, test.en,
    test.fr, or with more between name and language (test_2016_flickr.en.gz). Or `world`: the embedded world's sentence
    pairs, en and fr or zh."""
    source: str = "en"
    """The language to translate from, as files' names end."""
    target: str = "fr"
    """The language to translate to."""
    tune: tuple[Way, ...] = ("lora", "full")
    """What to train: lora (an adapter beside the model), full (all of it), each from --init."""
    steps: PositiveInt = 480
    """Most updates of each."""
    rows: PositiveInt = 4
    """Rows of a batch, of 128 tokens each."""
    learning_rate: Positive = 2e-4
    """Peak rate of the whole model."""
    lora_learning_rate: Positive = 1e-3
    """Peak rate of the adapter."""
    lora_rank: PositiveInt = 32
    """The adapter's rank; it stands beside all layers of the blocks."""
    eval_every: PositiveInt = 120
    """Updates between validations."""
    patience: NonNegativeInt = 2
    """Stop after so many validations without a better loss, and keep the best weights; 0 never stops early."""
    test_pairs: NonNegativeInt = 0
    """Test sentences, evenly spread; 0 takes all."""
    seed: NonNegativeInt = 0
    """Decides the data's order and the adapter's first weights."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """float32, bfloat16, float16, bfloat16-master or auto."""
    backend: str = "auto"
    """naive, sdpa, triton or auto."""
    checkpointing: Checkpointing = "none"
    """What the backward computes again instead of keeping it: none, selective or blocks."""
    resume: bool = False
    """Go on where an interrupted run stopped; what is done is not done again."""
    overwrite: bool = False
    """Replace what is in --out."""


@dataclass(frozen=True)
class Pairs:
    """Where the sentences are, and how they are read."""

    train: str
    val: str
    test: str
    reading: Reading = field(default_factory=Reading)


def run(config: TranslateConfig) -> None:
    """Trains what is not trained yet, scores everything and prints one table."""
    require(config.init, "--init", "name the run directory to start from, such as runs/smollm2 (`make smollm2`)")
    require(config.out, "--out", "name the directory to write")
    require_sacrebleu()
    out = Path(config.out)
    marker = out / "translate.json"
    if marker.exists() and not (config.resume or config.overwrite):
        raise UserError("holds a run already; go on with --resume, replace it with --overwrite", out)
    context = RunDirectory(config.init).read_config()["model"]["context"]
    pairs = pairs_of(config)
    _, _, test = (_conversations(name, pairs.reading) for name in (pairs.train, pairs.val, pairs.test))
    test = test[:: -(-len(test) // config.test_pairs)] if config.test_pairs else test
    write_json(marker, {"init": config.init, "data": config.data, "source": config.source, "target": config.target})
    measured = {"before": measure("before", config.init, test, config)}
    for way in config.tune:
        if not (config.resume and (out / way / "eval.json").exists()):
            sft.run(stage(way, pairs, min(_ROW_LENGTH, context), config))
        measured[way] = measure(way, str(out / way), test, config)
    write_json(out / "eval.json", {name: found.to_json() for name, found in measured.items()})
    write_text(out / "samples.md", samples(measured))
    plot_curves({way: RunDirectory(out / way).metrics_file for way in config.tune}, out / "curves.png")
    show(measured)


# ---- data


def pairs_of(config: TranslateConfig) -> Pairs:
    """The three sets, those of the world written down first. Raises UserError where one is not there, or is twice."""
    if config.data == "world":
        return _world_pairs(config)
    folder = Path(config.data)
    if not folder.is_dir():
        raise UserError("is no folder: --data names one with train, val and test files, or `world`", folder)
    source, target = (_LANGUAGES.get(each, each) for each in (config.source, config.target))
    train, val, test = (_aligned(folder, split, config) for split in ("train", "val", "test"))
    system = f"Translate {source} to {target}."
    return Pairs(train, val, test, Reading(f"{{{config.source}}}", f"{{{config.target}}}", system=system))


def _aligned(folder: Path, split: str, config: TranslateConfig) -> str:
    """The files of a split in both languages, as --data of `sft` has them: A+B."""
    found = []
    for language in (config.source, config.target):
        files = [
            file for file in sorted(folder.rglob(f"{split}*.{language}*"))
            if without_packing(file.name).endswith(f".{language}")
        ]  # fmt: skip
        if len(files) != 1:
            there = " and ".join(map(str, files)) if files else "none"
            raise UserError(
                f"one file {split}….{language} should be in it or below, packed or not; there is {there}", folder
            )
        found.append(str(files[0]))
    return "+".join(found)


def _world_pairs(config: TranslateConfig) -> Pairs:
    family = f"translate_{config.source}_{config.target}"
    files = []
    for split, count in _WORLD_PAIRS.items():
        examples = world.sample(split, count, seed=config.seed if split == "train" else 0, families=(family,))
        file = Path(config.out) / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(file, [{"messages": example.conversation} for example in examples])
        files.append(str(file))
    return Pairs(*files)


def _conversations(name: str, reading: Reading) -> list[list[Message]]:
    return list(read_instructions(reading.files([name])))


# ---- training


def stage(way: Way, pairs: Pairs, row_length: int, config: TranslateConfig) -> SFTConfig:
    """The settings of `sft`, which trains."""
    is_lora = way == "lora"
    fit = FitConfig(
        learning_rate=config.lora_learning_rate if is_lora else config.learning_rate, weight_decay=0.0,
        schedule="linear", warmup_steps=min(20, config.steps // 5), max_steps=config.steps,
        eval_every=min(config.eval_every, config.steps), patience=config.patience, save_every=config.eval_every,
    )  # fmt: skip
    adapter = AdapterFlags(lora_rank=config.lora_rank, lora_alpha=2.0 * config.lora_rank) if is_lora else AdapterFlags()
    return SFTConfig(
        out=str(Path(config.out) / way), init=config.init, data=(pairs.train,), val_data=(pairs.val,),
        reading=pairs.reading, rows=config.rows, row_length=row_length, seed=config.seed, device=config.device,
        dtype=config.dtype, backend=config.backend, checkpointing=config.checkpointing, resume=config.resume,
        overwrite=config.overwrite, fit=fit, adapter=adapter,
    )  # fmt: skip


# ---- scores


@dataclass(frozen=True)
class Measured:
    """What a model says of the test sentences."""

    report: Report
    token_accuracy: float
    """Of generated text."""
    teacher_forced: float
    """Share of the references' tokens that are the likeliest after those before: no accuracy of translations."""
    trained: dict[str, Any]
    """What the stage said of itself; empty before any training."""

    def to_json(self) -> dict[str, Any]:
        scores = {"token_accuracy": self.token_accuracy, "teacher_forced_argmax": self.teacher_forced}
        return {**self.report.to_json(), **scores, "training": self.trained}


def measure(name: str, directory: str, test: Sequence[list[Message]], config: TranslateConfig) -> Measured:
    """Translates the test sentences, keeping each as soon as it is there in NAME.jsonl, and scores them."""
    device = resolve_device(config.device)
    model, tokenizer = load(directory, device, config.backend)
    exam = file_exam(test, tokenizer, model.config.context, metric="translation", name=name)
    for note in exam.notes():
        print(f"{name}: {note}", flush=True)
    found: dict[int, Outcome] = {}
    with (
        resolve_precision(config.dtype, device).context(device),
        Predictions(str(Path(config.out) / f"{name}.jsonl")) as predictions,
    ):
        for place, outcome in exam.outcomes(model, tokenizer):
            found[place] = outcome
            predictions.add(name, place, outcome)
        windows, _ = all_windows(test, tokenizer, model.config.context)
        loss = evaluate_loss(model, tokenizer, batches_of(windows, min(model.config.context, 256), 16))
    outcomes = [found[place] for place in range(len(test))]
    said, right = (
        tokenizer.encode_batch([text.strip() for text in texts])
        for texts in ([o.answer for o in outcomes], [o.reference or "" for o in outcomes])
    )
    trained = {} if name == "before" else RunDirectory(directory).read_eval()
    report = exam.report(outcomes)
    print(f"{name}: BLEU {report.metrics['bleu']:.2f}, chrF {report.metrics['chrf']:.2f}", flush=True)
    return Measured(report, token_accuracy(said, right), loss.token_accuracy, trained)


def samples(measured: dict[str, Measured]) -> str:
    """The first test sentences with what each model makes of them, as a Markdown table; tuned models come first."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    names = sorted(measured, key="before".__eq__)
    rows = [["sentence", "reference", *names], ["---"] * (2 + len(names))]
    for outcomes in list(zip(*(measured[name].report.outcomes for name in names)))[:_SAMPLES]:
        first = outcomes[0]
        rows.append([cell(text) for text in (
            first.messages[-1]["content"], first.reference or "", *(outcome.answer for outcome in outcomes)
        )])  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def show(measured: dict[str, Measured]) -> None:
    count = len(next(iter(measured.values())).report.outcomes)
    table = Table(title=f"{count:,} test sentences, generated greedily")
    table.add_column("model")
    for column in ("BLEU", "chrF", "token accuracy", "exact", "not ended", "trained weights", "updates", "minutes"):
        table.add_column(column, justify="right")
    for name, found in measured.items():
        report, trained = found.report, found.trained
        cells = [f"{report.metrics['bleu']:.2f}", f"{report.metrics['chrf']:.2f}", f"{found.token_accuracy:.3f}",
                 f"{report.macro_average:.3f}", f"{report.unfinished:,}"]  # fmt: skip
        if trained:
            share = trained["trained_parameters"] / trained["parameters"]
            cells += [f"{share:.2%}", f"{trained['weights_of_step']:,}", f"{trained['minutes']:.1f}"]
        table.add_row(name, *cells)
    Console(width=max(Console().width, Console(width=1000).measure(table).maximum)).print(table)
