"""What files hold, before anything is trained on them: their account, lengths, duplicates, scripts, and examples.

An example is shown as the chat template renders it: control tokens by their names, and of all else what is trained on
told apart from what is only read.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from instructgpt.data.account import Account
from instructgpt.data.data_file import DataFile
from instructgpt.data.documents import split_pieces
from instructgpt.data.instructions import read_instructions
from instructgpt.data.preferences import read_rankings
from instructgpt.errors import UserError
from instructgpt.text.chat import ROLES, Message, is_learnt
from instructgpt.text.formats import OURS
from instructgpt.text.tokenizer import Tokenizer

Kind = Literal["comparisons", "conversations", "text"]
_OUR_CONTROL = re.compile(r"<\|(system|user|assistant|end)\|>")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


class Segment(NamedTuple):
    """A stretch of an example."""

    text: str
    is_learnt: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class Entry:
    """One conversation, comparison, prompt or document."""

    messages: tuple[Message, ...] = ()
    """All turns; of a comparison and a prompt, those before the answer."""
    answers: tuple[str, ...] = ()
    """A comparison's, the best first, and the right one of a prompt, if it is known."""
    text: str = ""
    """Of a document."""

    def learns(self, message: Message) -> bool:
        """Whether a turn is trained on: of a comparison none is, its answers are."""
        return is_learnt(message) and not self.answers

    @property
    def key(self) -> str:
        return repr((self.messages, self.answers, self.text))

    @property
    def prompt(self) -> str:
        """What comes before the last answer."""
        turns = self.messages[:-1] if self.messages and self.messages[-1]["role"] == "assistant" else self.messages
        return repr(turns)


@dataclass(frozen=True)
class Overview:
    """A file, read as it would be for training."""

    file: DataFile
    kind: Kind
    account: Account
    entries: list[Entry] = field(repr=False)


def read_overview(file: DataFile, kind: Kind | None = None, text_field: str = "") -> Overview:
    """A file read as `kind`; by default, as the first of comparisons, conversations and text that it can be read as.

    Raises UserError; that of conversations where it is none of them.
    """
    if text_field or kind == "text":
        return _text(file, text_field)
    if kind is not None:
        return _READERS[kind](file)
    if file.templates.prompt:
        return _READERS["comparisons" if file.templates.rejected else "conversations"](file)
    failed: dict[Kind, UserError] = {}
    for each in _READERS:
        found = _attempt(each, file)
        if isinstance(found, Overview):
            return found
        failed[each] = found
    raise failed["conversations"]


def _attempt(kind: Kind, file: DataFile) -> Overview | UserError:
    try:
        return _READERS[kind](file)
    except UserError as error:
        return error


def _conversations(file: DataFile) -> Overview:
    account = Account(file.path)
    entries = [Entry(tuple(messages)) for messages in read_instructions([file], account)]
    return Overview(file, "conversations", account, entries)


def _comparisons(file: DataFile) -> Overview:
    account = Account(file.path)
    entries = [Entry(tuple(each.messages), each.answers) for each in read_rankings([file], account)]
    return Overview(file, "comparisons", account, entries)


def _text(file: DataFile, text_field: str = "") -> Overview:
    account = Account(file.path)
    dropped: Counter[str] = Counter()
    texts = [""]
    for _, piece in split_pieces(Path(file.path), 0.0, file.encoding, "", dropped, text_field):
        texts[-1] += piece.text
        if piece.ends_document:
            texts.append("")
    entries = [Entry(text=text) for text in texts if text]
    account.read, account.kept, account.dropped = len(entries) + dropped.total(), len(entries), dropped
    return Overview(file, "text", account, entries)


# ---- an example, as it is rendered


def segments(entry: Entry, tokenizer: Tokenizer | None = None) -> Iterator[Segment]:
    """An entry as the tokenizer's chat format has it, or ours; of a comparison, the answers one after the other.

    With a tokenizer, texts are what is left of them after encoding.
    """
    form = OURS if tokenizer is None or tokenizer.format is None else tokenizer.format

    def framed(template: str, content: str, learnt: bool = False) -> Iterator[Segment]:
        before, _, after = template.partition("{}")
        end = next((after.index(name) + len(name) for name in form.control if name in after), len(after))
        yield Segment(_named(before), is_control=True)
        yield Segment(tokenizer.decode(tokenizer.encode(content)) if tokenizer else content, learnt)
        yield Segment(_named(after[:end]), learnt, is_control=True)
        yield Segment(_named(after[end:]), is_control=True)

    def shown() -> Iterator[Segment]:
        if entry.text:
            yield Segment(
                "<bos>" if tokenizer is None else _names(tokenizer, tokenizer.document_start), is_control=True
            )
            yield from framed("{}", entry.text, learnt=True)
            yield Segment("<eos>" if tokenizer is None else _names(tokenizer, [tokenizer.eos]), True, is_control=True)
            return
        if form.begins:
            yield Segment(
                "<bos>" if tokenizer is None else _names(tokenizer, tokenizer.document_start), is_control=True
            )
        has_system = entry.messages[0]["role"] == "system"
        system = entry.messages[0]["content"] if has_system else form.default_system
        turns = entry.messages[has_system:]
        if system is not None and form.system_in == "turn":
            yield from framed(form.system, system)
        users = [i for i, message in enumerate(turns) if message["role"] == "user"]
        for i, message in enumerate(turns):
            if message["role"] == "assistant":
                thought = form.thought if i == len(turns) - 1 else ""
                yield Segment(_named(form.header + thought), is_control=True)
                yield from framed(form.answer, message["content"], entry.learns(message))
                continue
            before, _, after = form.user.partition("{}")
            yield Segment(_named(before), is_control=True)
            if system is not None and form.system_in != "turn" and i == users[0 if form.system_in == "first" else -1]:
                yield from framed(form.system, system)
            yield from framed("{}" + after, message["content"])
        if entry.messages[-1]["role"] == "user":
            yield Segment(_named(form.header + form.thought), is_control=True)
        for rank, answer in enumerate(entry.answers):
            if len(entry.answers) > 1:
                yield Segment(f"\n{'better' if not rank else 'worse'}: ", is_control=True)
            yield from framed(form.answer, answer, learnt=True)

    return (segment for segment in shown() if segment.text or not segment.is_control)


