"""Preference files to rankings, pairs being those of two, of answers to the same prompt.

Records have `chosen` and `rejected`, as text, as a message or as a whole list of messages, beside a prompt as those of
instructions have one, or with the turns before them: transcripts as in HH-RLHF (Bai et al. 2022), lists of messages.
Turns that stand in both are asked once. Without `chosen`, Alpaca's `output` is the chosen one; of two texts in `output`
the first is the better. A `ranking` has the best answer first; answers with `rank` or `score` are sorted by it; and
of `response_1` and `response_2` a verdict (`winner`, `preference_strength`, …) says which is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from instructgpt.data.account import Account, Unusable
from instructgpt.data.data_file import DataFile
from instructgpt.data.exchanges import compared
from instructgpt.data.fields import Fields
from instructgpt.data.records import convert_files
from instructgpt.data.templates import Templates
from instructgpt.errors import UserError
from instructgpt.text.chat import Message

_KNOWN = (
    "prompt or instruction or messages with chosen and rejected, and HH-RLHF transcripts (chosen, rejected), and "
    "prompts with a ranking"
)


@dataclass(frozen=True)
class Ranking:
    """Two or more answers to one prompt, the best first (Ouyang et al. 2022 collected 4 to 9)."""

    messages: list[Message]
    """The prompt; it ends with the user's turn."""
    answers: tuple[str, ...]
    """No two alike."""


def read_rankings(
    files: Iterable[DataFile | str | Path], account: Account | None = None, strict: bool = False, unique: bool = False
) -> Iterator[Ranking]:
    """The rankings and the pairs in the files, pairs as rankings of two, in order, streamed; arguments and errors are
    those of `read_instructions`."""
    counts, files = account if account is not None else Account(), _checked(files)
    return convert_files(files, counts, strict, lambda record, templates: _rankings(record, templates, counts), unique)


def _checked(files: Iterable[DataFile | str | Path]) -> list[DataFile]:
    """The files. Raises UserError for templates that make no pair."""
    found = [DataFile.of(file) for file in files]
    for file in found:
        if file.templates.prompt and not (file.templates.better and file.templates.rejected):
            raise UserError("--prompt, --chosen and --rejected go together: give all three, or none", file.path)
    return found


def _rankings(record: Fields, templates: Templates, account: Account) -> list[Ranking | Unusable]:
    found = compared(record, templates, account, _KNOWN)
    return [one if isinstance(one, Unusable) else Ranking(one.prompt, one.answers) for one in found]
