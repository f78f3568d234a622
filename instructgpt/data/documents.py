"""Text files to documents, in pieces that are encoded one by one, each for training or held out.

Everything here is a stream; memory stays bounded however large the files, unless a single record is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from instructgpt.data.account import Unusable, names_of
from instructgpt.data.fields import Fields
from instructgpt.data.files import holds_records, read_records, read_text
from instructgpt.data.tables import Unreadable
from instructgpt.data.templates import Template
from instructgpt.errors import UserError

Split = Literal["train", "val"]

_TEXT_FIELD = "text"
_PIECE = 1 << 16  # characters
_FARTHEST_CUT = 1 << 20  # bytes by which a split may move to fall on a document's or a line's end


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    ends_document: bool


def split_pieces(
    path: Path, holdout: float, encoding: str, separator: str, dropped: Counter[str], text_field: str = ""
) -> Iterator[tuple[Split, Piece]]:
    """The pieces of a file, those of its last `holdout` bytes as validation; `text_field` as in `text_template`.

    The file is read twice, since a compressed one does not tell how much text it holds. The split falls at the end of a
    document, or else of a line, that is near: it takes at most half of what is to be held out.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout {holdout} is no share of a file; give 0 to 0.9")
    template = text_template(text_field)
    unread: Counter[str] = Counter()
    total = sum(len(piece.text.encode()) for piece in _pieces(path, encoding, separator, unread, template))
    if not total:
        why = "; ".join(f"{count:,} record(s) {reason}" for reason, count in unread.items())
        if (
            template
            and holds_records(path)
            and isinstance(first := next(read_records(path, encoding=encoding))[1], dict)
        ):
            why += f"; the first one has {names_of(first)}"
        raise UserError(f"has no text{f': {why}' if why else ''}", path)
    train_bytes, near = total * (1 - holdout), min(total * holdout / 2, _FARTHEST_CUT)
    done, split = 0, "train"
    for piece in _pieces(path, encoding, separator, dropped, template):
        begin, done = done, done + len(piece.text.encode())
        if split == "val" or not holdout or done < train_bytes:
            yield split, piece
            continue
        split = "val"
        if piece.ends_document and done <= train_bytes + near:
            yield "train", piece
        else:
            head, tail = _cut_near(piece.text.encode(), int(train_bytes) - begin, int(near))
            yield "train", Piece(head, True)
            yield "val", Piece(tail, piece.ends_document)


def _cut_near(text: bytes, place: int, near: int) -> tuple[str, str]:
    """Cuts UTF-8 where a line, else a word, ends at most `near` bytes behind `place`; else at `place`."""
    if newline := text.find(b"\n", place, place + near) + 1:
        place = newline
    elif (space := text.find(b" ", place, place + near)) >= 0:
        place = space
    while place < len(text) and text[place] & 0xC0 == 0x80:  # inside a character
        place += 1
    return text[:place].decode(), text[place:].decode()


def text_template(text_field: str) -> Template | None:
    """What --text-field says: a field such as content or body.text, or a template such as '{title}\\n\\n{body}'.

    Raises UserError for one that is malformed.
    """
    if not text_field:
        return None
    return Template(text_field if "{" in text_field else f"{{{text_field}}}", "--text-field ")


def _pieces(
    path: Path, encoding: str, separator: str, dropped: Counter[str], template: Template | None
) -> Iterator[Piece]:
    """The documents of a file, in pieces that are encoded one by one."""
    if not holds_records(path):
        yield from _cut(read_text(path, encoding), separator)
        return
    for _, record in read_records(path, encoding=encoding):
        try:
            text = template.fill(Fields(record)) if template and isinstance(record, dict) else _text_of(record)
        except Unusable as unusable:
            dropped[f"with {unusable.reason}"] += 1
            continue
        if isinstance(record, Unreadable):
            dropped[f"that is {record.reason}"] += 1
        elif text is None:
            dropped[f"without a field {_TEXT_FIELD!r} or a list of 'paragraphs'"] += 1
        elif not text.strip():
            dropped["empty"] += 1
        else:
            yield from _cut((text[at : at + _PIECE] for at in range(0, len(text), _PIECE)), "")


def _text_of(record: Any) -> str | None:
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        if isinstance(text := record.get(_TEXT_FIELD), str):
            return text
        paragraphs = record.get("paragraphs")
        if isinstance(paragraphs, list) and all(isinstance(paragraph, str) for paragraph in paragraphs):
            return "\n".join(paragraphs)
    return None


def _cut(chunks: Iterable[str], separator: str) -> Iterator[Piece]:
    """Documents, ended by `separator` if there is one, in pieces of at most `_PIECE` characters.

    A piece ends after a newline, or before a space, where there is one: tokens reach across neither (but for a run of
    spaces), so that pieces have the document's own tokens. Newlines around a separator belong to it; a document of
    white space is none.
    """
    held, is_begun = "", False
    for chunk in chain(_coalesced(chunks), [None]):
        *ended, held = (held + (chunk or "")).split(separator) if separator else [held + (chunk or "")]
        if chunk is None:
            ended, held = [*ended, held], ""
        for text in ended:
            if separator:
                text = text.rstrip("\n") if is_begun else text.strip("\n")
            if is_begun or text.strip():
                while len(text) > _PIECE:
                    place = _place_to_cut(text)
                    yield Piece(text[:place], False)
                    text = text[place:]
                yield Piece(text, True)
            is_begun = False
        while len(held) > _PIECE + len(separator):  # a separator that has only begun stays whole
            place = _place_to_cut(held)
            yield Piece(held[:place] if is_begun or not separator else held[:place].lstrip("\n"), False)
            held, is_begun = held[place:], True


def _coalesced(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in chunks of at least `_PIECE` characters."""
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _PIECE:
            yield "".join(parts)
            parts, size = [], 0
    yield "".join(parts)


def _place_to_cut(text: str) -> int:
    if newline := text.rfind("\n", 0, _PIECE) + 1:
        return newline
    space = text.rfind(" ", 1, _PIECE)
    return space if space > 0 else _PIECE
