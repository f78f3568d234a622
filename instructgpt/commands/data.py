"""`instructgpt data`: lists and downloads public data sets, and shows what files hold before they are trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.text import Text

from instructgpt.commands.common import choose
from instructgpt.data.comparisons import tokenized_all
from instructgpt.data.data_file import Reading
from instructgpt.data.download import fetch, list_sets
from instructgpt.data.preferences import Ranking
from instructgpt.data.show import (
    QUANTILES,
    Duplicates,
    Entry,
    Kind,
    Lengths,
    Overview,
    Segment,
    duplicates,
    lengths,
    read_overview,
    scripts,
    segments,
)
from instructgpt.data.windows import Long, all_windows
from instructgpt.errors import UserError, suggestion
from instructgpt.flags import parse, program
from instructgpt.settings import FilePath, NonNegativeInt, Settings
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory


@dataclass(frozen=True)
class ListConfig:
    """The public data sets that `data get` knows, with their licences."""


@dataclass(frozen=True)
class GetConfig(Settings):
    """Downloads a public data set: data get NAME --out DIR."""

    out: FilePath = ""
    """The directory to put the files in; by default data/NAME."""


@dataclass(frozen=True)
class ShowConfig(Settings):
    """What files hold, before anything is trained on them: data show FILE... [flags], the flags of the stages too.

    Printed are what was read, dropped and not used, duplicates, lengths, scripts, and a few examples as the model would
    read them: control tokens by their names, what is trained on in [brackets], or green in a terminal.
    """

    data: tuple[FilePath, ...] = ()
    """The files; they may also be named before all flags."""
    model: FilePath = ""
    """A run directory: lengths are in its tokens, and compared with its context."""
    tokenizer: FilePath = ""
    """A directory with a tokenizer, instead of --model; without either, lengths are in characters."""
    context: NonNegativeInt = 0
    """The tokens that an example has room for; 0 means what --model has."""
    kind: Literal["auto", "comparisons", "conversations", "text"] = "auto"
    """What the files are read as: comparisons (as reward and dpo do), conversations (sft, eval, and the prompts of ppo,
    grpo and best_of_n), text (tokenizer and pretrain), or auto, the first of these that they can be read as."""
    long: Long = "windows"
    """What is to become of conversations longer than the context, as in sft; `drop` in reward and dpo, too."""
    examples: NonNegativeInt = 3
    """Examples shown of each file, evenly spread over it."""
    width: NonNegativeInt = 600
    """Most characters shown of each turn; 0 shows all."""
    text_field: str = ""
    """The field of records that holds the text, such as content or body.text, or a template: '{title}\\n\\n{body?}'. By
    default their `text`, or their list of `paragraphs`."""
    reading: Reading = field(default_factory=Reading)


def data(argv: Sequence[str]) -> int:
    """Lists the named sets with their licences, downloads one, or shows files."""
    if (chosen := choose(argv, "data", ACTIONS, "list", "ACTION; ACTION --help lists its flags")) is None:
        return 0
    action, rest = chosen
    return ACTIONS[action][0](rest)


def _prog() -> str:
    return f"{program()} data"


def _list(argv: Sequence[str]) -> int:
    parse(ListConfig, argv, f"{_prog()} list")
    for public_set in list_sets():
        size = f"{public_set.size / 1e6:,.1f} MB"
        print(f"{public_set.name:<24} {size:>10}  {public_set.about}; licence: {public_set.licence}")
    return 0


def _get(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        parse(GetConfig, argv, f"{_prog()} get", takes="NAME")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{_prog()} get needs the name of a set{suggestion('', [each.name for each in list_sets()])}")
    name, *flags = argv
    config = parse(GetConfig, flags, f"{_prog()} get", takes="NAME")
    fetch(name, config.out or Path("data") / name)
    return 0


# ---- show


def _show(argv: Sequence[str]) -> int:
    named = list(takewhile(lambda word: not word.startswith("-"), argv))
    before = ["--data", *named] if named else []
    config = parse(ShowConfig, [*before, *argv[len(named) :]], f"{_prog()} show", takes="FILE...")
    files = config.reading.files(config.data)
    if not files:
        raise UserError(f"{_prog()} show needs the files to show: {_prog()} show FILE... (`world` is no file)")
    tokenizer, context = _measure(config)
    overviews: list[Overview] = []
    for file in files:
        overview = read_overview(file, None if config.kind == "auto" else config.kind, config.text_field)
        overviews.append(overview)
        repeated = duplicates(overviews)[-1]
        print("\n".join(_report(overview, repeated, config, tokenizer, context)), flush=True)
        for number in _spread(len(overview.entries), config.examples):
            print(f"\n--- {file.path}: {overview.kind[:-1] if overview.kind != 'text' else 'document'} {number + 1:,}")
            _show_entry(overview.entries[number], overview.kind, config, tokenizer)
        print(flush=True)
    return 0


def _measure(config: ShowConfig) -> tuple[Tokenizer | None, int]:
    """What lengths are measured in, and the most that there is room for (0: not known)."""
    if config.model and config.tokenizer:
        raise UserError("--model brings its own tokenizer; leave --tokenizer out")
    if not (config.model or config.tokenizer):
        if config.context:
            raise UserError("--context is in tokens: name a --tokenizer too, or a --model")
        return None, 0
    tokenizer = Tokenizer.load(config.model or config.tokenizer)
    known = RunDirectory(config.model).read_config()["model"]["context"] if config.model else 0
    return tokenizer, config.context or known


def _report(
    overview: Overview, repeated: Duplicates, config: ShowConfig, tokenizer: Tokenizer | None, context: int
) -> Iterator[str]:
    yield overview.account.report()
    yield f"  read as {overview.kind}{_MEANING[overview.kind]}"
    told = [
        f"{count:,} {what}"
        for count, what in (
            (repeated.exact, "equal to an earlier one"),
            (repeated.elsewhere, "equal to one of an earlier file"),
            (repeated.same_prompt, "with an earlier one's prompt and another answer"),
        )
        if count
    ]
    yield f"  duplicates: {', '.join(told) or 'none'}"
    measured = lengths(overview.entries, tokenizer)
    yield from _table(measured, overview.kind, "tokens" if tokenizer else "characters")
    if tokenizer and context:
        yield f"  {_fit(overview, measured, config, tokenizer, context)}"
    names = ("prompts", "documents" if overview.kind == "text" else "answers")
    for what, counts in zip(names, scripts(overview.entries)):
        if counts:
            yield f"  {what} mainly in: {', '.join(f'{name} {count:,}' for name, count in counts.most_common())}"


_MEANING = {
    "comparisons": ", as reward and dpo read them; sft learns the best answers (--kind conversations)",
    "conversations": ", as sft and eval read them",
    "text": ", as tokenizer and pretrain read it",
}


def _table(measured: Lengths, kind: Kind, unit: str) -> Iterator[str]:
    heads = ("least", "25%", "half", "75%", "95%", "most")
    yield f"  {f'length in {unit}':<22}" + "".join(f"{head:>9}" for head in heads)
    rows = {"whole": measured.whole} if kind == "text" else measured._asdict()
    for name, values in rows.items():
        found = np.quantile(values, QUANTILES, method="nearest")
        yield f"    {name:<20}" + "".join(f"{value:>9,}" for value in found)


def _fit(overview: Overview, measured: Lengths, config: ShowConfig, tokenizer: Tokenizer, context: int) -> str:
    """How many entries are longer than the context, and what training makes of them."""
    limit = context if overview.kind == "comparisons" else context + 1  # of a row, the last token is a target only
    long = int((measured.whole > limit).sum())
    share = f"{long:,} of {len(overview.entries):,} ({long / len(overview.entries):.0%}) are longer than the context"
    if overview.kind == "text" or not long:
        return f"{share} of {context:,} tokens"
    if overview.kind == "conversations":
        _, fitted = all_windows([entry.messages for entry in overview.entries], tokenizer, context, config.long)
        return f"{share}; {fitted.report(context)}"
    rankings = [Ranking(list(entry.messages), entry.answers) for entry in overview.entries]
    return f"{share}; {tokenized_all(rankings, tokenizer, context, 'drop' if config.long == 'drop' else 'cut')[1]}"


def _spread(count: int, wanted: int) -> list[int]:
    """So many numbers below `count`, evenly spread, the first one among them."""
    return sorted({i * count // wanted for i in range(min(wanted, count))}) if wanted else []


def _show_entry(entry: Entry, kind: Kind, config: ShowConfig, tokenizer: Tokenizer | None) -> None:
    shown = Text()
    marked = not sys.stdout.isatty()
    for learnt, group in groupby(segments(entry, tokenizer), key=lambda segment: segment.is_learnt):
        text = "".join(_spelled(segment, config.width) for segment in group)
        shown.append(f"[{text}]" if marked and learnt else text, style="green" if learnt else "dim")
    if marked:
        print(shown.plain, flush=True)
    else:
        Console().print(shown, soft_wrap=True)


def _spelled(segment: Segment, width: int) -> str:
    """A segment's text, shortened; what would not show, or would move the cursor, is spelt out."""
    text = segment.text
    if width and len(text) > width:
        text = f"{text[:width]}… ({len(text) - width:,} characters more)"
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


ACTIONS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "list": (_list, "the public data sets that are known"),
    "get": (_get, "download one of them"),
    "show": (_show, "what files hold, before anything is trained on them"),
}