def _named(text: str) -> str:
    """A text of a format; our own control tokens by their bare names."""
    return _OUR_CONTROL.sub(r"<\1>", text)


def _names(tokenizer: Tokenizer, ids: list[int]) -> str:
    names = {i: name if name.startswith("<") else f"<{name}>" for name, i in tokenizer.control_ids.items()}
    return "".join(names[i] for i in ids)


# ---- numbers


class Lengths(NamedTuple):
    """Of each entry; of a comparison, of its longest answer. In tokens, control tokens counted, or characters."""

    whole: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray


def lengths(entries: Sequence[Entry], tokenizer: Tokenizer | None = None) -> Lengths:
    """(N,) int64 each."""
    measure = _counter(entries, tokenizer)
    layout = tokenizer.layout if tokenizer and any(entry.messages for entry in entries) else None
    frames: dict[str, int] = {role: sum(map(len, layout.around(role))) if layout else 0 for role in ROLES}
    default = layout.format.default_system if layout else None
    default_length = 0 if default is None else frames["system"] + measure(default)
    rows = []
    for entry in entries:
        learnt = [measure(m["content"]) for m in entry.messages if entry.learns(m)]
        given = [measure(m["content"]) for m in entry.messages if not entry.learns(m)]
        answers = [measure(answer) for answer in entry.answers]
        control = sum(frames[message["role"]] for message in entry.messages) + frames["assistant"] * bool(answers)
        if layout and entry.messages:
            control += len(layout.start) + default_length * (entry.messages[0]["role"] != "system")
        elif tokenizer and entry.text:
            control += len(tokenizer.document_start) + 1
        last = max(answers, default=0) + measure(entry.text)
        rows.append((sum(learnt) + sum(given) + last + control, sum(given), sum(learnt) + last))
    whole, prompt, answer = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Lengths(whole, prompt, answer)


def _counter(entries: Sequence[Entry], tokenizer: Tokenizer | None) -> Callable[[str], int]:
    if tokenizer is None:
        return len
    default = tokenizer.format.default_system if tokenizer.format else None
    texts = sorted({default or ""} | {text for entry in entries for text in _texts(entry)})
    counts = {text: len(ids) for text, ids in zip(texts, tokenizer.encode_batch(texts))} | {"": 0}
    return counts.__getitem__


def _texts(entry: Entry) -> Iterator[str]:
    yield from (message["content"] for message in entry.messages)
    yield from entry.answers
    if entry.text:
        yield entry.text


class Duplicates(NamedTuple):
    """Entries that are in the data before."""

    exact: int
    """Equal to an earlier one of the same file."""
    elsewhere: int
    """Equal to one of an earlier file."""
    same_prompt: int
    """With an earlier one's prompt and another answer."""


def duplicates(overviews: Sequence[Overview]) -> list[Duplicates]:
    """Of each file."""
    seen: set[int] = set()
    prompts: set[int] = set()
    found = []
    for overview in overviews:
        own: set[int] = set()
        exact = elsewhere = same_prompt = 0
        for entry in overview.entries:
            key, prompt = hash(entry.key), hash(entry.prompt)
            if key in own:
                exact += 1
            elif key in seen:
                elsewhere += 1
            elif entry.messages and prompt in prompts:
                same_prompt += 1
            own.add(key)
            prompts.add(prompt)
        seen |= own
        found.append(Duplicates(exact, elsewhere, same_prompt))
    return found


_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "FULLWIDTH": "Latin"}


@lru_cache(1 << 16)
def script(character: str) -> str | None:
    """The script of a letter, such as Latin, Han or Cyrillic, by its name in Unicode; None for what is no letter."""
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").split(" ")[0]
    return _SCRIPTS.get(name, name.capitalize()) or None


def main_script(texts: Iterable[str]) -> str | None:
    """The script of most letters; Japanese where a tenth of those of Han and kana are kana."""
    counts: Counter[str] = Counter()
    for character, count in Counter("".join(texts)).items():
        if found := script(character):
            counts[found] += count
    if counts["Japanese"] * 10 >= counts["Japanese"] + counts["Han"] > 0:
        counts["Japanese"] += counts.pop("Han", 0)
    return max(counts, key=lambda name: (counts[name], name)) if counts else None


def scripts(entries: Iterable[Entry]) -> tuple[Counter[str], Counter[str]]:
    """How many entries are mainly in which script: prompts, and answers ("no letters" where there are none)."""
    asked, answered = Counter[str](), Counter[str]()
    for entry in entries:
        if entry.messages:
            asked[main_script(m["content"] for m in entry.messages if m["role"] != "assistant") or "no letters"] += 1
        said = [*(m["content"] for m in entry.messages if m["role"] == "assistant"), *entry.answers, entry.text]
        if any(said):
            answered[main_script(said) or "no letters"] += 1
    return asked, answered


_READERS: dict[Kind, Callable[[DataFile], Overview]] = {
    "comparisons": _comparisons,
    "conversations": _conversations,
    "text": _text,
}
