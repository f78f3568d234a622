"""`instructgpt race`: who trains the best model with as many FLOPs as five minutes have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from instructgpt.atomic import require_writable, write_text
from instructgpt.commands.common import choose, command, require_folder
from instructgpt.course.attempt import require_function
from instructgpt.course.race import board
from instructgpt.course.race.entry import RECORDS, Rules, record_text
from instructgpt.course.race.judge import race
from instructgpt.errors import UserError
from instructgpt.flags import parse, program
from instructgpt.settings import FilePath, NonNegativeInt, Positive, PositiveInt, Settings


@dataclass(frozen=True)
class RaceConfig(Settings):
    """The table of a race."""

    folder: FilePath = "race"
    """Where your entries are, and results.json."""
    minutes: Positive = 5.0
    """Of which length."""


@dataclass(frozen=True)
class StartConfig(Settings):
    """Writes an entry to begin with. FILE is by default mine.py in --folder."""

    folder: FilePath = "race"
    """Where to write it."""
    record: str = RECORDS[0]
    """Which of our records to begin from: gpt2, rates, llama, muon or look_up."""


@dataclass(frozen=True)
class RunConfig(Settings):
    """Trains an entry, and scores it on held-out text. FILE is by default mine.py in --folder."""

    folder: FilePath = "race"
    """Where results.json is."""
    minutes: Positive = 5.0
    """Of the machine: 4e12 FLOPs each, and no more time than four cores have. Records are of 5; less is for trying."""
    seeds: PositiveInt = 1
    """Runs, each with initial weights and text of its own: two entries differ where their seeds do not overlap."""
    seed: NonNegativeInt = 0
    """The first of the seeds."""


def races(argv: Sequence[str]) -> int:
    """Writes an entry to begin with, runs one, shows the table."""
    if (chosen := choose(argv, "race", ACTIONS, "table", "ACTION [FILE] [flags]")) is None:
        return 0
    action, rest = chosen
    named = rest[:1] if rest and not rest[0].startswith("-") else []
    return ACTIONS[action][0](named, rest[len(named) :], f"{program()} race {action}")


def _start(named: list[str], rest: Sequence[str], prog: str) -> int:
    config = parse(StartConfig, rest, prog, takes="[FILE]")
    require_folder(config.folder)
    path = Path(named[0]) if named else Path(config.folder) / "mine.py"
    if path.exists():
        raise UserError("is there already, and stays as it is; name another file", path)
    _, _, body = record_text(config.record).split('"""', 2)
    write_text(path, f'"""My entry, begun from our record `{config.record}`: say here what it tries."""{body}')
    run = command("race", "run", str(path), folder=config.folder, default=StartConfig.folder)
    print(f"wrote {path}: change what you like in it, then: {run}")
    return 0


def _run(named: list[str], rest: Sequence[str], prog: str) -> int:
    config = parse(RunConfig, rest, prog, takes="[FILE]")
    require_folder(config.folder)
    folder, rules = Path(config.folder), Rules(minutes=config.minutes)
    path = Path(named[0]) if named else folder / "mine.py"
    # What is wrong with the files is told before anything is trained.
    start = command("race", "start", *named, folder=config.folder, default=StartConfig.folder)
    require_function(path, "entry", written_by=start)
    board.read(folder)
    require_writable(folder / board.RESULTS)
    finishes = []
    for seed in range(config.seed, config.seed + config.seeds):
        print(f"{path.stem}, seed {seed}: {rules.flops:.1e} FLOPs", flush=True)
        finishes.append(finish := race(path, rules, seed))
        print(f"  {finish.score.mean:.4f} ±{finish.score.half_width:.4f} bits per byte", flush=True)
    board.keep(folder, board.result(path.stem, rules, finishes))
    return _shown(folder, config.minutes)


def _table(named: list[str], rest: Sequence[str], prog: str) -> int:
    config = parse(RaceConfig, [*named, *rest], prog)
    require_folder(config.folder)
    return _shown(Path(config.folder), config.minutes)


def _shown(folder: Path, minutes: float) -> int:
    """Prints the table of the entries of one length, ours among them."""
    every = [*board.ours(), *board.read(folder)]
    found = [one for one in every if one["minutes"] == minutes]
    table = Table(box=None, pad_edge=False)
    for name in board.HEAD:
        table.add_column(name)
    for row in board.rows(found):
        table.add_row(*row)
    Console(width=140, markup=False, highlight=False).print(table)
    if others := sorted({one["minutes"] for one in every} - {minutes}):
        print(f"Of other lengths, to be shown with --minutes: {', '.join(f'{one:g}' for one in others)}")
    return 0


ACTIONS: dict[str, tuple[Callable[[list[str], Sequence[str], str], int], str]] = {
    "start": (_start, "write an entry to begin with: race/mine.py, or the FILE named"),
    "run": (_run, "train an entry, and score it on held-out text"),
    "table": (_table, "yours and ours, the best first"),
}
